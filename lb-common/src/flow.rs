//! From a packet's 5-tuple to its slot.

use crate::{address::Address, header::Ports, limits::SLOTS, service::ServiceEntry};
use xxhash_rust::xxh64::xxh64;

/// The 5-tuple of an IPv4 flow, fields in network byte order, as hashed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowV4 {
    /// Source address.
    pub source: u32,
    /// Destination address (the VIP).
    pub destination: u32,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number, widened, in network byte order.
    pub protocol: u32,
}

/// The 5-tuple of an IPv6 flow, fields in network byte order, as hashed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowV6 {
    /// Source address.
    pub source: Address,
    /// Destination address (the VIP).
    pub destination: Address,
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number, widened, in network byte order.
    pub protocol: u32,
}

const _: () = assert!(size_of::<FlowV4>() == 16);
const _: () = assert!(size_of::<FlowV6>() == 40);

/// A client: what services hash that send all its flows to one backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub source: Address,
    /// Its port in network byte order, widened as it lies there; 0 if that is not hashed.
    pub port: u32,
}

const _: () = assert!(size_of::<Client>() == 20);

impl Client {
    /// What the flags of a service's entry ask for of a client.
    #[inline(always)]
    pub const fn of(source: Address, port: u16, flags: u32) -> Self {
        let is_port_hashed = flags & ServiceEntry::HASH_SOURCE_PORT != 0;
        let port = if is_port_hashed { port as u32 } else { 0 };
        Self { source, port }
    }

    /// Seeded xxHash64 of it.
    #[inline(always)]
    pub fn hash(self, seed: u64) -> u64 {
        // SAFETY: a Client is 20 bytes without padding, so every byte is initialised.
        let bytes: [u8; 20] = unsafe { core::mem::transmute(self) };
        xxh64(&bytes, seed)
    }
}

/// A flow's hash with the slot of its client: the low 32 bits, which choose the slot, are the client's, and the others, the
/// entropy of outer headers, the flow's own.
#[inline(always)]
pub const fn with_slot_of(flow: u64, client: u64) -> u64 {
    flow >> 32 << 32 | client & 0xffff_ffff
}

impl FlowV4 {
    /// The flow of a packet; addresses in network byte order.
    #[inline(always)]
    pub const fn new(source: u32, destination: u32, ports: Ports, protocol: u8) -> Self {
        let protocol = (protocol as u32).to_be();
        Self {
            source,
            destination,
            source_port: ports.source,
            destination_port: ports.destination,
            protocol,
        }
    }

    /// Seeded xxHash64 of the tuple.
    #[inline(always)]
    pub fn hash(self, seed: u64) -> u64 {
        // SAFETY: FlowV4 is 16 bytes without padding, so every byte is initialised.
        let bytes: [u8; 16] = unsafe { core::mem::transmute(self) };
        xxh64(&bytes, seed)
    }
}

impl FlowV6 {
    /// The flow of a packet.
    #[inline(always)]
    pub const fn new(source: Address, destination: Address, ports: Ports, protocol: u8) -> Self {
        let protocol = (protocol as u32).to_be();
        Self {
            source,
            destination,
            source_port: ports.source,
            destination_port: ports.destination,
            protocol,
        }
    }

    /// Seeded xxHash64 of the tuple.
    #[inline(always)]
    pub fn hash(self, seed: u64) -> u64 {
        // SAFETY: FlowV6 is 40 bytes without padding, so every byte is initialised.
        let words: [u64; 5] = unsafe { core::mem::transmute(self) };
        xxh64_of_five(words.map(u64::to_le), seed)
    }
}

