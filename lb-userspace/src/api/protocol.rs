//! Requests and answers of the API. Names and types here are stable: scripts depend on them.

use super::announce::NodeView;
use crate::{problem::Problem, spec::StateSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the running `lbd`.
    pub version: String,
    /// Process id of `lbd`.
    pub pid: u32,
    /// Seconds since `lbd` started.
    pub uptime_seconds: u64,
    /// `ok`, or `degraded` when one of `warnings` stands.
    pub condition: String,
    /// What an operator should know, most important first; empty when all is well.
    pub warnings: Vec<String>,
    /// Revision of the desired state.
    pub revision: u64,
    /// Attached interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// Number of services.
    pub services: u64,
    /// Number of backends over all services.
    pub backends: u64,
    /// Backends that get traffic now.
    pub backends_active: u64,
    /// How it attracts traffic; absent when it announces nothing itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeView>,
}

/// One interface of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    /// Name.
    pub name: String,
    /// Kernel index; 0 when the interface does not exist.
    pub index: u32,
    /// `native`, `generic` or `none` (not attached).
    pub mode: String,
    /// Id of the attached program; 0 when none is.
    pub program_id: u32,
    /// Why it is not attached, or attached in another mode than hoped; empty when all is well.
    pub note: String,
}

/// A service with what is known of it now: `GET /v1/services`, `GET /v1/services/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Name.
    pub name: String,
    /// VIP address.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Port; 0 = any.
    pub port: u16,
    /// `ipip`, `gue` or `l2`.
    pub mode: String,
    /// UDP port that the backends take GUE on; absent in other modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gue_port: Option<u16>,
    /// What of a flow is hashed to find its backend: `5-tuple`, `source-ip` or `source-ip-port`.
    #[serde(default)]
    pub hash: String,
    /// `open` or `closed`.
    pub when_all_down: String,
    /// Whether pings to its address are answered on its behalf.
    #[serde(default)]
    pub echo: bool,
    /// How QUIC connection IDs are read; absent: packets go by their flows alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicView>,
    /// Established flows that a change does not move: `moved` (those of the slots it moves), `all` or `none`.
    #[serde(default)]
    pub tracking: String,
    /// Flows of a backend that goes down: `reset` or `keep`.
    #[serde(default)]
    pub on_down: String,
    /// Milliseconds that flows stay with a backend that is drained or removed.
    #[serde(default)]
    pub drain_timeout_ms: u64,
    /// Milliseconds that unknown UDP flows still go to a slot's old owner.
    #[serde(default)]
    pub udp_settle_ms: u64,
    /// Milliseconds in which a backend that has come up gets its full share; absent: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_ms: Option<u64>,
    /// `up`: at least one backend is up; `all_down_open`: none is, all get traffic; `all_down_closed`: none is, none
    /// does; `no_backends`: there is no backend that could get traffic; `starting`: no verdict yet.
    pub condition: String,
    /// The probe, absent when backends are not probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthView>,
    /// Backends in order of name.
    pub backends: Vec<BackendView>,
}

/// How connection IDs name servers (draft-ietf-quic-load-balancers-19, plaintext).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuicView {
    /// The first three bits of connection IDs that name a server.
    pub config_rotation: u8,
    /// Octets of a server ID.
    pub server_id_length: u8,
}

/// A service's probe with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// `tcp`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Port probed.
    pub port: u16,
    /// Milliseconds between probes.
    pub interval_ms: u64,
    /// Milliseconds until a probe has failed.
    pub timeout_ms: u64,
    /// Successes in a row to come up.
    pub rise: u32,
    /// Failures in a row to go down.
    pub fall: u32,
    /// Jitter in percent of the interval.
    pub jitter_percent: u32,
}

