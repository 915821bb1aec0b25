//! The desired state once it has been checked.

use lb_common::{
    backend::Mode,
    header::{PROTOCOL_TCP, PROTOCOL_UDP},
    limits::{DEFAULT_BACKENDS, DEFAULT_SERVICES},
};
use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc, time::Duration};

/// Name of a service or a backend: 1-63 letters, digits, `.`, `_` or `-`, starting with a letter or digit.
/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// The name, or nothing if `text` is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let good = (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        good.then(|| Self(text.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
        }
    }

    /// `tcp` or `udp`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What a service does when none of its backends is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllDown {
    /// All backends get traffic as if they were up.
    Open,
    /// No backend gets traffic; packets are dropped as `drop_no_backend`.
    Closed,
}

/// A TCP probe of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Port probed.
    pub port: u16,
    /// From the start of a probe to the start of the next.
    pub interval: Duration,
    /// After this a probe has failed; at most `interval`.
    pub timeout: Duration,
    /// Successes in a row that bring a backend up, at least 1.
    pub rise: u32,
    /// Failures in a row that bring a backend down, at least 1.
    pub fall: u32,
    /// Each wait is lengthened or shortened by up to this share of `interval`, in percent (0-50).
    pub jitter_percent: u32,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// VIP address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in host byte order; 0 = any.
    pub port: u16,
    /// Forwarding mode of all its backends.
    pub mode: Mode,
    /// Policy when all backends are down.
    pub when_all_down: AllDown,
    /// Probes; none: backends count as up.
    pub health: Option<HealthCheck>,
    /// Backends by name: the canonical order.
    pub backends: BTreeMap<Name, Backend>,
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: Name,
    /// Its own address.
    pub address: IpAddr,
    /// 0-1000.
    pub weight: u16,
}

/// The whole desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Services by name.
    pub services: BTreeMap<Name, Service>,
}

/// What a node can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Services.
    pub services: u32,
    /// Backends, summed over all services.
    pub backends: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: DEFAULT_SERVICES,
            backends: DEFAULT_BACKENDS,
        }
    }
}
