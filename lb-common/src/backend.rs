//! What the XDP program knows of a backend.

use crate::{
    address::Address,
    checksum,
    header::{EndsV4, Mac},
};

/// Forwarding mode of a backend entry: how a packet is sent to it.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mode {
    /// Destination MAC rewritten; the backend is on the same L2 segment and has the VIP on `lo`.
    L2 = 1,
    /// IP in IP: RFC 2003 (4in4), RFC 2473 (6in6, 4in6), RFC 4213 (6in4).
    Ipip = 2,
    /// UDP with a GUE header (draft-ietf-intarea-gue-09, version 0).
    Gue = 3,
}

impl Mode {
    /// The mode with this number in a map.
    #[inline(always)]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::L2),
            2 => Some(Self::Ipip),
            3 => Some(Self::Gue),
            _ => None,
        }
    }
}

/// Where a backend's packets leave, written and read as one aligned word so that a change of next hop is never seen
/// half done: bytes 0-5 are the destination MAC, bytes 6-7 are zero. All zero: not resolved.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Destination MAC.
    pub mac: [u8; 6],
    /// Always 0.
    pub zero: u16,
}

impl NextHop {
    /// A resolved next hop.
    pub const fn new(mac: [u8; 6]) -> Self {
        Self { mac, zero: 0 }
    }

    /// The MAC in an entry's first word, which is read as a whole, as it is written to a frame.
    #[inline(always)]
    pub const fn words_of(word: u64) -> Mac {
        // SAFETY: both are eight bytes, and valid for every bit pattern.
        let [first, second, third, _]: [u16; 4] = unsafe { core::mem::transmute(word) };
        [first, second, third]
    }

    /// The MAC as it is written to a frame.
    #[inline(always)]
    pub const fn words(&self) -> Mac {
        let [a, b, c, d, e, f] = self.mac;
        [
            u16::from_ne_bytes([a, b]),
            u16::from_ne_bytes([c, d]),
            u16::from_ne_bytes([e, f]),
        ]
    }

    /// All of it as a word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        let Self { mac, zero: _ } = self;
        let [a, b, c, d, e, f] = mac;
        u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])
    }

    /// Whether the MAC is known.
    #[inline(always)]
    pub fn is_resolved(&self) -> bool {
        self.mac != [0; 6]
    }
}

/// One entry of the backends array, one cache line.
///
/// **Invariant.** While a slot can name an index, only `next_hop`, `interface`, `mtu`, `flags`, `outer_source` and `sum` of its
/// entry change; address and mode never do: another address is another index, or the same index with a new `generation`
/// after no slot named it. Whoever reads the entry while it changes may get an outer source and a sum that do not belong together.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendEntry {
    /// MAC of the next hop.
    pub next_hop: NextHop,
    /// Address of the backend; the outer destination of an encapsulated packet.
    pub address: Address,
    /// Outer source of an encapsulated packet, of the same family as `address`.
    pub outer_source: Address,
    /// Interface index behind which the next hop is. Packets that came in elsewhere are redirected to it.
    pub interface: u32,
    /// Largest IP packet, outer header included, that the way to the backend takes, in bytes.
    pub mtu: u16,
    /// A [`Mode`]; 0 in an unused entry.
    pub mode: u8,
    /// [`BackendEntry::LOST`] and [`BackendEntry::ENTROPY`], or 0.
    pub flags: u8,
    /// Counts the uses of this index; a flow-table entry of an earlier use does not match.
    pub generation: u32,
    /// Outer destination port of mode `gue` in network byte order; 0 in other modes.
    pub port: u16,
    /// Once the entry is in the map ([`BackendEntry::sealed`]) the sum of the 16-bit words of `outer_source` and `address`, if both are
    /// IPv4 and the same for all packets; else 0.
    pub sum: u16,
    /// Hash of (service, backend name, address, mode): lets a new daemon find the index of a backend again.
    pub id: u64,
}

