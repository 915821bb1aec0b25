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
    exit,
    parse::{Ip, Tags},
};
use aya_ebpf::bindings::xdp_action;
use lb_common::{
    backend::Mode,
    header::{Inner, PROTOCOL_IPV4, PROTOCOL_IPV6},
    verdict::Verdict,
};
use lb_ebpf::packet::{Front, Packet};

/// The IP packet that is sent.
pub trait Passenger {
    /// Bytes from its start that [`Passenger::inner`] reads.
    const READ: usize;

    /// VLAN tags of its frame.
    fn tags(&self) -> Tags;

    /// Its bytes, Ethernet padding not counted.
    fn length(&self) -> u16;

    /// What an outer header has to know of it; it is at `offset` now.
    fn inner(&self, front: &Front, offset: usize) -> Option<Inner>;
}

impl Passenger for Ip {
    const READ: usize = 0;

    #[inline(always)]
    fn tags(&self) -> Tags {
        self.tags
    }

    #[inline(always)]
    fn length(&self) -> u16 {
        self.length
    }

    #[inline(always)]
    fn inner(&self, _front: &Front, _offset: usize) -> Option<Inner> {
        Some(Inner {
            protocol: if self.is_v4 {
                PROTOCOL_IPV4
            } else {
                PROTOCOL_IPV6
            },
            traffic_class: self.traffic_class,
            length: self.length,
            dont_fragment: self.dont_fragment,
            id: self.id,
        })
    }
}

/// Makes the frame one for `backend`, ready to leave as XDP is then told.
#[inline(always)]
pub fn send(
    packet: &mut Packet,
    ip: &impl Passenger,
    hash: u64,
    backend: &Backend,
) -> Result<xdp_action::Type, Verdict> {
    let exit = exit::find(packet.interface(), backend.interface)?;
    match backend.mode().ok_or(Verdict::DropBadState)? {
        Mode::L2 => l2::rewrite(packet, ip, backend, exit),
        Mode::Ipip => ipip::encapsulate(packet, ip, hash, backend, exit),
        Mode::Gue => gue::encapsulate(packet, ip, hash, backend, exit),
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
