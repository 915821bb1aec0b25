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

/// The fields of a flow that its service has hashed, as masks: the others count as 0. Arithmetic alone, so that the program
/// has no branch for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// All bits or none of the source port.
    source_port: u16,
    /// All bits or none of each word of the destination's address, its port and the protocol.
    others: u32,
}

impl Hashed {
    /// What the flags of a service's entry ask for.
    #[inline(always)]
    pub const fn by(flags: u32) -> Self {
        // A bit for each mask: of what needs both, the compiler makes a branch.
        let others = flags / ServiceEntry::HASH_SOURCE_PORT & 1;
        let source_port = flags & (ServiceEntry::HASH_SOURCE ^ ServiceEntry::HASH_SOURCE_PORT);
        Self {
            source_port: source_port.wrapping_sub(1) as u16,
            others: others.wrapping_sub(1),
        }
    }
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

    /// The same with fields that are not hashed set to 0.
    #[inline(always)]
    pub const fn only(self, hashed: Hashed) -> Self {
        Self {
            source: self.source,
            destination: self.destination & hashed.others,
            source_port: self.source_port & hashed.source_port,
            destination_port: self.destination_port & hashed.others as u16,
            protocol: self.protocol & hashed.others,
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

    /// The same with fields that are not hashed set to 0.
    #[inline(always)]
    pub const fn only(self, hashed: Hashed) -> Self {
        let Address([a, b, c, d]) = self.destination;
        let mask = hashed.others;
        Self {
            source: self.source,
            destination: Address([a & mask, b & mask, c & mask, d & mask]),
            source_port: self.source_port & hashed.source_port,
            destination_port: self.destination_port & mask as u16,
            protocol: self.protocol & mask,
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
    fn only_what_a_service_asks_for_is_hashed() {
        let ports = |source, destination| Ports {
            source,
            destination,
        };
        let v4 = FlowV4::new(1, 2, ports(3, 4), 6);
        let v6 = FlowV6::new(Address([1, 2, 3, 4]), Address([5, 6, 7, 8]), ports(3, 4), 6);
        let all = Hashed::by(ServiceEntry::QUIC | ServiceEntry::ECHO);
        assert_eq!((v4.only(all), v6.only(all)), (v4, v6));
        let source = Hashed::by(ServiceEntry::HASH_SOURCE);
        assert_eq!(v4.only(source), FlowV4::new(1, 0, ports(0, 0), 0));
        let none = Address::default();
        let expected = FlowV6::new(Address([1, 2, 3, 4]), none, ports(0, 0), 0);
        assert_eq!(v6.only(source), expected);
        let port = Hashed::by(ServiceEntry::HASH_SOURCE_PORT);
        assert_eq!(v4.only(port), FlowV4::new(1, 0, ports(3, 0), 0));
        let expected = FlowV6::new(Address([1, 2, 3, 4]), none, ports(3, 0), 0);
        assert_eq!(v6.only(port), expected);
    }
}
