//! What the data plane should hold: the desired state with every choice made, but without indexes.

use super::{Facts, select::select};
use crate::{
    neighbour::ResolvedHop,
    spec::{Backend, Service, State},
};
use lb_common::{
    backend::{BackendEntry, NextHop},
    service::ServiceKey,
};
use std::collections::BTreeMap;
use xxhash_rust::xxh64::xxh64;

/// Everything the data plane should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Services by key.
    pub services: BTreeMap<ServiceKey, TargetService>,
}

/// One service of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetService {
    /// Its name.
    pub name: String,
    /// All its backends, in order of name.
    pub backends: Vec<TargetBackend>,
}

/// One backend of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetBackend {
    /// Its name: what its slots follow from.
    pub name: String,
    /// Its weight while it gets traffic, else 0.
    pub weight: u16,
    /// Its map entry; `generation` is 0 and filled in with the index. Without a next hop if it has none.
    pub entry: BackendEntry,
}

/// Key of a service in the services map.
pub fn service_key(service: &Service) -> ServiceKey {
    ServiceKey::new(
        service.address.into(),
        service.protocol.number(),
        service.port,
    )
}

/// What tells a backend entry apart for good. Changing the address or the mode makes it another one, so that an
/// entry's identity never changes while slots name it.
pub fn backend_id(service: &Service, backend: &Backend) -> u64 {
    let text = format!(
        "{}\0{}\0{}\0{}",
        service.name, backend.name, backend.address, service.mode as u8
    );
    xxh64(text.as_bytes(), 0)
}

/// The target of a state.
pub fn target(state: &State, facts: &Facts) -> Target {
    let services = state.services.values();
    Target {
        services: services
            .map(|service| (service_key(service), target_service(service, facts)))
            .collect(),
    }
}

fn target_service(service: &Service, facts: &Facts) -> TargetService {
    let selection = select(service, facts);
    let backends = service.backends.values().map(|backend| {
        let active = selection
            .backends
            .get(&backend.name)
            .is_some_and(Result::is_ok);
        // Also a backend that gets no slots has its next hop kept: the last packets on their way to it still find it.
        let hop = facts
            .next_hops
            .get(&backend.address)
            .and_then(|hop| hop.as_ref().ok());
        TargetBackend {
            name: backend.name.to_string(),
            weight: if active { backend.weight } else { 0 },
            entry: entry(service, backend, hop),
        }
    });
    TargetService {
        name: service.name.to_string(),
        backends: backends.collect(),
    }
}

fn entry(service: &Service, backend: &Backend, hop: Option<&ResolvedHop>) -> BackendEntry {
    let identity = BackendEntry {
        address: backend.address.into(),
        mode: service.mode as u8,
        id: backend_id(service, backend),
        ..BackendEntry::default()
    };
    match hop {
        None => identity,
        Some(hop) => BackendEntry {
            next_hop: NextHop::new(hop.mac),
            outer_source: hop.source.into(),
            interface: hop.interface,
            mtu: hop.mtu,
            ..identity
        },
    }
}
