//! Forwarding on the same segment: new MAC addresses, nothing else. VLAN tags stay where they are.

use super::check_size;
use crate::{backend::Backend, exit::Exit, parse::Ip};
use lb_common::{header::EthernetHeader, verdict::Verdict};
use lb_ebpf::packet::Packet;

/// Addresses the frame to the next hop. It leaves from the address that it was sent to, ours, or that of the interface
/// that it is redirected to.
#[inline(always)]
pub fn rewrite(packet: &mut Packet, ip: &Ip, backend: &Backend, exit: Exit) -> Result<(), Verdict> {
    check_size(usize::from(ip.length), backend)?;
    let old: EthernetHeader = packet.read(0).ok_or(Verdict::PassTruncated)?;
    let new = EthernetHeader {
        destination: backend.next_hop,
        source: exit.source(old.destination),
        ethertype: old.ethertype,
    };
    packet.write(0, new).ok_or(Verdict::PassTruncated)
}
