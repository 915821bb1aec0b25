//! What the XDP program knows of a backend.

use crate::{address::Address, header::Mac};

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
/// **Invariant.** While a slot can name an index, only `next_hop`, `interface`, `mtu`, `flags` and `outer_source` of its entry
/// change; address and mode never do: another address is another index, or the same index with a new `generation`
/// after no slot named it.
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
    /// Always 0.
    pub zero2: u16,
    /// Hash of (service, backend name, address, mode): lets a new daemon find the index of a backend again.
    pub id: u64,
}

impl BackendEntry {
    /// In `flags`: the flows of this backend are given up, and flow-table entries that name it count for nothing. A
    /// slot that still names it is followed.
    pub const LOST: u8 = 1;
    /// In `flags`: `outer_source` is a prefix (IPv4 /16, IPv6 /96) whose other bits are the flow's. For mode `ipip` alone.
    pub const ENTROPY: u8 = 2;

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
