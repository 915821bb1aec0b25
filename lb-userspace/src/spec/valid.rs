//! The desired state once it has been checked.

use crate::prefix::Prefix;
use lb_common::{
    backend::Mode,
    header::{PROTOCOL_TCP, PROTOCOL_UDP},
    limits::{DEFAULT_BACKENDS, DEFAULT_SERVICES},
    quic::{MAX_SERVER_ID, QuicConfig},
    service::ServiceEntry,
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

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
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

/// What of a flow is hashed to find its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hash {
    /// Both addresses, both ports and the protocol: every flow by itself.
    #[default]
    FiveTuple,
    /// The client's address: all its flows have one slot.
    SourceIp,
    /// The client's address and port.
    SourceIpPort,
}

impl Hash {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::FiveTuple, Self::SourceIp, Self::SourceIpPort];

    /// Flags of a [`ServiceEntry`] that make the program do so.
    pub const fn flags(self) -> u32 {
        match self {
            Self::FiveTuple => 0,
            Self::SourceIp => ServiceEntry::HASH_SOURCE,
            Self::SourceIpPort => ServiceEntry::HASH_SOURCE_PORT,
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

/// Which flows of a service are recorded in the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Those of slots that a change has moved.
    Moved,
    /// All.
    All,
    /// None: a change breaks the flows of the slots that it moves.
    None,
}

/// What becomes of the flows of a backend that fails its probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// They go to another backend, which resets them, so that clients connect anew at once.
    Reset,
    /// They stay with it for the drain timeout, as those of a draining backend do.
    Keep,
}

/// What becomes of established flows in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPolicy {
    /// Which flows are recorded.
    pub tracking: Tracking,
    /// Flows of a backend that fails its probes.
    pub on_down: OnDown,
    /// How long flows stay with a backend that is drained, removed or has given up slots; at least a second.
    pub drain_timeout: Duration,
    /// How long after a slot has moved a UDP flow without an entry still counts as an old one.
    pub udp_settle: Duration,
    /// Time in which a backend that has come up gets its full share; none: at once.
    pub slow_start: Option<Duration>,
}

impl Default for FlowPolicy {
    fn default() -> Self {
        Self {
            tracking: Tracking::Moved,
            on_down: OnDown::Reset,
            drain_timeout: Duration::from_secs(300),
            udp_settle: Duration::from_secs(60),
            slow_start: None,
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// VIP address, or all VIPs.
    pub address: Prefix,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in host byte order; 0 = any.
    pub port: u16,
    /// Forwarding mode of all its backends.
    pub mode: Mode,
    /// UDP port that the backends take GUE on, host byte order; none in other modes.
    pub gue_port: Option<u16>,
    /// What of a flow is hashed; never changes while the service is there.
    pub hash: Hash,
    /// Policy when all backends are down.
    pub when_all_down: AllDown,
    /// Echo requests to its address are answered.
    pub echo: bool,
    /// How connection IDs are read; none: packets go by their flows alone.
    pub quic: Option<QuicConfig>,
    /// Probes; none: backends count as up.
    pub health: Option<HealthCheck>,
    /// What becomes of established flows in a change.
    pub flows: FlowPolicy,
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
    /// Gets no new flows; those it has stay for the service's drain timeout.
    pub drain: bool,
    /// In the connection IDs that it issues; of the length that its service's `quic` says, none without.
    pub server_id: Option<ServerId>,
}

/// Server ID of a backend: 1 to 8 octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId {
    length: u8,
    number: u64,
}

impl ServerId {
    /// The ID, or nothing if `text` is not 1 to 8 octets in hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len();
        let good = digits.is_multiple_of(2) && text.chars().all(|c| c.is_ascii_hexdigit());
        let length = u8::try_from(digits / 2).ok()?;
        if !good || !(1..=MAX_SERVER_ID).contains(&length) {
            return None;
        }
        let number = u64::from_str_radix(text, 16).ok()?;
        Some(Self { length, number })
    }

    /// Octets.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// As a number, the first octet the highest.
    pub const fn number(self) -> u64 {
        self.number
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = 2 * usize::from(self.length);
        write!(f, "{:0digits$x}", self.number)
    }
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
