//! IP in IP, all four pairs of families; the outer family is the backend's.

use super::{Passenger, outer::prepend};
use crate::{backend::Backend, exit::Exit};
use aya_ebpf::bindings::xdp_action;
use lb_common::{
    header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4Header, Ipv6Header},
    verdict::Verdict,
};
use lb_ebpf::packet::Packet;

/// As [`encapsulate`], for a backend with [`Backend::has_plain_ends`].
#[inline(always)]
pub fn encapsulate_plain(
    packet: &mut Packet,
    ip: &impl Passenger,
    backend: &Backend,
    exit: Exit,
) -> Result<xdp_action::Type, Verdict> {
    prepend(packet, ip, (backend, exit), (ETHERTYPE_IPV4, 0), |inner| {
        Ipv4Header::encapsulating(inner, backend.plain_ends())
    })
}

/// Puts an outer IP header before the packet, and before that the frame's VLAN tags and new MAC addresses.
#[inline(always)]
pub fn encapsulate(
    packet: &mut Packet,
    ip: &impl Passenger,
    hash: u64,
    backend: &Backend,
    exit: Exit,
) -> Result<xdp_action::Type, Verdict> {
    let way = (backend, exit);
    if backend.has_plain_ends() {
        return encapsulate_plain(packet, ip, backend, exit);
    }
    // Rare, and the same once more: what it needs is not kept for the others.
    if let Some(ends) = backend.entropic_ends(hash) {
        return prepend(packet, ip, way, (ETHERTYPE_IPV4, 0), |inner| {
            Ipv4Header::encapsulating(inner, ends)
        });
    }
    backend.check_ends_v6()?;
    prepend(packet, ip, way, (ETHERTYPE_IPV6, 0), |inner| {
        let (source, destination) = backend.ends_v6(hash);
        Ipv6Header::encapsulating(inner, source, destination, hash)
    })
}
