//! Forwarding on the same segment: new MAC addresses, nothing else. VLAN tags stay where they are.

use super::check_size;
use crate::{backend::Backend, parse::Ip};
use lb_common::{
    header::{EthernetHeader, LinkHeader as _},
    verdict::Verdict,
};
use lb_ebpf::packet::Packet;

/// Addresses the frame to the next hop. It leaves from the address that it was sent to.
#[inline(always)]
pub fn rewrite(packet: &mut Packet, ip: &Ip, backend: &Backend) -> Result<(), Verdict> {
    check_size(usize::from(ip.length), backend)?;
    let old: EthernetHeader = packet.read_words(0).ok_or(Verdict::PassTruncated)?;
    let new = old.readdressed(backend.next_hop, old.destination(), old.ethertype);
    packet.write_words(0, new).ok_or(Verdict::PassTruncated)
}
