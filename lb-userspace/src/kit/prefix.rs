//! A prefix of addresses, as `--from` takes it.

use std::{net::IpAddr, str::FromStr};

/// An address and how many of its bits count; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Bits and bytes of the same prefix among IPv6 addresses, IPv4 as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
    pub fn mapped(&self) -> (u32, [u8; 16]) {
        match self.address {
            IpAddr::V4(v4) => (u32::from(self.length) + 96, v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => (self.length.into(), v6.octets()),
        }
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
        let most: u8 = if address.is_ipv4() { 32 } else { 128 };
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
