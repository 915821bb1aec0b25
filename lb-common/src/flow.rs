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
        let bytes: [u8; 40] = unsafe { core::mem::transmute(self) };
        xxh64(&bytes, seed)
    }
}

/// Slot of a flow hash: its low 32 bits modulo [`SLOTS`].
///
/// With M = 2^16 + 1, 2^16 is -1 modulo M, so hi * 2^16 + lo is lo - hi: a subtraction instead of a division.
#[inline(always)]
pub const fn slot_of(hash: u64) -> u32 {
    let low = hash as u32 & 0xffff;
    let high = hash as u32 >> 16;
    if low >= high {
        low - high
    } else {
        low + SLOTS - high
    }
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
