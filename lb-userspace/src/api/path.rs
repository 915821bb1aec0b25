//! What became of one packet and why, on the wire: answers of explain and trace. Stable like [`super::protocol`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A packet to explain: either words for one, or a whole frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// `tcp`, `udp` or `icmp` (an echo request).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Address and port, such as `198.51.100.9:40000` or `[2001:db8::9]:40000`; for `icmp` the address alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// TCP flags, separated by commas; default `syn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Bytes of the IP packet; default: as small as can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u16>,
    /// What follows the UDP or TCP header, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// A whole Ethernet frame in hexadecimal digits, in place of all of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Interface that the packet comes in on; default: the first that is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// `POST /v1/explain`: what the program would do with a packet now. Parts that the packet did not come to are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Interface that it came in on.
    pub interface: String,
    /// What becomes of it.
    pub verdict: VerdictView,
    /// The flow it is of, or about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowView>,
    /// The service it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceHit>,
    /// What its QUIC connection ID says; absent when the service does not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_id: Option<ConnectionIdView>,
    /// Its slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotView>,
    /// What the flow table says; absent when it is not asked, as for steady slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_table: Option<FlowTableView>,
    /// The backend it goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendHit>,
    /// The other owner of its flow that its GUE header names; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<SecondHit>,
    /// Whether it fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeView>,
    /// The frame as it came.
    pub input: FrameView,
    /// The frame as it leaves; absent when it is passed or dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<FrameView>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerdictView {
    /// Name, as in `lbctl stats`.
    pub name: String,
    /// `forward`, `pass`, `drop` or `answer`.
    pub action: String,
    /// What it means.
    pub description: String,
    /// What to do if that is not what it should be; empty when there is nothing to do.
    pub advice: String,
}

/// The flow that a packet is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowView {
    /// `tcp`, `udp`, or the number of another IP protocol.
    pub protocol: String,
    /// Address and port of the client.
    pub source: String,
    /// Address and port that it talks to.
    pub destination: String,
    /// Whether the packet is an ICMP error about the flow.
    pub is_error: bool,
}

/// The service of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceHit {
    /// Its name; empty when the desired state has none for it any more.
    pub name: String,
    /// Index of its slot table.
    pub index: u32,
    /// The flow hash, in hexadecimal digits.
    pub hash: String,
    /// What of the flow is hashed: `5-tuple`, `source-ip` or `source-ip-port`; empty as the name is.
    #[serde(default)]
    pub hashed: String,
}

/// What a packet's QUIC connection ID says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionIdView {
    /// Whether the packet goes where it says.
    pub routed: bool,
    /// Its server ID, in hexadecimal digits; absent when it has none of this service's config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<String>,
    /// What that means for the packet.
    pub meaning: String,
}

/// The slot of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotView {
    /// Its number, below 65,537.
    pub number: u32,
    /// Its word, in hexadecimal digits.
    pub word: String,
    /// `empty`, `steady`, `tracked` or `moved`.
    pub state: String,
    /// What that means for the packet.
    pub meaning: String,
    /// Backend for new flows; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_owner: Option<String>,
    /// Backend for old flows; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_owner: Option<String>,
}

/// What the flow table says of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowTableView {
    /// Whether there is an entry.
    pub found: bool,
    /// Whether the packet follows it.
    pub counts: bool,
    /// The backend that the entry names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Seconds since a packet of the flow was last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u32>,
    /// Whether the client has ended the connection.
    pub closing: bool,
    /// The backend that the flow may be at home at instead: the entry is a guess, made while the slot had two owners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// What that means for the packet.
    pub meaning: String,
}

/// The backend of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendHit {
    /// Its name; empty for one that was removed before `lbd` started.
    pub name: String,
    /// Index of its entry.
    pub index: u32,
    /// Its own address.
    pub address: String,
    /// How packets are sent to it.
    pub mode: String,
    /// How it is: its health, and why it gets no new flows if it does not.
    pub state: String,
    /// MAC address that the frame is sent to; empty while there is none.
    pub next_hop: String,
    /// Interface behind which that is.
    pub interface: String,
}

/// The other owner of a packet's flow, to which a backend without a socket for it hands it on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecondHit {
    /// Its name; empty for one that was removed before `lbd` started.
    pub name: String,
    /// Index of its entry.
    pub index: u32,
    /// Its own address.
    pub address: String,
}

/// Whether a packet fits the way to its backend. Bytes of IP packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SizeView {
    /// As it came.
    pub received: u32,
    /// What the outer headers add at most.
    pub added: u32,
    /// Largest that the way takes.
    pub mtu: u32,
    /// Whether it fits.
    pub fits: bool,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FrameView {
    /// Its length in bytes.
    pub length: u32,
    /// Its bytes, in hexadecimal digits.
    pub hex: String,
    /// Its headers, a line each.
    pub headers: Vec<String>,
}

/// Which packets are traced: the query of `GET /v1/trace`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TraceRequest {
    /// Only packets of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only packets of senders in this prefix, such as `198.51.100.0/24`, or of this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Only packets with one of these verdicts, separated by commas; `drops`, `passes` and `all` stand for several.
    /// Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// One packet in so many. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
    /// Packets a second on each CPU at most; more are counted as lost. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A line of the answer to `GET /v1/trace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TraceLine {
    /// A packet.
    Packet(Box<TracedPacket>),
    /// Once a second: how it goes.
    Status(TraceStatus),
}

/// A packet that was traced. Parts that it did not come to are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TracedPacket {
    /// When it came, nanoseconds since 1970.
    pub time_ns: u64,
    /// Interface that it came in on.
    pub interface: String,
    /// Name of its verdict, as in `lbctl stats`.
    pub verdict: String,
    /// The flow it is of, or about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowView>,
    /// Name of its service; empty when the desired state has none for it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Number of its slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The backend that it goes to, `service/backend`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Bytes of the frame as it came.
    pub length_in: u32,
    /// Bytes of the frame as it left; 0 when it was passed or dropped.
    pub length_out: u32,
    /// The first 256 bytes of the frame as it came, in hexadecimal digits.
    pub input: String,
    /// The first 256 bytes of the frame as it left, likewise; empty when it was passed or dropped.
    pub output: String,
}

/// How a trace goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceStatus {
    /// Packets that were sent to the client.
    pub packets: u64,
    /// Packets that should have been: over the limit, or the client did not keep up.
    pub lost: u64,
}
