//! QUIC: which backend a packet's destination connection ID names (draft-ietf-quic-load-balancers-19, plaintext; RFC 8999).

use super::{Model, bytes::byte};
use lb_common::{
    flow_table::FlowEvent,
    quic::{ServerEntry, ServerKey},
};
use std::collections::{BTreeMap, HashMap};

/// How the connection IDs of a service are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    rotation: u8,
    server: usize,
}

impl Config {
    /// Of the flags of a service's entry: 4 asks for it, bits 8 to 11 are the length of a server ID, 12 to 14 the rotation.
    pub fn of(flags: u32) -> Option<Self> {
        (flags & 4 != 0).then_some(Self {
            rotation: (flags >> 12 & 7) as u8,
            server: (flags >> 8 & 15) as usize,
        })
    }
}

/// Who has which server ID of which service.
pub type Servers = HashMap<(u32, Vec<u8>), ServerEntry>;

/// The servers in the program's map.
pub fn servers(all: &BTreeMap<ServerKey, ServerEntry>) -> Servers {
    let octets = |key: &ServerKey| key.id.to_be_bytes()[8 - key.length as usize..].to_vec();
    all.iter()
        .map(|(key, entry)| ((key.service, octets(key)), *entry))
        .collect()
}

impl Model {
    /// The backend that a UDP packet's connection ID names, or why it names none.
    pub(super) fn named(
        &self,
        service: u32,
        config: Config,
        datagram: &[u8],
    ) -> Result<u32, FlowEvent> {
        let quic = datagram.get(8..).unwrap_or_default();
        let id = connection_id(quic).ok_or(FlowEvent::QuicShort)?;
        let server = id.get(1..=config.server).ok_or(FlowEvent::QuicShort)?;
        if id[0] / 32 != config.rotation {
            return Err(FlowEvent::QuicOtherConfig);
        }
        let entry = self.servers.get(&(service, server.to_vec()));
        let entry = entry.ok_or(FlowEvent::QuicUnknown)?;
        match self.backends.get(&entry.backend) {
            Some(backend) if backend.keeps_flows_of(entry.generation) => Ok(entry.backend),
            Some(_) | None => Err(FlowEvent::QuicGone),
        }
    }
}

/// As much of the connection ID as is in the packet; of a short header all that follows, for it does not say where the ID ends.
fn connection_id(quic: &[u8]) -> Option<&[u8]> {
    if byte(quic, 0)? < 0x80 {
        return quic.get(1..);
    }
    let length = usize::from(byte(quic, 5)?);
    let rest = quic.get(6..)?;
    rest.get(..length).or(Some(rest))
}
