//! Putting an outer header before a packet, whichever it is.

use super::check_size;
use crate::{
    backend::Backend,
    exit::Exit,
    parse::{Ip, Tags},
};
use lb_common::{
    header::{
        DoubleTaggedHeader, EthernetHeader, Inner, LinkHeader, PROTOCOL_IPV4, PROTOCOL_IPV6,
        TaggedHeader,
    },
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

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
    exit: Exit,
) -> Result<(), Verdict> {
    check_size(reserved + T::LENGTH + usize::from(ip.length), backend)?;
    match ip.tags {
        Tags::None => write::<EthernetHeader, T>(packet, backend, ethertype, outer, exit),
        Tags::One => write::<TaggedHeader, T>(packet, backend, ethertype, outer, exit),
        Tags::Two => write::<DoubleTaggedHeader, T>(packet, backend, ethertype, outer, exit),
    }
}

/// Writes the new headers over the room made for them and over the old link header, `L`.
#[inline(always)]
fn write<L: Header + LinkHeader, T: Header>(
    packet: &mut Packet,
    backend: &Backend,
    ethertype: u16,
    outer: T,
    exit: Exit,
) -> Result<(), Verdict> {
    let old: L = packet.read(0).ok_or(Verdict::PassTruncated)?;
    let new = old.readdressed(backend.next_hop, exit.source(old.destination()), ethertype);
    packet
        .move_head(-(T::LENGTH as i32))
        .ok_or(Verdict::DropNoHeadroom)?;
    // The frame has grown by the outer header's length, so neither write can fail; the verifier wants the checks.
    packet.write(0, new).ok_or(Verdict::DropNoHeadroom)?;
    packet
        .write(L::LENGTH, outer)
        .ok_or(Verdict::DropNoHeadroom)
}
