//! What became of a packet so far, in one word: a function that is called and not inlined can return no more.

use aya_ebpf::bindings::xdp_action;
use lb_common::verdict::Verdict;

/// A verdict in the low half; in the high one what is to be done about it.
#[derive(Clone, Copy)]
pub struct Outcome(u32);

/// In the high half, beside [`Verdict::PassNotTcpUdp`]: it may be a ping.
const PERHAPS_PING: u32 = 1;

impl Outcome {
    /// The outcome that [`Outcome::word`] gave.
    #[inline(always)]
    pub const fn of(word: u32) -> Self {
        Self(word)
    }

    /// As it is returned.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// It is sent on, if XDP does this.
    #[inline(always)]
    pub const fn forwarded(action: xdp_action::Type) -> Self {
        Self(Verdict::Forwarded as u32 | action << 16)
    }

    /// Its sender may be told that only `mtu` bytes fit.
    #[inline(always)]
    pub fn too_big(mtu: u16) -> Self {
        Self(Verdict::DropTooBig as u32 | u32::from(mtu) << 16)
    }

    /// It may be answered if it is a ping.
    #[inline(always)]
    pub fn perhaps_ping() -> Self {
        Self(Verdict::PassNotTcpUdp as u32 | PERHAPS_PING << 16)
    }

    /// Its verdict.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        Verdict::from_number(self.0 & 0xffff)
    }

    /// What XDP is to do with it if it is forwarded.
    #[inline(always)]
    pub const fn exit(self) -> xdp_action::Type {
        self.0 >> 16
    }

    /// The size that fits, if that is what it is about.
    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether there may be something to answer.
    #[inline(always)]
    pub fn is_answerable(self) -> bool {
        match self.verdict() {
            Verdict::DropTooBig | Verdict::PassNotTcpUdp => self.0 >> 16 != 0,
            _ => false,
        }
    }
}

impl From<Verdict> for Outcome {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self(verdict as u32)
    }
}
