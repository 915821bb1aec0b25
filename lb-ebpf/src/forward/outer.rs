//! Putting an outer header before a packet, whichever it is.

use super::{Passenger, check_size};
use crate::{backend::Backend, exit::Exit, parse::Tags};
use aya_ebpf::bindings::xdp_action;
use lb_common::{
    header::{DoubleTaggedHeader, EthernetHeader, Inner, LinkHeader, TaggedHeader},
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet, Pair};

/// Refuses what is too large with `reserved` bytes and the new headers before it, and puts these there: an `outer` one, whose payload
/// is of this EtherType, and the link header. A frame that goes back where it came from leaves from the address that it was sent to.
#[inline(always)]
pub fn prepend<P: Passenger, T: Header>(
    packet: &mut Packet,
    ip: &P,
    (backend, exit): (&Backend, Exit),
    (ethertype, reserved): (u16, usize),
    outer: impl FnOnce(&Inner) -> T,
) -> Result<xdp_action::Type, Verdict> {
    let length = usize::from(ip.length());
    check_size(reserved + T::LENGTH + length, backend)?;
    packet
        .move_head(-(T::LENGTH as i32))
        .ok_or(Verdict::DropNoHeadroom)?;
    // The frame has grown by the outer header's length, so this cannot fail; the verifier wants the checks.
    let way = (backend, exit, ethertype);
    match ip.tags() {
        Tags::None => write::<EthernetHeader, P, T>(packet, ip, way, outer),
        Tags::One => write::<TaggedHeader, P, T>(packet, ip, way, outer),
        Tags::Two => write::<DoubleTaggedHeader, P, T>(packet, ip, way, outer),
    }
    .ok_or(Verdict::DropNoHeadroom)
}

/// Writes the outer header, and before it the link header, `L`.
#[inline(always)]
fn write<L: Header + LinkHeader, P: Passenger, T: Header>(
    packet: &mut Packet,
    ip: &P,
    (backend, exit, ethertype): (&Backend, Exit, u16),
    outer: impl FnOnce(&Inner) -> T,
) -> Option<xdp_action::Type> {
    let mut front = packet.front_mut(T::LENGTH + L::LENGTH + P::READ)?;
    let old: L = front.read().read_words::<T, L>()?;
    let new = old.readdressed(backend.next_hop(), old.destination(), ethertype);
    let inner = ip.inner::<Pair<T, L>>(front.read())?;
    front.write_words(Pair(new, outer(&inner)))?;
    exit.leave(&mut front)
}
