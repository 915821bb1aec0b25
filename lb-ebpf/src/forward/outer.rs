//! Putting an outer header before a packet, whichever it is.

use super::check_size;
use crate::{
    backend::Backend,
    parse::{Ip, Tags},
};
use lb_common::{
    header::{
        DoubleTaggedHeader, EthernetHeader, Inner, LinkHeader, PROTOCOL_IPV4, PROTOCOL_IPV6,
        TaggedHeader,
    },
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet, Pair};

/// What an outer header has to know of the packet.
#[inline(always)]
pub fn inner(ip: &Ip) -> Inner {
    Inner {
        protocol: if ip.is_v4 {
            PROTOCOL_IPV4
        } else {
            PROTOCOL_IPV6
        },
        traffic_class: ip.traffic_class,
        length: ip.length,
        dont_fragment: ip.dont_fragment,
        id: ip.id,
    }
}

/// Refuses what is too large with `reserved` bytes and the new headers before it, and puts these there.
#[inline(always)]
pub fn prepend<T: Header>(
    packet: &mut Packet,
    ip: &Ip,
    backend: &Backend,
    ethertype: u16,
    (outer, reserved): (T, usize),
) -> Result<(), Verdict> {
    check_size(reserved + T::LENGTH + usize::from(ip.length), backend)?;
    match ip.tags {
        Tags::None => write::<EthernetHeader, T>(packet, backend, ethertype, outer),
        Tags::One => write::<TaggedHeader, T>(packet, backend, ethertype, outer),
        Tags::Two => write::<DoubleTaggedHeader, T>(packet, backend, ethertype, outer),
    }
}

/// Makes room for the outer header and writes it, and the link header, `L`, before it. The frame leaves from the address that it
/// was sent to.
#[inline(always)]
fn write<L: Header + LinkHeader, T: Header>(
    packet: &mut Packet,
    backend: &Backend,
    ethertype: u16,
    outer: T,
) -> Result<(), Verdict> {
    packet
        .move_head(-(T::LENGTH as i32))
        .ok_or(Verdict::DropNoHeadroom)?;
    // The frame has grown by the outer header's length, so neither can fail; the verifier wants the checks.
    let old: L = packet
        .read_words(T::LENGTH)
        .ok_or(Verdict::DropNoHeadroom)?;
    let new = old.readdressed(backend.next_hop, old.destination(), ethertype);
    packet
        .write_words(0, Pair(new, outer))
        .ok_or(Verdict::DropNoHeadroom)
}
