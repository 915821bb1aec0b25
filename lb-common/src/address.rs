//! One address type for both families, cheap to compare and to hash in eBPF.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address: 16 bytes in network order, held as four words so that eBPF code compares and copies it
/// word by word. IPv4 is held as the IPv4-mapped address `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(pub [u32; 4]);

/// The third word of an IPv4-mapped address, as it lies in memory.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// An IPv4 address from its four bytes in network order, as they lie in the packet.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Its two halves as they lie in memory, for functions that take no more than words.
    #[inline(always)]
    pub const fn halves(&self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
    }

    /// The address of these [`Address::halves`].
    #[inline(always)]
    pub const fn of_halves(start: u64, end: u64) -> Self {
        let (second, fourth) = ((start >> 32) as u32, (end >> 32) as u32);
        Self([start as u32, second, end as u32, fourth])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.distance_to_v4() == 0
    }

    /// Not 0 if this is no IPv4 address: the bits that are other than they are in one.
    #[inline(always)]
    pub const fn distance_to_v4(&self) -> u64 {
        (self.0[0] | self.0[1] | (self.0[2] ^ MAPPED)) as u64
    }

    /// Whether it can be the address of one host that is somewhere else: neither unspecified, loopback, multicast, broadcast nor
    /// reserved (RFC 6890).
    #[inline(always)]
    pub const fn is_of_one_host(&self) -> bool {
        let [first, ..] = if self.is_v4() {
            self.v4_word().to_ne_bytes()
        } else {
            self.0[0].to_ne_bytes()
        };
        if self.is_v4() {
            first != 0 && first != 127 && first < 224
        } else {
            let is_low = self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0;
            let is_unspecified_or_loopback = is_low && u32::from_be(self.0[3]) <= 1;
            first != 0xff && !is_unspecified_or_loopback
        }
    }

    /// The four bytes of an IPv4 address in network order. Meaningless for IPv6.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let b = v6.octets();
        let word = |i: usize| u32::from_ne_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            return IpAddr::V4(Ipv4Addr::from(address.v4_word().to_ne_bytes()));
        }
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(address.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in [
            "10.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "2001:db8::1",
            "::",
            "ff02::1",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
            let [start, end] = Address::from(ip).halves();
            assert_eq!(Address::of_halves(start, end), Address::from(ip));
            assert_eq!(Address::from(ip).is_v4(), ip.is_ipv4(), "{text}");
        }
    }

    #[test]
    fn only_some_addresses_are_one_hosts() {
        for (text, expected) in [
            ("192.0.2.1", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("127.0.0.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2001:db8::1", true),
            ("fe80::1", true),
            ("::2", true),
            ("::", false),
            ("::1", false),
            ("ff02::1", false),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(ip).is_of_one_host(), expected, "{text}");
        }
    }

    #[test]
    fn a_packet_word_and_a_parsed_address_are_equal() {
        let from_packet = Address::from_v4_word(u32::from_ne_bytes([10, 1, 2, 3]));
        assert_eq!(
            from_packet,
            Address::from("10.1.2.3".parse::<IpAddr>().unwrap())
        );
    }
}
