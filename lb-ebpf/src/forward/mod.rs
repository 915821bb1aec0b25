//! The last stage: rewrites or encapsulates the packet.
//!
//! **Invariant.** A frame is changed only when nothing can fail any more.

mod gue;
mod ipip;
mod l2;
mod outer;

pub use gue::name_second;

use crate::{
    backend::Backend,
    exit::{self, Exit},
    parse::Ip,
};
use lb_common::{backend::Mode, verdict::Verdict};
use lb_ebpf::packet::Packet;

/// Makes the frame one for `backend`, ready to leave by the exit that is returned.
#[inline(always)]
pub fn send(packet: &mut Packet, ip: &Ip, hash: u64, backend: &Backend) -> Result<Exit, Verdict> {
    let exit = exit::find(packet.interface(), backend.interface)?;
    match backend.mode {
        Mode::L2 => l2::rewrite(packet, ip, backend, exit)?,
        Mode::Ipip => ipip::encapsulate(packet, ip, hash, backend, exit)?,
        Mode::Gue => gue::encapsulate(packet, ip, hash, backend, exit)?,
    }
    Ok(exit)
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
