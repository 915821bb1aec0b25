//! Values of single fields: each function takes what was written and gives what it means, or what is wrong with it.

use super::valid::{AllDown, Hash, Name, OnDown, Protocol, Tracking};
use crate::prefix::Prefix;
use lb_common::backend::Mode;
use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// What is wrong with a value, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

pub(super) fn name(text: &str) -> Result<Name, Fault> {
    let rule = "use 1-63 letters, digits, `.`, `_` or `-`, starting with a letter or digit";
    Name::parse(text).ok_or_else(|| Fault::new("is not a name", rule))
}

pub(super) fn protocol(text: &str) -> Result<Protocol, Fault> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(Fault::new("is not a protocol", "use `tcp` or `udp`")),
    }
}

pub(super) fn mode(text: &str) -> Result<Mode, Fault> {
    match text {
        "ipip" => Ok(Mode::Ipip),
        "gue" => Ok(Mode::Gue),
        "l2" => Ok(Mode::L2),
        _ => Err(Fault::new(
            "is not a forwarding mode",
            "use `ipip`, `gue` or `l2`",
        )),
    }
}

pub(super) fn hash(text: &str) -> Result<Hash, Fault> {
    let known = Hash::ALL.into_iter().find(|hash| hash.as_str() == text);
    known.ok_or_else(|| {
        Fault::new(
            "is nothing that flows are hashed by",
            "use `5-tuple`, `source-ip` or `source-ip-port`",
        )
    })
}

pub(super) fn when_all_down(text: &str) -> Result<AllDown, Fault> {
    match text {
        "open" => Ok(AllDown::Open),
        "closed" => Ok(AllDown::Closed),
        _ => Err(Fault::new("is not a policy", "use `open` or `closed`")),
    }
}

pub(super) fn tracking(text: &str) -> Result<Tracking, Fault> {
    match text {
        "moved" => Ok(Tracking::Moved),
        "all" => Ok(Tracking::All),
        "none" => Ok(Tracking::None),
        _ => Err(Fault::new(
            "is not a kind of tracking",
            "use `moved`, `all` or `none`",
        )),
    }
}

pub(super) fn on_down(text: &str) -> Result<OnDown, Fault> {
    match text {
        "reset" => Ok(OnDown::Reset),
        "keep" => Ok(OnDown::Keep),
        _ => Err(Fault::new("is not a policy", "use `reset` or `keep`")),
    }
}

/// Whether backends are probed.
pub(super) fn probed(text: &str) -> Result<bool, Fault> {
    match text {
        "tcp" => Ok(true),
        "none" => Ok(false),
        _ => Err(Fault::new("is not a kind of probe", "use `tcp` or `none`")),
    }
}

/// The shortest prefixes that can be services: a shorter one is no site's.
const SHORTEST: [(&str, u8); 2] = [("IPv4", 8), ("IPv6", 32)];

/// An address that clients send to and that reaches this node over a network, or a prefix of such.
pub(super) fn service_address(text: &str) -> Result<Prefix, Fault> {
    let Some((address, length)) = text.split_once('/') else {
        return one_service_address(text).map(Prefix::from);
    };
    let address = one_service_address(address)?;
    let [v4, v6] = SHORTEST;
    let ((family, shortest), longest) = if address.is_ipv4() {
        (v4, 32)
    } else {
        (v6, 128)
    };
    let range = format!("use /{shortest} to /{longest} for {family}");
    let Ok(length) = length.parse::<u8>() else {
        return Err(Fault::new("has no prefix length behind the `/`", range));
    };
    let Some(prefix) = Prefix::around(address, length) else {
        return Err(Fault::new(format!("has not {length} bits"), range));
    };
    if length < shortest {
        let message = format!("would be {} {family} addresses", share(length));
        return Err(Fault::new(message, range));
    }
    if prefix.address() != address {
        return Err(Fault::new(
            format!("has bits set behind its first {length}"),
            format!("write `{prefix}`, or `{address}` for the one address"),
        ));
    }
    let mapped = Prefix::from(IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()));
    if prefix.contains(mapped) {
        let hint = "write IPv4 prefixes as such";
        return Err(Fault::new("holds IPv4 addresses in IPv6 form", hint));
    }
    Ok(prefix)
}

/// The share of all addresses that a prefix of this length is.
fn share(length: u8) -> String {
    match length {
        0 => "all".into(),
        length => format!(
            "1/{} of all",
            1_u64.checked_shl(length.into()).unwrap_or(u64::MAX)
        ),
    }
}

fn one_service_address(text: &str) -> Result<IpAddr, Fault> {
    let hint = "give an address that is routed to this node";
    let address = host_address(text, "without port", hint)?;
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_loopback() {
        return Err(Fault::new(
            "is a loopback address, which no network carries",
            hint,
        ));
    }
    if link_local {
        return Err(Fault::new(
            "is a link-local address, which no router carries",
            hint,
        ));
    }
    Ok(address)
}

/// An address of one host.
pub(super) fn backend_address(text: &str) -> Result<IpAddr, Fault> {
    let form = "without port or prefix length";
    host_address(text, form, "give the backend's own address")
}

fn host_address(text: &str, form: &str, hint: &str) -> Result<IpAddr, Fault> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let hint = format!("write it like `192.0.2.1` or `2001:db8::1`, {form}");
        return Err(Fault::new("is not an IP address", hint));
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Fault::new(
            "is an IPv4 address in IPv6 form",
            format!("write `{v4}`"),
        ));
    }
    let kind = if address.is_unspecified() {
        "the unspecified address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if address == Ipv4Addr::BROADCAST {
        "the broadcast address"
    } else {
        return Ok(address);
    };
    Err(Fault::new(format!("is {kind}, not one of a host"), hint))
}