/// A backend with what is known of it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendView {
    /// Service it belongs to.
    pub service: String,
    /// Name.
    pub name: String,
    /// Its own address.
    pub address: String,
    /// 0-1000.
    pub weight: u16,
    /// Whether it is drained.
    #[serde(default)]
    pub drain: bool,
    /// Server ID in its QUIC connection IDs, in hexadecimal digits; absent without `quic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<String>,
    /// `up`, `down`, `unknown` (no verdict yet) or `unprobed` (its service has no probes).
    pub health: String,
    /// Why it is down, from the last failed probe; empty otherwise.
    pub health_detail: String,
    /// Microseconds the last successful probe took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_us: Option<u64>,
    /// `resolved` or `unresolved`.
    pub next_hop: String,
    /// Where its packets go (`via 10.0.0.1 dev eth0 lladdr 02:...`), or why they cannot.
    pub next_hop_detail: String,
    /// Slots it owns of 65,537.
    pub slots: u32,
    /// Whether it gets traffic now.
    pub active: bool,
    /// Share of its slots that it takes so far, in percent (1-99); only in its slow start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_percent: Option<u8>,
    /// Why it gets no traffic; empty when it does.
    pub inactive_reason: String,
}

/// `GET /v1/state`: the desired state and its revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateView {
    /// Counts changes; 0 before the first.
    pub revision: u64,
    /// The state, as `apply` takes it.
    pub state: StateSpec,
}

/// A revision of the desired state that is kept: `GET /v1/history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevisionView {
    /// Its number.
    pub revision: u64,
    /// When it came into force, RFC 3339 in UTC; empty when it cannot be read.
    pub time: String,
    /// The command that made it, such as `backend add`; empty when not known.
    pub change: String,
    /// What it changed, in one line; empty when not known.
    pub summary: String,
    /// Whether it is in force.
    pub current: bool,
    /// Why it cannot be read, and so not be rolled back to; empty when it can.
    pub problem: String,
}

/// Answer to every change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeReport {
    /// Revision in force after the change (before it, for a dry run).
    pub revision: u64,
    /// Whether this was only a dry run.
    pub dry_run: bool,
    /// Whether anything differs from before.
    pub changed: bool,
    /// What differs, a line each.
    pub changes: Vec<ChangeLine>,
    /// What the change does to each service's table, for the services it touches.
    pub tables: Vec<TableChange>,
    /// What the operator should know; empty when nothing.
    pub warnings: Vec<String>,
}

/// One difference between two desired states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangeLine {
    /// `add`, `remove` or `change`.
    pub action: String,
    /// `service` or `backend`.
    pub kind: String,
    /// `www` for a service, `www/web-1` for a backend.
    pub name: String,
    /// What exactly, such as `weight 100 -> 50`; empty for a removal.
    pub detail: String,
}

/// What a change does to one service's table and to its flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TableChange {
    /// The service.
    pub service: String,
    /// Slots that change owner, of 65,537.
    pub slots_changed: u32,
    /// Those of them that no table could spare: what backends gain by their new shares.
    #[serde(default)]
    pub necessary: u32,
    /// The rest: slots that change owner although shares alone would not ask for it.
    #[serde(default)]
    pub collateral: u32,
    /// Part of the new flows that go to another owner than before, in 1/100 percent.
    #[serde(default)]
    pub new_flows_basis_points: u32,
    /// Slots whose established flows stay with a drained or removed backend until the drain timeout and then end.
    #[serde(default)]
    pub expiring_slots: u32,
    /// Slots whose established flows are lost at once.
    #[serde(default)]
    pub lost_slots: u32,
    /// What becomes of established flows, in a sentence.
    #[serde(default)]
    pub old_flows: String,
    /// Seconds until the service's slots are settled again, at the earliest.
    #[serde(default)]
    pub seconds: u64,
}

/// A backend on its way out: `GET /v1/drains`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainView {
    /// Its service; empty for one that was removed before `lbd` started.
    pub service: String,
    /// Its name; empty likewise.
    pub backend: String,
    /// Its own address.
    pub address: String,
    /// `drain` (drained, or weight 0), `removed`, or `down` (it fails its probes and `on_down` is `keep`).
    pub reason: String,
    /// Seconds since it began.
    pub since_seconds: u64,
    /// Seconds until its flows are given up; absent when they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// Recorded flows that are alive.
    pub flows: u64,
    /// Packets a second that still go there.
    pub packets_per_second: f64,
    /// Slots that still name it for old flows.
    pub slots: u32,
    /// Whether nothing goes there any more, so that it can be stopped.
    pub safe: bool,
}

