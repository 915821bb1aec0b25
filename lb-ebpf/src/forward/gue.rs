//! GUE, all four pairs of families; the outer family is the backend's.
//!
//! **Invariant.** There is always room for the name of a second owner: a packet that would not fit with it is too large
//! without it as well.

use super::{Passenger, outer::prepend};
use crate::{
    backend::{self, Backend},
    exit::Exit,
    parse::Tags,
    trace,
};
use aya_ebpf::bindings::{xdp_action, xdp_md};
use lb_common::{
    address::Address,
    gue::{GueOverIpv4, GueOverIpv6, SecondV4, SecondV6},
    header::{
        DoubleTaggedHeader, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, LinkHeader,
        TaggedHeader,
    },
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// Puts IP, UDP and GUE headers before the packet, and before those the frame's VLAN tags and new MAC addresses.
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
        let kind = (ETHERTYPE_IPV4, SecondV4::LENGTH);
        return prepend(packet, ip, way, kind, |inner| {
            GueOverIpv4::encapsulating(inner, backend.plain_ends(), backend.port(), hash)
        });
    }
    backend.check_ends_v6()?;
    let kind = (ETHERTYPE_IPV6, SecondV6::LENGTH);
    prepend(packet, ip, way, kind, |inner| {
        let (source, destination) = backend.ends_v6(hash);
        GueOverIpv6::encapsulating(inner, source, destination, backend.port(), hash)
    })
}

/// Names a second owner in a frame that is ready to leave in GUE, behind tags as [`Tags`] counts them. Where a driver
/// leaves no headroom for that, the frame stays what it is: it may be right where it goes.
///
/// For rare packets only, so it takes from [`encapsulate`] nothing but the frame.
#[inline(never)]
pub fn name_second(context: *mut xdp_md, tags: u32, index: u32) {
    let mut packet = Packet::of::<false>(context);
    if let Some((address, port)) = backend::name(index) {
        let named = match Tags::of(tags) {
            Tags::None => insert::<EthernetHeader>(&mut packet, address, port),
            Tags::One => insert::<TaggedHeader>(&mut packet, address, port),
            Tags::Two => insert::<DoubleTaggedHeader>(&mut packet, address, port),
        };
        if named.is_some() {
            trace::second(index);
        }
    }
}

/// Puts the name behind the GUE header, which follows link header `L`.
#[inline(always)]
fn insert<L: Header + LinkHeader>(packet: &mut Packet, address: Address, port: u16) -> Option<()> {
    let mut link: L = packet.read(0)?;
    // The second's entry may have become another's since it was chosen, or nobody's.
    if (*link.ethertype() == ETHERTYPE_IPV4) != address.is_v4() {
        return None;
    }
    // The frame grows before it is written to: after that no write can fail.
    if address.is_v4() {
        let outer: GueOverIpv4 = packet.read(L::LENGTH)?;
        packet.move_head(-(SecondV4::LENGTH as i32))?;
        packet.write(0, link)?;
        packet.write(L::LENGTH, outer.with_second())?;
        let second = SecondV4::new(address.v4_word(), port);
        packet.write(L::LENGTH + GueOverIpv4::LENGTH, second)
    } else {
        let outer: GueOverIpv6 = packet.read(L::LENGTH)?;
        packet.move_head(-(SecondV6::LENGTH as i32))?;
        packet.write(0, link)?;
        packet.write(L::LENGTH, outer.with_second())?;
        packet.write(
            L::LENGTH + GueOverIpv6::LENGTH,
            SecondV6::new(address, port),
        )
    }
}