/// A whole number from `least` to `most`.
pub(super) fn number<T>(value: i64, least: T, most: T) -> Result<T, Fault>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    let fault = || Fault::new("is out of range", format!("use {least} to {most}"));
    let number = T::try_from(value).map_err(|_| fault())?;
    if (&least..=&most).contains(&&number) {
        Ok(number)
    } else {
        Err(fault())
    }
}

/// A time span from `least` to `most`.
pub(crate) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, Fault> {
    let hint = || {
        let (least, most) = (
            humantime::format_duration(least),
            humantime::format_duration(most),
        );
        format!("use {least} to {most}, written like `500ms`, `2s` or `1m`")
    };
    let span =
        humantime::parse_duration(text).map_err(|_| Fault::new("is not a time span", hint()))?;
    if (least..=most).contains(&span) {
        Ok(span)
    } else {
        Err(Fault::new("is out of range", hint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_prefix_is_refused_with_the_right_one() {
        for (text, message, hint) in [
            (
                "192.0.2.9/24",
                "has bits set behind its first 24",
                "write `192.0.2.0/24`, or `192.0.2.9` for the one address",
            ),
            (
                "2001:db8::1/64",
                "has bits set behind its first 64",
                "write `2001:db8::/64`, or `2001:db8::1` for the one address",
            ),
            (
                "10.0.0.0/7",
                "would be 1/128 of all IPv4 addresses",
                "use /8 to /32 for IPv4",
            ),
            (
                "2001:db8::/31",
                "would be 1/2147483648 of all IPv6 addresses",
                "use /32 to /128 for IPv6",
            ),
            (
                "128.0.0.0/0",
                "would be all IPv4 addresses",
                "use /8 to /32 for IPv4",
            ),
            ("192.0.2.0/33", "has not 33 bits", "use /8 to /32 for IPv4"),
            (
                "192.0.2.0/",
                "has no prefix length behind the `/`",
                "use /8 to /32 for IPv4",
            ),
            (
                "::8000:0:0/81",
                "holds IPv4 addresses in IPv6 form",
                "write IPv4 prefixes as such",
            ),
        ] {
            assert_eq!(service_address(text), Err(Fault::new(message, hint)));
        }
        let whole = service_address("2001:db8::1/128").unwrap();
        assert_eq!(whole.to_string(), "2001:db8::1");
    }

    #[test]
    fn addresses() {
        let table = [
            ("192.0.2.1", None, None),
            ("2001:db8::1", None, None),
            (
                "10.0.0.300",
                Some("is not an IP address"),
                Some("is not an IP address"),
            ),
            (
                "10.0.0.300/24",
                Some("is not an IP address"),
                Some("is not an IP address"),
            ),
            ("192.0.2.0/24", None, Some("is not an IP address")),
            ("10.0.0.0/8", None, Some("is not an IP address")),
            ("2001:db8::/32", None, Some("is not an IP address")),
            ("2001:db8::/64", None, Some("is not an IP address")),
            ("192.0.2.7/32", None, Some("is not an IP address")),
            ("224.0.0.0/8", Some("is a multicast"), Some("is not an IP")),
            ("127.0.0.0/8", Some("is a loopback"), Some("is not an IP")),
            ("fe80::/64", Some("is a link-local"), Some("is not an IP")),
            (
                "0.0.0.0",
                Some("is the unspecified"),
                Some("is the unspecified"),
            ),
            ("::", Some("is the unspecified"), Some("is the unspecified")),
            ("224.0.0.1", Some("is a multicast"), Some("is a multicast")),
            ("ff02::1", Some("is a multicast"), Some("is a multicast")),
            (
                "255.255.255.255",
                Some("is the broadcast"),
                Some("is the broadcast"),
            ),
            (
                "::ffff:10.0.0.1",
                Some("is an IPv4 address in"),
                Some("is an IPv4 address in"),
            ),
            ("127.0.0.2", Some("is a loopback"), None),
            ("::1", Some("is a loopback"), None),
            ("fe80::1", Some("is a link-local"), None),
        ];
        for (text, service, backend) in table {
            for (result, expected) in [
                (service_address(text), service),
                (backend_address(text).map(Prefix::from), backend),
            ] {
                match expected {
                    None => assert_eq!(result, Ok(text.parse().unwrap())),
                    Some(start) => assert!(
                        result.as_ref().unwrap_err().message.starts_with(start),
                        "{text}: {result:?}"
                    ),
                }
            }
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(number::<u16>(0, 0, u16::MAX), Ok(0));
        assert_eq!(number::<u16>(65_535, 0, u16::MAX), Ok(65_535));
        for value in [70_000, -1, i64::MIN, i64::MAX] {
            let fault = number::<u16>(value, 0, u16::MAX).unwrap_err();
            assert_eq!(fault.hint, "use 0 to 65535", "{value}");
        }
        assert_eq!(number::<u32>(0, 1, 100).unwrap_err().hint, "use 1 to 100");
    }

    #[test]
    fn durations() {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(3_600));
        assert_eq!(duration("1m 30s", least, most), Ok(Duration::from_secs(90)));
        assert_eq!(duration("100ms", least, most), Ok(least));
        assert_eq!(duration("1h", least, most), Ok(most));
        assert_eq!(
            duration("99ms", least, most).unwrap_err().message,
            "is out of range"
        );
        for text in ["", "5", "-1s", "fast", "99999999999999999999999y"] {
            assert_eq!(
                duration(text, least, most).unwrap_err().message,
                "is not a time span",
                "{text}"
            );
        }
    }
}
