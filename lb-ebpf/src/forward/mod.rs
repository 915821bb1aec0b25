//! The last stage: rewrites or encapsulates the packet.
//!
//! **Invariant.** A frame is changed only when nothing can fail any more.

mod ipip;
mod l2;

use crate::{backend::Backend, parse::Ip};
use lb_common::{backend::Mode, header::Mac, verdict::Verdict};
use lb_ebpf::packet::Packet;

/// Makes the frame one for `backend`, ready to leave through the interface it came in on.
#[inline(always)]
pub fn send(packet: &mut Packet, ip: &Ip, hash: u64, backend: &Backend) -> Result<(), Verdict> {
    if backend.interface != packet.interface() {
        return Err(Verdict::DropWrongInterface);
    }
    match backend.mode {
        Mode::L2 => l2::rewrite(packet, ip, backend),
        Mode::Ipip => ipip::encapsulate(packet, ip, hash, backend),
        Mode::Gue => Err(Verdict::DropBadState),
    }
}

/// Refuses what the way to the backend does not take: an IP packet of `length` bytes, outer header included.
#[inline(always)]
fn check_size(length: usize, backend: &Backend) -> Result<(), Verdict> {
    if length > usize::from(backend.mtu) {
        Err(Verdict::DropTooBig)
    } else {
        Ok(())
    }
}

/// The next hop's MAC as it is written to the frame.
#[inline(always)]
fn destination(backend: &Backend) -> Mac {
    let [a, b, c, d, e, f] = backend.next_hop.mac;
    [
        u16::from_ne_bytes([a, b]),
        u16::from_ne_bytes([c, d]),
        u16::from_ne_bytes([e, f]),
    ]
}
