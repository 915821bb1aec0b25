//! How large a packet may be: the one place that knows what each forwarding mode adds to it.

use crate::{
    backend::Mode,
    header::{Ipv4Header, Ipv6Header},
};

/// Bytes of UDP and of GUE's base header (draft-ietf-intarea-gue-09).
const GUE: u16 = 8 + 4;
/// Bytes of a word and of an address: what names a second owner ([`crate::gue::SecondV4`]). Most packets lack it, but any
/// packet may get it, so that what a flow may send does not depend on the moment.
const SECOND_V4: u16 = 4 + 4;
/// See [`SECOND_V4`].
const SECOND_V6: u16 = 4 + 16;

/// Largest IP packet that a way may take, in bytes. The lower byte of a length is the highest of the first word of an IPv4 header, as a
/// little-endian machine reads it; up to this length the sum of all words of a header fits in 32 bits, and its checksum is had at less.
/// No network card takes as much.
pub const LARGEST: u16 = 0xbbff;

/// Most bytes that a mode puts before a packet, the outer IP header being IPv4's or IPv6's. Link headers do not count.
#[inline(always)]
pub const fn overhead(mode: Mode, outer_is_v4: bool) -> u16 {
    let outer = if outer_is_v4 {
        size_of::<Ipv4Header>() as u16
    } else {
        size_of::<Ipv6Header>() as u16
    };
    match mode {
        Mode::L2 => 0,
        Mode::Ipip => outer,
        Mode::Gue if outer_is_v4 => outer + GUE + SECOND_V4,
        Mode::Gue => outer + GUE + SECOND_V6,
    }
}

/// Largest IP packet, in bytes, that fits in `mtu` bytes once the mode has put its headers before it.
#[inline(always)]
pub const fn inner(mtu: u16, mode: Mode, outer_is_v4: bool) -> u16 {
    mtu.saturating_sub(overhead(mode, outer_is_v4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mode_leaves_what_its_headers_do_not_take() {
        for (mode, v4, v6) in [
            (Mode::L2, 1_500, 1_500),
            (Mode::Ipip, 1_480, 1_460),
            (Mode::Gue, 1_460, 1_428),
        ] {
            assert_eq!(inner(1_500, mode, true), v4, "{mode:?}");
            assert_eq!(inner(1_500, mode, false), v6, "{mode:?}");
        }
        assert_eq!(inner(30, Mode::Gue, true), 0);
    }
}
