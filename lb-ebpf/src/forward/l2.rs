//! Forwarding on the same segment: new MAC addresses, nothing else. VLAN tags stay where they are.

use super::{Passenger, check_size};
use crate::{backend::Backend, exit::Exit};
use aya_ebpf::bindings::xdp_action;
use lb_common::{
    header::{EthernetHeader, LinkHeader as _},
    verdict::Verdict,
};
use lb_ebpf::packet::{Header as _, Packet};

/// Addresses the frame to the next hop. It leaves from the address that it was sent to, if it goes back where it came from.
#[inline(always)]
pub fn rewrite(
    packet: &mut Packet,
    ip: &impl Passenger,
    backend: &Backend,
    exit: Exit,
) -> Result<xdp_action::Type, Verdict> {
    check_size(ip.length().into(), backend)?;
    readdress(packet, backend, exit).ok_or(Verdict::PassTruncated)
}

#[inline(always)]
fn readdress(packet: &mut Packet, backend: &Backend, exit: Exit) -> Option<xdp_action::Type> {
    let mut front = packet.front_mut(EthernetHeader::LENGTH)?;
    let old: EthernetHeader = front.read().read_words::<[u8; 0], _>()?;
    front.write_words(old.readdressed(backend.next_hop(), old.destination(), old.ethertype))?;
    exit.leave(&mut front)
}
