//! What two nodes of a fleet must have in common, so that any of them sends a flow to the same backend: for each service a
//! hash of its live table, and all that the table and its flows follow from.
//!
//! Pure. Tables are hashed by the names of backends, because indexes are each node's own.

mod compare;
#[cfg(test)]
mod tests;

pub use compare::compare;

use crate::{
    overlay::{Availability, NOBODY},
    spec::{FlowPolicy, Hash, OnDown, Service, Tracking, mode_name},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write, time::Duration};
use utoipa::ToSchema;
use xxhash_rust::xxh64::xxh64;

/// Seed of every hash here. Fixed for ever: nodes of different versions are compared.
const SEED: u64 = 0;

/// `GET /v1/digest`: what this node shares with the others of its fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DigestView {
    /// The node.
    pub node: DigestNode,
    /// Services in order of name.
    pub services: Vec<ServiceDigest>,
}

/// The one that an `lbd` has which does not tell it.
fn usual_hash() -> String {
    Hash::default().as_str().into()
}

/// What holds for all services of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DigestNode {
    /// Seed of the hash from a flow to its slot.
    pub hash_seed: u64,
    /// Version of the running `lbd`.
    pub version: String,
    /// Version of the layout of its maps.
    pub layout: u32,
}

/// One service of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDigest {
    /// Name.
    pub name: String,
    /// VIP address.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Port; 0 = any.
    pub port: u16,
    /// `ipip`, `l2`, or `gue` and its port, as in `gue 6080`.
    pub mode: String,
    /// What of a flow is hashed: `5-tuple`, `source-ip` or `source-ip-port`.
    #[serde(default = "usual_hash")]
    pub hash: String,
    /// How QUIC connection IDs are read, as in `0 4`: config rotation and octets of a server ID; empty: they are not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quic: String,
    /// Its flow policy.
    pub flows: FlowsDigest,
    /// Hash of the live table by names of backends: 16 hex digits.
    pub table: String,
    /// Hash of everything that decides where its flows go: 16 hex digits.
    pub inputs: String,
    /// Backends in order of name.
    pub backends: Vec<BackendDigest>,
}

/// A service's flow policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowsDigest {
    /// `moved`, `all` or `none`.
    pub tracking: String,
    /// `reset` or `keep`.
    pub on_down: String,
    /// Milliseconds.
    pub drain_timeout_ms: u64,
    /// Milliseconds.
    pub udp_settle_ms: u64,
    /// Milliseconds; 0 = off.
    pub slow_start_ms: u64,
}

/// A backend of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendDigest {
    /// Name.
    pub name: String,
    /// Its own address.
    pub address: String,
    /// 0-1000.
    pub weight: u16,
    /// Whether it is drained.
    pub drain: bool,
    /// Server ID in hexadecimal digits; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub server_id: String,
    /// Which share of its slots it takes now, in 1/65536.
    pub availability: u32,
}

/// The digest of a service. `members` and `availability` are what its overlay was made of and with, `live` the live owners
/// by position in `members` counted from 1.
pub fn service_digest<N: AsRef<str>>(
    node: &DigestNode,
    service: &Service,
    members: &[(N, u16)],
    availability: &[Availability],
    live: &[u32],
) -> ServiceDigest {
    let names = members.iter().map(|(name, _)| name.as_ref());
    let parts: BTreeMap<&str, u32> = names
        .zip(availability.iter().map(|availability| availability.parts()))
        .collect();
    let backends = service.backends.values().map(|backend| BackendDigest {
        name: backend.name.to_string(),
        address: backend.address.to_string(),
        weight: backend.weight,
        drain: backend.drain,
        server_id: backend.server_id.map_or(String::new(), |id| id.to_string()),
        availability: parts.get(backend.name.as_str()).copied().unwrap_or(0),
    });
    let mut digest = ServiceDigest {
        name: service.name.to_string(),
        address: service.address.to_string(),
        protocol: service.protocol.as_str().into(),
        port: service.port,
        mode: match service.gue_port {
            Some(port) => format!("{} {port}", mode_name(service.mode)),
            None => mode_name(service.mode).into(),
        },
        hash: service.hash.as_str().into(),
        quic: service.quic.map_or(String::new(), |quic| {
            format!("{} {}", quic.config_rotation, quic.server_id_length)
        }),
        flows: FlowsDigest::from(&service.flows),
        table: table(members, live),
        inputs: String::new(),
        backends: backends.collect(),
    };
    digest.inputs = inputs(node, &digest);
    digest
}

impl From<&FlowPolicy> for FlowsDigest {
    fn from(flows: &FlowPolicy) -> Self {
        let ms = |span: Duration| span.as_millis() as u64;
        Self {
            tracking: match flows.tracking {
                Tracking::Moved => "moved".into(),
                Tracking::All => "all".into(),
                Tracking::None => "none".into(),
            },
            on_down: match flows.on_down {
                OnDown::Reset => "reset".into(),
                OnDown::Keep => "keep".into(),
            },
            drain_timeout_ms: ms(flows.drain_timeout),
            udp_settle_ms: ms(flows.udp_settle),
            slow_start_ms: flows.slow_start.map_or(0, ms),
        }
    }
}

/// Hash over the hash of each slot's owner's name, 0 for nobody, in order of slots, little endian.
fn table<N: AsRef<str>>(members: &[(N, u16)], live: &[u32]) -> String {
    let hashes: Vec<u64> = members
        .iter()
        .map(|(name, _)| xxh64(name.as_ref().as_bytes(), SEED))
        .collect();
    let hash = |owner: &u32| match *owner {
        NOBODY => 0,
        owner => hashes.get(owner as usize - 1).copied().unwrap_or(0),
    };
    let bytes: Vec<u8> = live
        .iter()
        .flat_map(|owner| hash(owner).to_le_bytes())
        .collect();
    hex(&bytes)
}

/// Hash of the inputs, a line each.
fn inputs(node: &DigestNode, service: &ServiceDigest) -> String {
    let flows = &service.flows;
    let mut text = format!(
        "{}\n{} {} {} {}\n{} {} {} {} {}\n",
        node.hash_seed,
        service.address,
        service.protocol,
        service.port,
        service.mode,
        flows.tracking,
        flows.on_down,
        flows.drain_timeout_ms,
        flows.udp_settle_ms,
        flows.slow_start_ms,
    );
    // Of an older `lbd`, which knows nothing else, the hash is the same.
    if service.hash != Hash::default().as_str() {
        let _ = writeln!(text, "hash {}", service.hash);
    }
    for backend in &service.backends {
        let _ = writeln!(
            text,
            "{} {} {} {} {}",
            backend.name, backend.address, backend.weight, backend.drain, backend.availability
        );
    }
    // Only where there is some: older versions know nothing of it.
    if !service.quic.is_empty() {
        let _ = writeln!(text, "quic {}", service.quic);
    }
    for backend in service.backends.iter().filter(|b| !b.server_id.is_empty()) {
        let _ = writeln!(text, "{} {}", backend.name, backend.server_id);
    }
    hex(text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    format!("{:016x}", xxh64(bytes, SEED))
}