impl BackendEntry {
    /// In `flags`: the flows of this backend are given up, and flow-table entries that name it count for nothing. A
    /// slot that still names it is followed.
    pub const LOST: u8 = 1;
    /// In `flags`: `outer_source` is a prefix (IPv4 /16, IPv6 /96) whose other bits are the flow's. For mode `ipip` alone.
    pub const ENTROPY: u8 = 2;

    /// The entry as it lies in the map, with what the program need not calculate for each packet.
    #[must_use]
    pub const fn sealed(self) -> Self {
        let sum = self.sum_of_ends();
        Self { sum, ..self }
    }

    /// The entry before it was [`BackendEntry::sealed`].
    #[must_use]
    pub const fn unsealed(self) -> Self {
        Self { sum: 0, ..self }
    }

    /// The sum of the 16-bit words of outer source and destination, as in a checksum (RFC 1071), if both are IPv4 and the same for all
    /// packets, and then not 0; else 0.
    const fn sum_of_ends(&self) -> u16 {
        let (source, destination) = (&self.outer_source, &self.address);
        let is_entropic = self.mode == Mode::Ipip as u8 && self.flags & Self::ENTROPY != 0;
        if !source.is_v4() || !destination.is_v4() || is_entropic {
            return 0;
        }
        !checksum::finish(EndsV4::new(source.v4_word(), destination.v4_word()).sum)
    }

    /// The same entry with or without [`BackendEntry::LOST`].
    #[must_use]
    pub const fn with_lost(self, lost: bool) -> Self {
        let others = self.flags & !Self::LOST;
        let flags = if lost { others | Self::LOST } else { others };
        Self { flags, ..self }
    }

    /// The outer source of a flow's packets under [`BackendEntry::ENTROPY`]: the prefix, in network order, filled with bits of the
    /// flow's hash that its slot does not depend on, so that all flows of a backend differ.
    #[inline(always)]
    pub const fn entropic_v4(prefix: u32, flow_hash: u64) -> u32 {
        prefix | ((flow_hash >> 32) as u32 & 0xffff).to_be()
    }

    /// As [`BackendEntry::entropic_v4`].
    #[inline(always)]
    pub const fn entropic_v6(Address([a, b, c, d]): Address, flow_hash: u64) -> Address {
        Address([a, b, c, d | ((flow_hash >> 32) as u32).to_be()])
    }
}

const _: () = assert!(size_of::<NextHop>() == 8);
const _: () = assert!(size_of::<BackendEntry>() == 64);
const _: () = assert!(core::mem::offset_of!(BackendEntry, id) + 8 == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn ends_that_are_ipv4_and_do_not_change_have_a_sum() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let entry = |mode: Mode, source: &str, destination: &str| BackendEntry {
            mode: mode as u8,
            outer_source: address(source),
            address: address(destination),
            ..BackendEntry::default()
        };
        let plain = entry(Mode::Ipip, "10.0.0.1", "192.0.2.255");
        // The words 0a00, 0001, c000 and 02ff.
        let sum = 0xcd00_u16.to_be();
        assert_eq!(plain.sealed().sum, sum);
        assert_eq!(plain.sealed().unsealed(), plain);
        let carried = entry(Mode::Ipip, "255.255.0.1", "255.255.255.255");
        assert_eq!(carried.sealed().sum, 1_u16.to_be());
        let flags = BackendEntry::ENTROPY;
        assert_eq!(BackendEntry { flags, ..plain }.sealed().sum, 0);
        let gue = entry(Mode::Gue, "10.0.0.1", "192.0.2.255");
        assert_eq!(BackendEntry { flags, ..gue }.sealed().sum, sum);
        for (source, destination) in [
            ("2001:db8::1", "2001:db8::2"),
            ("2001:db8::1", "10.0.0.2"),
            ("10.0.0.1", "2001:db8::2"),
        ] {
            assert_eq!(entry(Mode::Ipip, source, destination).sealed().sum, 0);
        }
    }
}
