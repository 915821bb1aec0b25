//! GUE, all four pairs of families; the outer family is the backend's.

use super::outer::{inner, prepend};
use crate::{backend::Backend, exit::Exit, parse::Ip};
use lb_common::{
    gue::{GueOverIpv4, GueOverIpv6},
    header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    verdict::Verdict,
};
use lb_ebpf::packet::Packet;

/// Puts IP, UDP and GUE headers before the packet, and before those the frame's VLAN tags and new MAC addresses.
#[inline(always)]
pub fn encapsulate(
    packet: &mut Packet,
    ip: &Ip,
    hash: u64,
    backend: &Backend,
    exit: Exit,
) -> Result<(), Verdict> {
    let inner = inner(ip);
    let (source, port) = (backend.outer_source, backend.port);
    match (source.is_v4(), backend.address.is_v4()) {
        (true, true) => {
            let (source, destination) = (source.v4_word(), backend.address.v4_word());
            let outer = GueOverIpv4::encapsulating(&inner, source, destination, port, hash);
            prepend(packet, ip, backend, ETHERTYPE_IPV4, outer, exit)
        }
        (false, false) => {
            let outer = GueOverIpv6::encapsulating(&inner, source, backend.address, port, hash);
            prepend(packet, ip, backend, ETHERTYPE_IPV6, outer, exit)
        }
        (true, false) | (false, true) => Err(Verdict::DropBadState),
    }
}
