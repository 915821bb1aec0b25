//! The source address of outer headers: this host's own towards the backend, or what the node's configuration names. A prefix
//! is filled with bits of each flow's hash, so that a backend's network card, which looks at outer addresses only, spreads
//! the flows over its queues.

use lb_common::{address::Address, backend::Mode};
use std::net::IpAddr;

/// Length of the prefix that flows fill, IPv4 and IPv6.
const PREFIX_V4: u8 = 16;
const PREFIX_V6: u8 = 96;

/// What the configuration names for one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterAddress {
    /// One address for all flows.
    Fixed(IpAddr),
    /// The network of a prefix, /16 or /96, that each flow fills with its own bits.
    Prefix(IpAddr),
}

/// What the configuration names; nothing: this host's own address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterSource {
    /// Towards backends with IPv4 addresses.
    pub ipv4: Option<OuterAddress>,
    /// Towards backends with IPv6 addresses.
    pub ipv6: Option<OuterAddress>,
}

impl OuterSource {
    /// The outer source towards a backend, and whether it is a prefix that flows fill; `own` is this host's address
    /// towards it. Mode `gue` has its entropy in the UDP source port and takes the first host of a prefix.
    pub fn towards(&self, backend: IpAddr, mode: Mode, own: IpAddr) -> (Address, bool) {
        let named = match backend {
            IpAddr::V4(_) => self.ipv4,
            IpAddr::V6(_) => self.ipv6,
        };
        match (named, mode) {
            (None, _) | (_, Mode::L2) => (own.into(), false),
            (Some(OuterAddress::Fixed(address)), _) => (address.into(), false),
            (Some(OuterAddress::Prefix(network)), Mode::Ipip) => (network.into(), true),
            (Some(OuterAddress::Prefix(network)), Mode::Gue) => (first_host(network).into(), false),
        }
    }
}

fn first_host(network: IpAddr) -> IpAddr {
    match network {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | 1).into()),
    }
}

/// Reads `ADDRESS/LENGTH`, of IPv4 or of IPv6 as `v4` says. The error is what is wrong with it and what to do.
///
/// # Errors
/// When it is no such prefix, or not one of hosts.
pub fn parse(text: &str, v4: bool) -> Result<OuterAddress, (&'static str, &'static str)> {
    let hint = if v4 {
        "write a prefix of 16 bits, such as 172.31.0.0/16, or one address, such as 192.0.2.7/32"
    } else {
        "write a prefix of 96 bits, such as fd00:1f::/96, or one address, such as 2001:db8::7/128"
    };
    let (address, length) = text.split_once('/').ok_or(("has no prefix length", hint))?;
    let address: IpAddr = address.parse().map_err(|_| ("is not an IP prefix", hint))?;
    let length: u8 = length.parse().map_err(|_| ("is not an IP prefix", hint))?;
    let (whole, prefix, host_bits) = match address {
        IpAddr::V4(address) => (32, PREFIX_V4, address.to_bits() & 0xffff != 0),
        IpAddr::V6(address) => (128, PREFIX_V6, address.to_bits() & 0xffff_ffff != 0),
    };
    if address.is_ipv4() != v4 {
        return Err(("is of the other IP version", hint));
    }
    if !is_hosts(address) {
        return Err(("is not a prefix that hosts send from", hint));
    }
    if length == whole {
        Ok(OuterAddress::Fixed(address))
    } else if length != prefix {
        Err(("has a prefix length that is not possible here", hint))
    } else if host_bits {
        Err(("has bits set behind its prefix", hint))
    } else {
        Ok(OuterAddress::Prefix(address))
    }
}

/// Whether packets may come from there. The program tells IPv4 by its mapped form (RFC 4291, section 2.5.5.2), which
/// therefore no IPv6 source may have.
fn is_hosts(address: IpAddr) -> bool {
    let other = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0 || v4.octets()[0] >= 240,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local(),
    };
    !(other || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_addresses_are_told_apart_and_all_else_is_refused() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        for (text, v4, expected) in [
            (
                "172.31.0.0/16",
                true,
                OuterAddress::Prefix(ip("172.31.0.0")),
            ),
            ("192.0.2.7/32", true, OuterAddress::Fixed(ip("192.0.2.7"))),
            ("fd00:1f::/96", false, OuterAddress::Prefix(ip("fd00:1f::"))),
            (
                "2001:db8::7/128",
                false,
                OuterAddress::Fixed(ip("2001:db8::7")),
            ),
        ] {
            assert_eq!(parse(text, v4), Ok(expected), "{text}");
        }
        for (text, v4, problem) in [
            ("172.31.0.0", true, "has no prefix length"),
            ("172.31/16", true, "is not an IP prefix"),
            ("172.31.0.0/x", true, "is not an IP prefix"),
            ("172.31.0.0/-1", true, "is not an IP prefix"),
            (
                "172.31.0.0/24",
                true,
                "has a prefix length that is not possible here",
            ),
            ("172.31.0.1/16", true, "has bits set behind its prefix"),
            (
                "fd00:1f::/64",
                false,
                "has a prefix length that is not possible here",
            ),
            ("fd00:1f::1/96", false, "has bits set behind its prefix"),
            ("fd00:1f::/96", true, "is of the other IP version"),
            ("172.31.0.0/16", false, "is of the other IP version"),
            ("127.0.0.0/16", true, "is not a prefix that hosts send from"),
            ("0.0.0.0/16", true, "is not a prefix that hosts send from"),
            ("224.0.0.0/16", true, "is not a prefix that hosts send from"),
            (
                "255.255.255.255/32",
                true,
                "is not a prefix that hosts send from",
            ),
            (
                "::ffff:0:0/96",
                false,
                "is not a prefix that hosts send from",
            ),
            ("fe80::/96", false, "is not a prefix that hosts send from"),
            ("ff02::/96", false, "is not a prefix that hosts send from"),
        ] {
            assert_eq!(parse(text, v4).unwrap_err().0, problem, "{text}");
        }
    }

    #[test]
    fn each_mode_and_family_takes_what_is_meant_for_it() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let named = OuterSource {
            ipv4: Some(parse("172.31.0.0/16", true).unwrap()),
            ipv6: Some(parse("2001:db8::7/128", false).unwrap()),
        };
        let (own_v4, own_v6) = (ip("10.0.0.2"), ip("fd00::2"));
        let (v4, v6) = (ip("10.1.1.1"), ip("fd00:1::1"));
        for (mode, source, filled) in [
            (Mode::Ipip, "172.31.0.0", true),
            (Mode::Gue, "172.31.0.1", false),
            (Mode::L2, "10.0.0.2", false),
        ] {
            assert_eq!(named.towards(v4, mode, own_v4), (ip(source).into(), filled));
            let nothing = OuterSource::default();
            assert_eq!(nothing.towards(v4, mode, own_v4), (own_v4.into(), false));
        }
        let fixed = (ip("2001:db8::7").into(), false);
        assert_eq!(named.towards(v6, Mode::Ipip, own_v6), fixed);
        assert_eq!(named.towards(v6, Mode::Gue, own_v6), fixed);
    }
}
