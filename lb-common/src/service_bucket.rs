//! The buckets of the services map: a hash table with linear probing inside one array, which a program reads at a fraction of
//! what a look-up in a hash map of the kernel costs.
//!
//! **Invariants.** Element 0 is no bucket: its `entry` counts what is not found by its exact key alone. Between a key's
//! home and its bucket none is empty. A bucket is written `rest` last, and taken away by writing `rest` alone.

use crate::{
    address::Address,
    service::{ServiceEntry, ServiceKey},
};

/// An element of the services map: half a cache line.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceBucket {
    /// First half of the key's address, as it lies in memory ([`Address::halves`]), if that is IPv6; else 0.
    pub start: u64,
    /// Second half of it.
    pub end: u64,
    /// The rest of the key ([`ServiceBucket::key`]), [`ServiceBucket::EMPTY`] or [`ServiceBucket::REMOVED`].
    pub rest: u64,
    /// The entry's [`ServiceEntry::word`], [`ServiceBucket::FOUND`] and perhaps [`ServiceBucket::SPECIAL`].
    pub entry: u64,
}

const _: () = assert!(size_of::<ServiceBucket>() == 32);

impl ServiceBucket {
    /// In `rest`: the bucket has never had a key; no key that is looked for is behind it.
    pub const EMPTY: u64 = 0;
    /// In `rest`: the bucket has no key any more; the one that is looked for may be behind it.
    pub const REMOVED: u64 = 1 << 25;
    /// In `entry`: no word with it is 0.
    pub const FOUND: u64 = 1 << 62;
    /// In `entry`, and its sign: its packets do not go by their flow's hash alone ([`ServiceEntry::is_special`]).
    pub const SPECIAL: u64 = 1 << 63;
    /// In `rest`: all of the key is there, the four bytes of an IPv4 address in the upper half.
    const IPV4: u64 = 1 << 26;
    /// How many buckets from its home on a key may be in. With a quarter of the buckets in use no key needs near as many.
    pub const PROBES: u32 = 64;

    /// The key of an address, a port in network byte order and a protocol: `start`, `end` and `rest`. The last is neither
    /// [`ServiceBucket::EMPTY`] nor [`ServiceBucket::REMOVED`]; of IPv4 it is the whole key.
    #[inline(always)]
    pub const fn key(address: &Address, port: u16, protocol: u8) -> [u64; 3] {
        let rest = port as u64 | (protocol as u64) << 16 | 1 << 24;
        if address.is_v4() {
            return [0, 0, (address.v4_word() as u64) << 32 | Self::IPV4 | rest];
        }
        let [start, end] = address.halves();
        [start, end, rest]
    }

    /// Whether a bucket with this `rest` has this key; its halves are asked for only if they matter.
    #[inline(always)]
    pub fn is_of([start, end, rest]: [u64; 3], found: u64, halves: impl Fn() -> [u64; 2]) -> bool {
        found == rest && (rest & Self::IPV4 != 0 || halves() == [start, end])
    }

    /// The address in a key.
    #[inline(always)]
    pub const fn address([start, end, rest]: [u64; 3]) -> Address {
        if rest & Self::IPV4 != 0 {
            Address::from_v4_word((rest >> 32) as u32)
        } else {
            Address::of_halves(start, end)
        }
    }

    /// The rest of the key of the same protocol and any port.
    #[inline(always)]
    pub const fn of_any_port(rest: u64) -> u64 {
        rest & !(u16::MAX as u64)
    }

    /// Where a key is at home, before it is cut to the number of buckets: the upper half of a product (Knuth, The Art of Computer
    /// Programming 3, section 6.4, multiplicative hashing).
    #[inline(always)]
    pub const fn home([start, end, rest]: [u64; 3]) -> u32 {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = start.wrapping_mul(GOLDEN) ^ end ^ rest;
        // What is in the upper half counts in the lower one, too: a product's bits know nothing of higher ones.
        let product = (mixed ^ mixed >> 32).wrapping_mul(GOLDEN);
        (product >> 32 ^ product >> 48) as u32
    }