/// `GET /v1/stats`. Counters run from the creation of the data plane's maps and survive restarts of `lbd`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Every verdict with its packets, in order of number, zeroes included.
    pub verdicts: Vec<VerdictStats>,
    /// Services in order of name.
    pub services: Vec<ServiceStats>,
    /// The flow table.
    #[serde(default)]
    pub flows: FlowStats,
}

/// The flow table: only flows of slots that a change has moved are in it. Counts are packets or flows since the maps were
/// created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowStats {
    /// Entries when it was last counted.
    pub entries: u64,
    /// Flows that it is made for (`limits.flows`); some more fit.
    pub capacity: u64,
    /// Slots of all services that were moved and wait until no flow depends on that any more.
    pub slots_waiting: u64,
    /// Packets that followed an entry.
    pub hits: u64,
    /// Flows recorded.
    pub recorded: u64,
    /// Entries overwritten that counted for nothing any more.
    pub replaced: u64,
    /// Flows that could not be recorded, as others were at that very moment.
    pub failed: u64,
    /// Entries that were put out to make room, as far as counting tells, since `lbd` started. When this grows,
    /// raise `limits.flows`.
    pub evicted: u64,
    /// Packets of services with `quic`.
    #[serde(default)]
    pub quic: QuicStats,
}

/// What became of the packets of services with `quic`. All but those of `routed` went the way of their flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuicStats {
    /// Went to the backend that their connection ID names.
    pub routed: u64,
    /// They or their connection ID end before a server ID does.
    pub short: u64,
    /// Their connection ID is of another config rotation.
    pub other_config: u64,
    /// No backend has their server ID; a client's own connection IDs, before it has one of the server's, among them.
    pub unknown: u64,
    /// The flows of the backend that has their server ID are given up.
    pub gone: u64,
}

/// Packets with one verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerdictStats {
    /// Name, such as `drop_no_backend`.
    pub name: String,
    /// `forward`, `pass`, `drop` or `answer`.
    pub action: String,
    /// What it means.
    pub description: String,
    /// Packets.
    pub packets: u64,
}

/// Traffic of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStats {
    /// The service.
    pub name: String,
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes as received.
    pub bytes: u64,
    /// Its backends in order of name.
    pub backends: Vec<BackendStats>,
}

/// Traffic of one backend of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendStats {
    /// The backend.
    pub name: String,
    /// Packets forwarded to it.
    pub packets: u64,
    /// Their bytes as received.
    pub bytes: u64,
}

/// Body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What kind of refusal.
    pub code: ErrorCode,
    /// One sentence for people.
    pub message: String,
    /// The fields at fault, when fields are.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

/// Kinds of refusal, each with one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: not JSON, or not the right shape.
    Malformed,
    /// 404: no such service, backend, revision or path.
    NotFound,
    /// 405: the path exists, but not for this method.
    MethodNotAllowed,
    /// 409: the name or address is taken, another revision is in force than the change was meant for, or it would move
    /// more than it may.
    Conflict,
    /// 413: the body is larger than the API takes.
    TooLarge,
    /// 415: the body is not said to be JSON.
    UnsupportedMediaType,
    /// 422: a value is not valid.
    Invalid,
    /// 500: it could not be done; the old state is in force.
    Failed,
    /// 503: no answer in time, because `lbd` is busy, stopping or (as `lbctl` says it) cannot be reached. Whether
    /// a change was made is not known.
    Unavailable,
}

impl ErrorCode {
    /// The HTTP status of a refusal of this kind.
    pub const fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::Failed => 500,
            Self::Unavailable => 503,
        }
    }
}

impl ErrorBody {
    /// A refusal that is not about a field.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            problems: Vec::new(),
        }
    }
}
