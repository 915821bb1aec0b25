//! The contract between the decapsulator of a backend (`lb-ebpf`, bin `decap`) and what attaches it, and the rules of its
//! own that can be tested without a kernel.

use crate::header::Ipv4Header;

/// Its XDP program.
pub const XDP_PROGRAM: &str = "decap";
/// Its program for traffic control, ingress.
pub const TC_PROGRAM: &str = "decap_tc";
/// Hash map of [`LocalKey`] -> `u8` (no meaning): addresses that the checks ask for.
pub const ADDRESSES: &str = "DECAP_ADDRESSES";
/// Longest-prefix map of the balancers' addresses, 16 bytes as in [`crate::address::Address`], -> `u8` (no meaning).
pub const SOURCES: &str = "DECAP_SOURCES";
/// Per-CPU array of `u64` packet counts, indexed by [`Reason`].
pub const COUNTS: &str = "DECAP_COUNTS";
/// All its maps.
pub const MAPS: [&str; 3] = [ADDRESSES, SOURCES, COUNTS];
/// Load-time constant `u32`: which checks are made, `CHECK_*`, and [`SECOND_CHANCE`]; 0 unless set.
pub const CHECKS: &str = "DECAP_CHECKS";
/// Load-time constant `u16`, host order: UDP port of GUE; [`crate::gue::DEFAULT_PORT`] unless set.
pub const PORT: &str = "DECAP_PORT";

/// Most addresses, and most prefixes, that can be asked for.
pub const MAX_ADDRESSES: u32 = 4_096;

/// In [`CHECKS`]: the outer source is one of [`SOURCES`].
pub const CHECK_SOURCE: u32 = 1;
/// In [`CHECKS`]: the outer destination is one of [`ADDRESSES`] under [`OF_HOST`].
pub const CHECK_HOST: u32 = 2;
/// In [`CHECKS`]: the inner destination is one of [`ADDRESSES`] under [`OF_SERVICE`].
pub const CHECK_VIP: u32 = 4;

/// In [`CHECKS`]: a packet that names a second owner ([`crate::gue`]) is handed on to it if this host has no socket for it.
pub const SECOND_CHANCE: u32 = 8;

/// In [`LocalKey::kind`]: an address of this host.
pub const OF_HOST: u32 = 1;
/// In [`LocalKey::kind`]: a VIP.
pub const OF_SERVICE: u32 = 2;

/// Key of [`ADDRESSES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalKey {
    /// The address.
    pub address: crate::address::Address,
    /// [`OF_HOST`] or [`OF_SERVICE`].
    pub kind: u32,
}

const _: () = assert!(size_of::<LocalKey>() == 20);

/// What became of a packet; its number is its index in [`COUNTS`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// IP in IP, decapsulated.
    Ipip = 0,
    /// GUE, decapsulated.
    Gue = 1,
    /// Passed: no tunnel's.
    NotTunnelled = 2,
    /// Passed: a tunnel's, but its end is not this host.
    OtherHost = 3,
    /// Passed: a tunnel's, but not from a balancer.
    OtherSource = 4,
    /// Passed: for an address that is no VIP.
    NotVip = 5,
    /// Passed: a tunnel's, but not whole: outer options or fragments, lengths that lie, another version of GUE.
    Malformed = 6,
    /// Dropped: congestion was marked on the way, and its ends cannot be told (RFC 6040, section 4.2).
    Congested = 7,
    /// Dropped: the kernel could not take the outer header away.
    Failed = 8,
    /// GUE that names a second owner, decapsulated: the packet is for this host.
    Kept = 9,
    /// GUE that names a second owner, sent to that one.
    HandedOn = 10,
}

impl Reason {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::Ipip,
        Self::Gue,
        Self::NotTunnelled,
        Self::OtherHost,
        Self::OtherSource,
        Self::NotVip,
        Self::Malformed,
        Self::Congested,
        Self::Failed,
        Self::Kept,
        Self::HandedOn,
    ];

    /// Stable name, as in `lbctl backend-kit status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "decapsulated_ipip",
            Self::Gue => "decapsulated_gue",
            Self::NotTunnelled => "pass_not_tunnelled",
            Self::OtherHost => "pass_other_host",
            Self::OtherSource => "pass_other_source",
            Self::NotVip => "pass_not_vip",
            Self::Malformed => "pass_malformed",
            Self::Congested => "drop_congested",
            Self::Failed => "drop_failed",
            Self::Kept => "second_chance_kept",
            Self::HandedOn => "second_chance_handed_on",
        }
    }
}

/// The ECN field of a packet out of a tunnel, from that of its outer and its inner header (RFC 6040, section 4.2); `None`
/// where the packet must be dropped.
#[inline(always)]
pub const fn ecn(outer: u8, inner: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (outer & 3, inner & 3) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, ECT_0) => Some(ECT_1),
        (_, inner) => Some(inner),
    }
}

/// The header with another traffic class, and its checksum brought up to date (RFC 1624, equation 3), so that
/// options and errors stay what they are.
#[inline(always)]
pub fn with_traffic_class(header: Ipv4Header, traffic_class: u8) -> Ipv4Header {
    let word = |class: u8| u32::from(u16::from_ne_bytes([header.version_ihl, class]));
    let sum =
        u32::from(!header.checksum) + (!word(header.traffic_class) & 0xffff) + word(traffic_class);
    Ipv4Header {
        traffic_class,
        checksum: crate::checksum::finish(sum),
        ..header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
    }

    /// The table of RFC 6040, figure 4: rows inner, columns outer, each Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn congestion_is_told_as_rfc_6040_asks() {
        let codes = [0, 2, 1, 3];
        let table = [
            [Some(0), Some(0), Some(0), None],
            [Some(2), Some(2), Some(1), Some(3)],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in codes.into_iter().zip(table) {
            for (outer, expected) in codes.into_iter().zip(row) {
                assert_eq!(ecn(outer, inner), expected, "outer {outer} inner {inner}");
            }
        }
    }

    #[test]
    fn a_changed_class_keeps_the_checksum_right() {
        for class in 0..=255 {
            let mut header = Ipv4Header {
                version_ihl: 0x45,
                traffic_class: 0xb8,
                total_length: 1_400_u16.to_be(),
                id: 7,
                fragment: 0,
                ttl: 63,
                protocol: 6,
                checksum: 0,
                source: 0x0100_000a,
                destination: 0x0200_000a,
            };
            header.checksum = header.sum();
            let changed = with_traffic_class(header, class);
            assert_eq!(
                (changed.traffic_class, changed.checksum),
                (class, changed.sum())
            );
        }
    }
}
