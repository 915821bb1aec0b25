//! IP in IP, all four pairs of families; the outer family is the backend's.

use super::outer::{inner, prepend};
use crate::{
    backend::{Backend, Ends},
    parse::Ip,
};
use lb_common::{
    header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4Header, Ipv6Header},
    verdict::Verdict,
};
use lb_ebpf::packet::Packet;

/// Puts an outer IP header before the packet, and before that the frame's VLAN tags and new MAC addresses.
#[inline(always)]
pub fn encapsulate(
    packet: &mut Packet,
    ip: &Ip,
    hash: u64,
    backend: &Backend,
) -> Result<(), Verdict> {
    let inner = inner(ip);
    match backend.ends(Some(hash))? {
        Ends::V4 {
            source,
            destination,
        } => {
            let outer = Ipv4Header::encapsulating(&inner, source, destination);
            prepend(packet, ip, backend, ETHERTYPE_IPV4, (outer, 0))
        }
        Ends::V6 {
            source,
            destination,
        } => {
            let outer = Ipv6Header::encapsulating(&inner, source, destination, hash);
            prepend(packet, ip, backend, ETHERTYPE_IPV6, (outer, 0))
        }
    }
}
