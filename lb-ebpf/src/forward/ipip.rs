//! IP in IP, all four pairs of families; the outer family is the backend's.

use super::outer::{inner, prepend};
use crate::{backend::Backend, exit::Exit, parse::Ip};
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
    exit: Exit,
) -> Result<(), Verdict> {
    let inner = inner(ip);
    let source = backend.outer_source_of(hash);
    match (source.is_v4(), backend.address().is_v4()) {
        (true, true) => {
            let (source, destination) = (source.v4_word(), backend.address().v4_word());
            let outer = Ipv4Header::encapsulating(&inner, source, destination);
            prepend(packet, ip, backend, ETHERTYPE_IPV4, (outer, 0), exit)
        }
        (false, false) => {
            let outer = Ipv6Header::encapsulating(&inner, source, backend.address(), hash);
            prepend(packet, ip, backend, ETHERTYPE_IPV6, (outer, 0), exit)
        }
        (true, false) | (false, true) => Err(Verdict::DropBadState),
    }
}
