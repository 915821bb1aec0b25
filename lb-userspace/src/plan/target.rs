//! What the data plane should hold: the desired state with every choice made, but without indexes.

use super::{Facts, departure, select::select};
use crate::{
    neighbour::ResolvedHop,
    overlay::Availability,
    spec::{Backend, FlowPolicy, ServerId, Service, State},
};
use lb_common::{
    backend::{BackendEntry, Mode, NextHop},
    quic::QuicConfig,
    service::{ServiceEntry, ServiceKey},
};
use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, time::Duration};
use xxhash_rust::xxh64::xxh64;

/// Everything the data plane should hold.
#[derive(Debug)]
pub struct Target<'a> {
    /// Services by key.
    pub services: BTreeMap<ServiceKey, TargetService>,
    /// One entry for each address that services have.
    pub addresses: BTreeMap<ServiceKey, ServiceEntry>,
    facts: &'a Facts,
}

impl Target<'_> {
    /// CLOCK_MONOTONIC.
    pub const fn now(&self) -> Duration {
        self.facts.now
    }

    /// What the entry of a backend that the desired state does not have should be, from what it is: while its flows are not
    /// given up, its next hop is kept current.
    pub fn leaver(&self, old: &BackendEntry) -> BackendEntry {
        let lost = departure::has_left(old.id, self.facts);
        let hop = self.facts.next_hops.get(&IpAddr::from(old.address));
        let entry = match hop {
            Some(Ok(hop)) => with_hop(*old, hop, self.facts),
            Some(Err(_)) | None => *old,
        };
        entry.with_lost(lost)
    }
}

/// One service of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetService {
    /// Its name.
    pub name: String,
    /// Flags of its entry.
    pub flags: u32,
    /// What becomes of its flows.
    pub policy: FlowPolicy,
    /// How its connection IDs are read.
    pub quic: Option<QuicConfig>,
    /// All its backends, in order of name.
    pub backends: Vec<TargetBackend>,
}

/// One backend of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetBackend {
    /// Its name: what its slots follow from.
    pub name: String,
    /// Its weight.
    pub weight: u16,
    /// Which share of its slots it takes.
    pub availability: Availability,
    /// Its map entry; `generation` is 0 and filled in with the index. Without a next hop if it has none; marked as lost if its
    /// flows are given up.
    pub entry: BackendEntry,
    /// In the connection IDs that it issues.
    pub server_id: Option<ServerId>,
}

/// Key of a service in the services map.
pub fn service_key(service: &Service) -> ServiceKey {
    let (protocol, port) = (service.protocol.number(), service.port);
    let key = ServiceKey::new(service.address.address().into(), protocol, port);
    if service.address.is_address() {
        key
    } else {
        key.within(service.address.mapped().0 as u8)
    }
}

/// What tells a backend entry apart for good. Changing the address, the mode or its port makes it another one, so that an
/// entry's identity never changes while slots name it.
pub fn backend_id(service: &Service, backend: &Backend) -> u64 {
    let mut text = format!(
        "{}\0{}\0{}\0{}",
        service.name, backend.name, backend.address, service.mode as u8
    );
    if let Some(port) = service.gue_port {
        let _ = write!(text, "\0{port}");
    }
    xxh64(text.as_bytes(), 0)
}

/// The target of a state.
pub fn target<'a>(state: &State, facts: &'a Facts) -> Target<'a> {
    let services = state.services.values();
    Target {
        services: services
            .map(|service| (service_key(service), target_service(service, facts)))
            .collect(),
        addresses: addresses(state),
        facts,
    }
}

/// The entries of the services' addresses.
fn addresses(state: &State) -> BTreeMap<ServiceKey, ServiceEntry> {
    let mut addresses: BTreeMap<ServiceKey, ServiceEntry> = BTreeMap::new();
    for service in state.services.values() {
        let key = service_key(service).its_address();
        let entry = addresses.entry(key).or_default();
        entry.flags |= ServiceEntry::prefix_flags(key.prefix);
        if service.echo {
            entry.flags |= ServiceEntry::ECHO;
        }
    }
    addresses
}

fn target_service(service: &Service, facts: &Facts) -> TargetService {
    let selection = select(service, facts);
    let backends = service.backends.values().map(|backend| {
        // Also a backend that gets no slots has its next hop kept: the last packets on their way to it still find it.
        let hop = facts
            .next_hops
            .get(&backend.address)
            .and_then(|hop| hop.as_ref().ok());
        let lost = departure::is_gone(service, backend, &selection, facts);
        TargetBackend {
            name: backend.name.to_string(),
            weight: backend.weight,
            availability: selection.availability(&backend.name),
            entry: entry(service, backend, hop, facts).with_lost(lost),
            server_id: backend.server_id,
        }
    });
    TargetService {
        name: service.name.to_string(),
        flags: service.hash.flags()
            | service.quic.map_or(0, ServiceEntry::quic_flags)
            | ServiceEntry::prefix_flags(service_key(service).prefix),
        policy: service.flows,
        quic: service.quic,
        backends: backends.collect(),
    }
}

fn entry(
    service: &Service,
    backend: &Backend,
    hop: Option<&ResolvedHop>,
    facts: &Facts,
) -> BackendEntry {
    let identity = BackendEntry {
        address: backend.address.into(),
        mode: service.mode as u8,
        port: service.gue_port.unwrap_or(0).to_be(),
        id: backend_id(service, backend),
        ..BackendEntry::default()
    };
    hop.map_or(identity, |hop| with_hop(identity, hop, facts))
}

fn with_hop(entry: BackendEntry, hop: &ResolvedHop, facts: &Facts) -> BackendEntry {
    // An entry of a mode that is not known is not one that the program sends by.
    let mode = Mode::from_u8(entry.mode).unwrap_or(Mode::L2);
    let (source, filled) = facts
        .outer_source
        .towards(entry.address.into(), mode, hop.source);
    BackendEntry {
        next_hop: NextHop::new(hop.mac),
        outer_source: source,
        interface: hop.interface,
        mtu: hop.mtu,
        flags: if filled { BackendEntry::ENTROPY } else { 0 },
        ..entry
    }
}
