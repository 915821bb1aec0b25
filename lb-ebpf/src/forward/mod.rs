//! The last stage: rewrites or encapsulates the packet.
//!
//! **Invariant.** A frame is changed only when nothing can fail any more.

mod gue;
pub mod ipip;
pub mod l2;
mod outer;

pub use gue::name_second;

use crate::{
    backend::{self, Backend},
    exit,
    outcome::Outcome,
    parse::Tags,
};
use aya_ebpf::bindings::{xdp_action, xdp_md};
use lb_common::{backend::Mode, header::Inner, verdict::Verdict};
use lb_ebpf::packet::{Front, Header, Packet};

/// The IP packet that is sent.
pub trait Passenger {
    /// Bytes from its start that [`Passenger::inner`] reads.
    const READ: usize;

    /// VLAN tags of its frame.
    fn tags(&self) -> Tags;

    /// Its bytes, Ethernet padding not counted.
    fn length(&self) -> u16;

    /// What an outer header has to know of it; it is behind `Before` now.
    fn inner<Before: Header>(&self, front: &Front) -> Option<Inner>;
}

/// An IP packet of which all is known that an outer header needs, in words: functions take no more.
#[derive(Clone, Copy)]
pub struct Described {
    tags: Tags,
    inner: Inner,
}

impl Described {
    /// A packet behind these tags.
    #[inline(always)]
    pub fn new(tags: Tags, inner: Inner) -> Self {
        Self { tags, inner }
    }

    /// From [`Described::words`].
    #[inline(always)]
    fn of(kind: u32, headers: u64) -> Self {
        Self {
            tags: Tags::of(kind >> 8),
            inner: Inner {
                protocol: kind as u8,
                start: headers as u32,
                id_and_flags: (headers >> 32) as u32,
            },
        }
    }

    #[inline(always)]
    fn words(&self) -> (u32, u64) {
        let Self { tags, inner } = self;
        let kind = u32::from(inner.protocol) | (*tags as u32) << 8;
        let headers = u64::from(inner.start) | u64::from(inner.id_and_flags) << 32;
        (kind, headers)
    }
}

impl Passenger for Described {
    const READ: usize = 0;

    #[inline(always)]
    fn tags(&self) -> Tags {
        self.tags
    }

    #[inline(always)]
    fn length(&self) -> u16 {
        self.inner.length()
    }

    #[inline(always)]
    fn inner<Before: Header>(&self, _front: &Front) -> Option<Inner> {
        Some(self.inner)
    }
}

/// Makes the frame one for the backend with index `owner`, ready to leave as the outcome says, or says why not: [`send`] on a stack
/// of its own.
#[inline(always)]
pub fn send_apart(context: *mut xdp_md, ip: &Described, hash: u64, owner: u32) -> Outcome {
    let (kind, headers) = ip.words();
    Outcome::of(forward(
        context,
        u64::from(owner) | u64::from(kind) << 32,
        hash,
        headers,
    ))
}

/// Not a global function to the kernel: without what leads here the verifier would have more to go through.
#[inline(never)]
fn forward(context: *mut xdp_md, owner_and_kind: u64, hash: u64, headers: u64) -> u32 {
    let backend = match backend::get(owner_and_kind as u32) {
        Ok(backend) => backend,
        Err(verdict) => return verdict as u32,
    };
    let ip = Described::of((owner_and_kind >> 32) as u32, headers);
    // Headers are in the first buffer.
    match send(&mut Packet::of::<false>(context), &ip, hash, &backend) {
        Ok(action) => Outcome::forwarded(action).word(),
        Err(Verdict::DropTooBig) => Outcome::too_big(backend.inner_mtu()).word(),
        Err(verdict) => verdict as u32,
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
