//! Prefixes of addresses: what services and balancers have. One of full length is an address.

use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

/// An address and how many of its bits count; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        let length = most(address);
        Self { address, length }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_address() {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Bits of an address.
const fn most(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl Prefix {
    /// The prefix of this length that the address is in, and the address itself if it is its first; nothing if there are
    /// not so many bits.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        let bits = u32::from(length);
        let address = match address {
            IpAddr::V4(_) if bits > 32 => return None,
            IpAddr::V6(_) if bits > 128 => return None,
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                IpAddr::V4((u32::from(v4) & mask).into())
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                IpAddr::V6((u128::from(v6) & mask).into())
            }
        };
        Some(Self { address, length })
    }

    /// Its first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits count.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// With its length, also where that is a whole address: `192.0.2.1/32`.
    pub fn cidr(&self) -> String {
        format!("{}/{}", self.address, self.length)
    }

    /// Whether it is one address.
    pub const fn is_address(&self) -> bool {
        self.length == most(self.address)
    }

    /// Whether it is one of IPv4.
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether all addresses of another are in it.
    pub fn contains(&self, other: Self) -> bool {
        self.length <= other.length && Self::around(other.address, self.length) == Some(*self)
    }

    /// Bits and bytes of the same prefix among IPv6 addresses, IPv4 as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
    pub fn mapped(&self) -> (u32, [u8; 16]) {
        match self.address {
            IpAddr::V4(v4) => (u32::from(self.length) + 96, v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => (self.length.into(), v6.octets()),
        }
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| "is no address or prefix; write 10.0.0.0/8 or fd00::/8".to_owned())?;
        let most = most(address);
        let length = match length {
            None => most,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= most)
                .ok_or_else(|| format!("its length must be 0 to {most}"))?,
        };
        let prefix = Self { address, length };
        let (bits, bytes) = prefix.mapped();
        let rest = u128::from_be_bytes(bytes).checked_shl(bits).unwrap_or(0);
        if rest != 0 {
            return Err(format!(
                "has bits set behind its first {length}; set them to 0"
            ));
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_prefix() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        for (wide, narrow, expected) in [
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.2.128/25", true),
            ("192.0.2.0/24", "192.0.2.0/24", true),
            ("192.0.2.128/25", "192.0.2.0/24", false),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("0.0.0.0/0", "255.0.0.1", true),
            ("::/0", "0.0.0.1", false),
            ("2001:db8::/64", "2001:db8::ffff:0:0:1", true),
            ("2001:db8::/64", "2001:db8:0:1::", false),
        ] {
            let contains = prefix(wide).contains(prefix(narrow));
            assert_eq!(contains, expected, "{wide} {narrow}");
        }
        let around = |text: &str, length| Prefix::around(text.parse().unwrap(), length);
        assert_eq!(around("192.0.2.9", 24), Some(prefix("192.0.2.0/24")));
        assert_eq!(around("192.0.2.9", 32), Some(prefix("192.0.2.9")));
        assert_eq!(around("192.0.2.9", 0), Some(prefix("0.0.0.0/0")));
        assert_eq!(around("192.0.2.9", 33), None);
        assert_eq!(prefix("192.0.2.0/24").to_string(), "192.0.2.0/24");
        assert_eq!(prefix("2001:db8::1/128").to_string(), "2001:db8::1");
    }

    #[test]
    fn prefixes_are_parsed_and_mapped() {
        let mapped = |text: &str| text.parse::<Prefix>().unwrap().mapped();
        let (bits, bytes) = mapped("10.0.0.0/8");
        assert_eq!((bits, bytes[12]), (104, 10));
        assert_eq!(mapped("10.1.2.3").0, 128);
        assert_eq!(mapped("fd00::/8").0, 8);
        assert_eq!(mapped("::/0"), (0, [0; 16]));
        assert_eq!(mapped("0.0.0.0/0").0, 96);
        for wrong in [
            "",
            "ten",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "fd00::1/64",
            "10.0.0.0/",
        ] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }
}
