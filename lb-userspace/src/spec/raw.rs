//! The desired state as it is written in YAML and JSON. Only the shape is checked here; values are checked in
//! [`super::valid`], which names the field and the value of whatever it refuses. That is why numbers are wide here.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::fmt;
use utoipa::ToSchema;

/// Services and their backends, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StateSpec {
    /// The services, in any order. Required, so that nothing is removed by leaving something out: `[]` is none.
    #[serde(deserialize_with = "list")]
    pub services: Vec<ServiceSpec>,
}

/// One service: an address, protocol and port (the VIP) and the backends behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Name, unique among services: 1-63 letters, digits, `.`, `_` or `-`, starting with a letter or digit.
    #[schema(example = "www")]
    pub name: String,
    /// IPv4 or IPv6 address of the service, or a prefix such as `192.0.2.0/24` (from /8) or `2001:db8::/64` (from /32) for a service
    /// at all its addresses. Of overlapping services a packet's is the most specific one.
    #[schema(example = "192.0.2.1")]
    pub address: String,
    /// `tcp` or `udp`.
    #[schema(example = "tcp")]
    pub protocol: String,
    /// Port, 0 to 65535. 0 is any port that no other service of the same address and protocol names.
    pub port: i64,
    /// How packets reach the backends: `ipip` (default), `gue` or `l2`.
    #[serde(default = "default_mode")]
    #[schema(example = "ipip")]
    pub mode: String,
    /// UDP port that the backends take GUE on, 1 to 65535, for mode `gue` only. Default 6080.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 6080)]
    pub gue_port: Option<i64>,
    /// What finds a flow its backend: `5-tuple` (default), every flow by itself; `source-ip`, the client's address alone, so that
    /// all flows of a client go to one backend; `source-ip-port`, its address and port. It cannot be changed while the
    /// service is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "5-tuple")]
    pub hash: Option<String>,
    /// What happens when every backend is down: `open` (default), all get traffic as if up; `closed`, none does.
    #[serde(default = "default_when_all_down")]
    #[schema(example = "open")]
    pub when_all_down: String,
    /// Health probes. Absent: TCP probes of the service's port for TCP services with a port, none for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSpec>,
    /// Which established flows are remembered so that a change does not move them: `moved` (default), those of slots
    /// that a change has moved; `all`; `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "moved")]
    pub tracking: Option<String>,
    /// What becomes of the flows of a backend that goes down: `reset` (default), another backend resets them, so that
    /// clients connect anew at once; `keep`, they stay with it as those of a draining backend do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "reset")]
    pub on_down: Option<String>,
    /// How long flows stay with a backend that is drained, removed or has given up slots, 1s to 24h. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "5m")]
    pub drain_timeout: Option<String>,
    /// How long after a slot has moved a UDP flow that is not known yet still goes to the old owner, 0s to 1h. Default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "60s")]
    pub udp_settle: Option<String>,
    /// Time in which a backend that has come up gets its full share, 0s (default: at once) to 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "60s")]
    pub slow_start: Option<String>,
    /// Whether the balancer itself answers pings to the service's address; one service of an address is enough. Default
    /// false: they are left to the host, like everything that is not for a service.
    #[serde(default, skip_serializing_if = "is_false")]
    pub echo: bool,
    /// For UDP services with a port, packets go by their QUIC connection IDs, so that a client whose address changes keeps its
    /// backend. Every backend needs a `server_id` then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicSpec>,
    /// The backends, in any order.
    #[serde(default, deserialize_with = "list")]
    pub backends: Vec<BackendSpec>,
}

/// How connection IDs name servers: the plaintext form of QUIC-LB (draft-ietf-quic-load-balancers-19).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuicSpec {
    /// Config rotation, 0 to 6: the first three bits of connection IDs that name a server. Default 0.
    #[serde(default)]
    #[schema(example = 0)]
    pub config_rotation: i64,
    /// Octets of a server ID, 1 to 8.
    #[schema(example = 4)]
    pub server_id_length: i64,
}

impl fmt::Display for QuicSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            config_rotation,
            server_id_length,
        } = self;
        write!(
            f,
            "config_rotation {config_rotation}, server_id_length {server_id_length}"
        )
    }
}

/// How a service's backends are probed. Durations are written like `2s`, `500ms`, `1m`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthSpec {
    /// `tcp` (default): a connection to the backend's own address must be accepted; `none`: backends count as up.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Port to probe, 1 to 65535. Default: the service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i64>,
    /// Time between the starts of two probes of one backend, 100ms to 1h. Default 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Time after which a probe has failed, 10ms to the interval. Default 1s, or the interval if that is shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Successes in a row that bring a backend up, 1 to 100. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rise: Option<i64>,
    /// Failures in a row that bring a backend down, 1 to 100. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fall: Option<i64>,
    /// Random share of the interval added to or taken from each wait, 0 to 50 percent. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_percent: Option<i64>,
}

/// One backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Name, unique in its service. The same name in two services means the same host.
    #[schema(example = "web-1")]
    pub name: String,
    /// IPv4 or IPv6 address of the backend itself (not of the service).
    #[schema(example = "198.51.100.11")]
    pub address: String,
    /// Share of the traffic relative to the other backends, 0 to 1000. Default 100. 0: no traffic.
    #[serde(default = "default_weight")]
    pub weight: i64,
    /// Whether it is being drained: it gets no new flows, those it has stay for the service's `drain_timeout`.
    /// Default false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub drain: bool,
    /// Server ID in the QUIC connection IDs that it issues, in hexadecimal digits: as many octets as the service's
    /// `quic.server_id_length`, and of no other backend of the service. Required with `quic`, refused without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "0000000b")]
    pub server_id: Option<String>,
}

/// A change of one backend; absent fields stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendPatch {
    /// New address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// New weight, 0 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i64>,
    /// Begin (true) or end (false) its drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<bool>,
    /// New server ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<String>,
}

/// A list that was written. `services:` with nothing behind it is a slip more often than a wish to have none.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let list = Option::<Vec<T>>::deserialize(from)?;
    list.ok_or_else(|| D::Error::custom("is empty; write `[]` if none are meant"))
}

fn is_false(value: &bool) -> bool {
    !value
}

fn default_mode() -> String {
    "ipip".into()
}

fn default_when_all_down() -> String {
    "open".into()
}

fn default_weight() -> i64 {
    100
}