    /// Buckets for this many keys, a power of two: at most a quarter of them is used.
    pub const fn count(keys: u32) -> u32 {
        keys.saturating_mul(4).next_power_of_two()
    }

    /// Keys that this many buckets have room for.
    pub const fn keys(buckets: u32) -> u32 {
        buckets / 4
    }

    /// The bucket of a key that is not of the map of prefixes.
    pub const fn new(key: &ServiceKey, entry: &ServiceEntry) -> Self {
        let [start, end, rest] = Self::key(&key.address, key.port, key.protocol);
        let special = if entry.is_special() { Self::SPECIAL } else { 0 };
        Self {
            start,
            end,
            rest,
            entry: entry.word() | Self::FOUND | special,
        }
    }

    /// The words of its key.
    pub const fn words(&self) -> [u64; 3] {
        [self.start, self.end, self.rest]
    }

    /// Key and entry, if it has any. Up to layout version 6 keys of IPv4 were as those of IPv6, and [`ServiceBucket::FOUND`] was where
    /// [`ServiceBucket::SPECIAL`] is; they are understood.
    pub const fn get(&self) -> Option<(ServiceKey, ServiceEntry)> {
        if self.rest == Self::EMPTY || self.rest == Self::REMOVED {
            return None;
        }
        let key = ServiceKey {
            address: Self::address(self.words()),
            port: self.rest as u16,
            protocol: (self.rest >> 16) as u8,
            prefix: 0,
        };
        let entry = ServiceEntry::of_word(self.entry & !(Self::FOUND | Self::SPECIAL));
        Some((key, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str, protocol: u8, port: u16) -> ServiceKey {
        let address: core::net::IpAddr = address.parse().unwrap();
        ServiceKey::new(address.into(), protocol, port)
    }

    #[test]
    fn a_key_survives_its_bucket() {
        for key in [
            key("192.0.2.1", 6, 443),
            key("2001:db8::1", 17, 0),
            key("::", 0, 0),
        ] {
            for (flags, sign) in [(0, 0), (5, 1), (ServiceEntry::ECHO, 0)] {
                let entry = ServiceEntry { index: 7, flags };
                let bucket = ServiceBucket::new(&key, &entry);
                assert_eq!(bucket.get(), Some((key, entry)));
                assert_eq!(bucket.entry >> 63, sign);
                let [start, end] = key.address.halves();
                let before = ServiceBucket {
                    start,
                    end,
                    rest: u64::from(key.port) | u64::from(key.protocol) << 16 | 1 << 24,
                    entry: entry.word() | 1 << 63,
                };
                assert_eq!(before.get(), Some((key, entry)), "as of version 6");
            }
        }
        assert_eq!(ServiceBucket::default().get(), None);
    }

    /// Addresses in a row, ports in a row, and both families: what people configure.
    #[test]
    fn keys_that_differ_little_are_at_home_in_different_places() {
        for count in [1_000_u32, 10_000] {
            let mask = ServiceBucket::count(count) - 1;
            let rows: [&dyn Fn(u32) -> ServiceKey; 4] = [
                &|n| key(&format!("10.0.{}.{}", n >> 8, n & 255), 6, 80),
                &|n| key(&format!("2001:db8::{n:x}"), 6, 80),
                &|n| key(&format!("2001:db8:{n:x}::1"), 6, 80),
                &|n| key("192.0.2.1", 6, n as u16 + 1),
            ];
            for row in rows {
                let mut homes: Vec<u32> = (0..count)
                    .map(|n| ServiceBucket::new(&row(n), &ServiceEntry::default()))
                    .map(|b| ServiceBucket::home(b.words()) & mask)
                    .collect();
                homes.sort_unstable();
                homes.dedup();
                // At random, 1 - (1 - e^-0.25) / 0.25 = 12 % share one.
                assert!(homes.len() as u32 > count * 4 / 5, "{}", homes.len());
            }
        }
    }
}
