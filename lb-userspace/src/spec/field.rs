//! Values of single fields: each function takes what was written and gives what it means, or what is wrong with it.

use super::valid::{AllDown, Hash, Name, OnDown, Protocol, Tracking};
use lb_common::backend::Mode;
use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

/// What is wrong with a value, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) hint: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
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

/// An address that clients send to and that reaches this node over a network.
pub(super) fn service_address(text: &str) -> Result<IpAddr, Fault> {
    let hint = "give an address that is routed to this node";
    let address = host_address(text, hint)?;
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
    host_address(text, "give the backend's own address")
}

fn host_address(text: &str, hint: &str) -> Result<IpAddr, Fault> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let hint = "write it like `192.0.2.1` or `2001:db8::1`, without port or prefix length";
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
pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, Fault> {
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
                "10.0.0.1/24",
                Some("is not an IP address"),
                Some("is not an IP address"),
            ),
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
                (backend_address(text), backend),
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