/// xxHash64 (its specification's section "XXH64 Algorithm Description") of 40 bytes in five words. The library does not inline it for
/// more than 32 bytes: the words would go through memory, and a loop.
#[inline(always)]
pub(crate) const fn xxh64_of_five([a, b, c, d, e]: [u64; 5], seed: u64) -> u64 {
    const P1: u64 = 0x9e37_79b1_85eb_ca87;
    const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
    const P3: u64 = 0x1656_67b1_9e37_79f9;
    const P4: u64 = 0x85eb_ca77_c2b2_ae63;
    const fn round(lane: u64, word: u64) -> u64 {
        lane.wrapping_add(word.wrapping_mul(P2))
            .rotate_left(31)
            .wrapping_mul(P1)
    }
    const fn merge(hash: u64, lane: u64) -> u64 {
        (hash ^ round(0, lane)).wrapping_mul(P1).wrapping_add(P4)
    }
    let a = round(seed.wrapping_add(P1).wrapping_add(P2), a);
    let b = round(seed.wrapping_add(P2), b);
    let c = round(seed, c);
    let d = round(seed.wrapping_sub(P1), d);
    let sum = a.rotate_left(1).wrapping_add(b.rotate_left(7));
    let sum = sum.wrapping_add(c.rotate_left(12));
    let sum = sum.wrapping_add(d.rotate_left(18));
    let merged = merge(merge(merge(merge(sum, a), b), c), d);
    let hash = merged.wrapping_add(5 * 8) ^ round(0, e);
    let hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    let hash = (hash ^ hash >> 33).wrapping_mul(P2);
    let hash = (hash ^ hash >> 29).wrapping_mul(P3);
    hash ^ hash >> 32
}

/// Slot of a flow hash: its low 32 bits modulo [`SLOTS`].
///
/// With M = 2^16 + 1, 2^16 is -1 modulo M, so hi * 2^16 + lo is lo - hi: a subtraction instead of a division.
#[inline(always)]
pub const fn slot_of(hash: u64) -> u32 {
    let low = (hash & 0xffff) as i64;
    let high = (hash >> 16 & 0xffff) as i64;
    let slot = low - high;
    // No branch: it would go either way as often.
    (slot + (slot >> 63 & SLOTS as i64)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subtraction_is_the_modulo() {
        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        for edge in [
            0,
            1,
            0xffff,
            0x1_0000,
            0x1_0001,
            0xffff_0000,
            0xffff_ffff,
            u64::MAX,
        ] {
            assert_eq!(slot_of(edge), edge as u32 % SLOTS);
        }
        for _ in 0..100_000 {
            x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            assert_eq!(slot_of(x >> 16), (x >> 16) as u32 % SLOTS);
        }
    }

    #[test]
    fn every_field_and_the_seed_change_the_hash() {
        let flow = FlowV4 {
            source: 1,
            destination: 2,
            source_port: 3,
            destination_port: 4,
            protocol: 6,
        };
        let variants = [
            flow,
            FlowV4 { source: 9, ..flow },
            FlowV4 {
                destination: 9,
                ..flow
            },
            FlowV4 {
                source_port: 9,
                ..flow
            },
            FlowV4 {
                destination_port: 9,
                ..flow
            },
            FlowV4 {
                protocol: 17,
                ..flow
            },
        ];
        let mut hashes: Vec<u64> = variants
            .iter()
            .map(|f| f.hash(7))
            .chain([flow.hash(8)])
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 7);
    }

    #[test]
    fn the_hash_of_five_words_is_the_librarys() {
        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            x = x.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            x ^ x >> 29
        };
        for _ in 0..10_000 {
            let (words, seed) = ([(); 5].map(|()| next()), next());
            let mut bytes = [0; 40];
            for (eight, word) in bytes.chunks_exact_mut(8).zip(words) {
                eight.copy_from_slice(&word.to_le_bytes());
            }
            assert_eq!(xxh64_of_five(words, seed), xxh64(&bytes, seed));
        }
    }

    #[test]
    fn a_clients_flows_have_one_slot_and_an_entropy_of_their_own() {
        let source = Address([1, 2, 3, 4]);
        let of = |port, flags| Client::of(source, port, flags).hash(7);
        let (ip, port) = (ServiceEntry::HASH_SOURCE, ServiceEntry::HASH_SOURCE_PORT);
        assert_eq!(of(1, ip), of(2, ip));
        assert_ne!(of(1, port), of(2, port));
        assert_ne!(of(1, port), of(1, ip));
        let other = Client::of(Address([1, 2, 3, 5]), 1, ip).hash(7);
        assert_ne!(of(1, ip), other);
        let mixed = with_slot_of(0x1234_5678_9abc_def0, 0x1111_2222_3333_4444);
        assert_eq!(mixed, 0x1234_5678_3333_4444);
    }
}
