//! How a packet finds its service.

use crate::address::Address;

/// Names a service: the key of the services map and, with a `prefix`, of an entry of the map of prefixes. `port` 0 matches any port and is looked up only when the exact port is not found. Protocol 0
/// and port 0: the entry of an address, or of a prefix, that is some service's; its index means nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The VIP, or the first of the VIPs.
    pub address: Address,
    /// Destination port in network byte order; 0 = any port.
    pub port: u16,
    /// IP protocol number: 6 (TCP) or 17 (UDP); 0 in the entry of an address.
    pub protocol: u8,
    /// How many bits of the address count if not all do, IPv4 as `::ffff:a.b.c.d`; 0: all. Always 0 in the services map, whose
    /// keys are compared byte by byte.
    pub prefix: u8,
}

impl ServiceKey {
    /// The key of (`address`, `protocol`, `port`), `port` in host byte order.
    pub const fn new(address: Address, protocol: u8, port: u16) -> Self {
        Self {
            address,
            port: port.to_be(),
            protocol,
            prefix: 0,
        }
    }

    /// The same for all addresses that have the first `prefix` bits of this one, which has no others set.
    pub const fn within(self, prefix: u8) -> Self {
        Self { prefix, ..self }
    }

    /// The key of the entry that says that this key's address or prefix is some service's.
    pub const fn its_address(&self) -> Self {
        Self::of_address(self.address).within(self.prefix)
    }

    /// How the map of prefixes has this key: the bits that count, and the rest; none for a key of the services map.
    pub const fn in_prefixes(&self) -> Option<(u32, PrefixKey)> {
        if self.prefix == 0 {
            return None;
        }
        let key = PrefixKey {
            protocol: self.protocol,
            zero: 0,
            port: self.port,
            address: self.address,
        };
        Some((PrefixKey::FIXED_BITS + self.prefix as u32, key))
    }

    /// The key that the map of prefixes has as this.
    pub const fn of_prefix(bits: u32, key: &PrefixKey) -> Self {
        Self {
            address: key.address,
            port: key.port,
            protocol: key.protocol,
            prefix: bits.saturating_sub(PrefixKey::FIXED_BITS) as u8,
        }
    }

    /// The key of the entry that says that `address` is some service's.
    #[inline(always)]
    pub const fn of_address(address: Address) -> Self {
        Self::new(address, 0, 0)
    }

    /// Whether this is the key of an address, and of no service.
    pub const fn is_of_address(&self) -> bool {
        self.protocol == 0
    }
}

/// Key of the map of prefixes, a trie in which the longest prefix is found, behind the number of bits that count:
/// [`PrefixKey::FIXED_BITS`] and those of the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixKey {
    /// As in [`ServiceKey`].
    pub protocol: u8,
    /// Always 0.
    pub zero: u8,
    /// As in [`ServiceKey`].
    pub port: u16,
    /// As in [`ServiceKey`].
    pub address: Address,
}

impl PrefixKey {
    /// Bits before the address, which always count.
    pub const FIXED_BITS: u32 = 32;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::FIXED_BITS + 128;
}

/// Value of the services map and of the map of prefixes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Index of the service's slot table and counters.
    pub index: u32,
    /// Policy: [`ServiceEntry::HASH_SOURCE`] and the like, or 0.
    pub flags: u32,
}

impl ServiceEntry {
    /// In `flags`: the flow hash takes the source address alone ([`crate::flow::Client`]).
    pub const HASH_SOURCE: u32 = 1;
    /// In `flags`: the flow hash takes the source address and port alone.
    pub const HASH_SOURCE_PORT: u32 = 2;
    /// In `flags`: the bits that say what the flow hash takes.
    pub const HASH: u32 = Self::HASH_SOURCE | Self::HASH_SOURCE_PORT;
    /// In `flags`: packets go where their QUIC connection IDs say; how these are read: [`ServiceEntry::quic_config`].
    pub const QUIC: u32 = 4;
    /// In `flags` of an address's entry (protocol and port 0): echo requests are answered.
    pub const ECHO: u32 = 8;

    /// The flags that tell, in an entry of the map of prefixes, how long its prefix is: the longer of two is found by that.
    pub const fn prefix_flags(prefix: u8) -> u32 {
        (prefix as u32) << 24
    }

    /// Whether its packets go by something else than their flow's hash.
    #[inline(always)]
    pub const fn is_special(self) -> bool {
        self.flags & (Self::HASH | Self::QUIC) != 0
    }

    /// An entry of the map of prefixes in a word, the length of the prefix foremost. No such word is 0.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        (self.flags as u64) << 32 | self.index as u64
    }

    /// The entry of a word.
    #[inline(always)]
    pub const fn of_word(word: u64) -> Self {
        Self {
            index: word as u32,
            flags: (word >> 32) as u32,
        }
    }
}

const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<PrefixKey>() == 20);
const _: () = assert!(size_of::<ServiceEntry>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_survives_the_way_into_its_map() {
        let address = Address::from_v4_word(u32::from_ne_bytes([192, 0, 2, 0]));
        let plain = ServiceKey::new(address, 6, 80);
        assert_eq!(plain.in_prefixes(), None);
        let key = plain.within(120);
        let (bits, inner) = key.in_prefixes().unwrap();
        assert_eq!(bits, 152);
        assert_eq!(ServiceKey::of_prefix(bits, &inner), key);
        let whole = key.its_address();
        assert!(whole.is_of_address() && whole.prefix == 120);
        let entry = ServiceEntry {
            index: 9,
            flags: ServiceEntry::ECHO | ServiceEntry::prefix_flags(120),
        };
        assert_eq!(ServiceEntry::of_word(entry.word()), entry);
        assert_eq!(entry.word() >> 56, 120);
    }
}
