//! The last stage: rewrites or encapsulates the packet.
//!
//! **Invariant.** A frame is changed only when nothing can fail any more.

mod gue;
mod ipip;
mod l2;
mod outer;

pub use gue::name_second;

use crate::{backend::Backend, exit, parse::Ip};
use aya_ebpf::bindings::xdp_action;
use lb_common::{backend::Mode, header::Mac, verdict::Verdict};
use lb_ebpf::packet::Packet;

/// Bytes of a MAC address: the source's is behind the destination's.
const MAC_LENGTH: usize = size_of::<Mac>();

/// Makes the frame one for `backend`, ready to leave as XDP is then told.
#[inline(always)]
pub fn send(
    packet: &mut Packet,
    ip: &Ip,
    hash: u64,
    backend: &Backend,
) -> Result<xdp_action::Type, Verdict> {
    let mode = backend.mode().ok_or(Verdict::DropBadState)?;
    let exit = exit::find(packet.interface(), backend.interface)?;
    match mode {
        Mode::L2 => l2::rewrite(packet, ip, backend)?,
        Mode::Ipip => ipip::encapsulate(packet, ip, hash, backend)?,
        Mode::Gue => gue::encapsulate(packet, ip, hash, backend)?,
    }
    let Some(own) = exit.own() else {
        return Ok(xdp_action::XDP_TX);
    };
    // The frame has been written to just here, so this cannot fail.
    match packet.write(MAC_LENGTH, own) {
        Some(()) => Ok(xdp_action::XDP_REDIRECT),
        None => Err(Verdict::DropBadState),
    }
}

/// Refuses what the way to the backend does not take: an IP packet of `length` bytes, all outer headers that it may get
/// included.
#[inline(always)]
fn check_size(length: usize, backend: &Backend) -> Result<(), Verdict> {
    if length > usize::from(backend.mtu()) {
        Err(Verdict::DropTooBig)
    } else {
        Ok(())
    }
}
