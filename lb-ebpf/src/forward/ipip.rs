//! IP in IP, all four pairs of families; the outer family is the backend's.

use super::{check_size, destination};
use crate::{
    backend::Backend,
    parse::{Ip, Tags},
};
use lb_common::{
    header::{
        DoubleTaggedHeader, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Inner, Ipv4Header,
        Ipv6Header, LinkHeader, PROTOCOL_IPV4, PROTOCOL_IPV6, TaggedHeader,
    },
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// Puts an outer IP header before the packet, and before that the frame's VLAN tags and new MAC addresses.
#[inline(always)]
pub fn encapsulate(
    packet: &mut Packet,
    ip: &Ip,
    hash: u64,
    backend: &Backend,
) -> Result<(), Verdict> {
    let inner = Inner {
        protocol: if ip.is_v4 {
            PROTOCOL_IPV4
        } else {
            PROTOCOL_IPV6
        },
        traffic_class: ip.traffic_class,
        length: ip.length,
        dont_fragment: ip.dont_fragment,
        id: ip.id,
    };
    match (backend.outer_source.is_v4(), backend.address.is_v4()) {
        (true, true) => {
            let (source, destination) = (backend.outer_source.v4_word(), backend.address.v4_word());
            let outer = Ipv4Header::encapsulating(&inner, source, destination);
            prepend(packet, ip, backend, ETHERTYPE_IPV4, outer)
        }
        (false, false) => {
            let outer =
                Ipv6Header::encapsulating(&inner, backend.outer_source, backend.address, hash);
            prepend(packet, ip, backend, ETHERTYPE_IPV6, outer)
        }
        (true, false) | (false, true) => Err(Verdict::DropBadState),
    }
}

/// Refuses what is too large, and puts the new headers before the packet.
#[inline(always)]
fn prepend<T: Header>(
    packet: &mut Packet,
    ip: &Ip,
    backend: &Backend,
    ethertype: u16,
    outer: T,
) -> Result<(), Verdict> {
    check_size(T::LENGTH + usize::from(ip.length), backend)?;
    match ip.tags {
        Tags::None => write::<EthernetHeader, T>(packet, backend, ethertype, outer),
        Tags::One => write::<TaggedHeader, T>(packet, backend, ethertype, outer),
        Tags::Two => write::<DoubleTaggedHeader, T>(packet, backend, ethertype, outer),
    }
}

/// Writes the new headers over the room made for them and over the old link header, `L`.
#[inline(always)]
fn write<L: Header + LinkHeader, T: Header>(
    packet: &mut Packet,
    backend: &Backend,
    ethertype: u16,
    outer: T,
) -> Result<(), Verdict> {
    let old: L = packet.read(0).ok_or(Verdict::PassTruncated)?;
    let new = old.readdressed(destination(backend), old.destination(), ethertype);
    packet
        .move_head(-(T::LENGTH as i32))
        .ok_or(Verdict::DropNoHeadroom)?;
    // The frame has grown by the outer header's length, so neither write can fail; the verifier wants the checks.
    packet.write(0, new).ok_or(Verdict::DropNoHeadroom)?;
    packet
        .write(L::LENGTH, outer)
        .ok_or(Verdict::DropNoHeadroom)
}
