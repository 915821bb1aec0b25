//! What the data plane should hold: the desired state with every choice made, but without indexes.

use super::{
    Facts, Scope, departure,
    mirror::Mirror,
    roster::{Enrolled, Members, Roster},
    select::{Selection, select},
};
use crate::{
    neighbour::ResolvedHop,
    overlay::Availability,
    spec::{Backend, FlowPolicy, Name, ServerId, Service, State},
};
use lb_common::{
    backend::{BackendEntry, Mode, NextHop},
    quic::QuicConfig,
    service::{ServiceEntry, ServiceKey},
};
use rustc_hash::FxHashSet;
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use xxhash_rust::xxh64::Xxh64;

/// A service with what has been chosen for it now.
#[derive(Debug)]
pub struct Choice<'a> {
    /// The service.
    pub service: &'a Service,
    /// What follows from the desired state alone.
    pub enrolled: &'a Enrolled,
    /// Which of its backends get traffic.
    pub selection: Selection,
}

impl<'a> Choice<'a> {
    /// Each backend with its id and whether it gets no traffic at all.
    pub fn backends(&self) -> impl Iterator<Item = (&'a Backend, u64, Availability)> {
        let ids = self.enrolled.ids.iter().copied();
        let chosen = self.selection.backends().iter();
        let backends = self.service.backends.values();
        backends
            .zip(ids)
            .zip(chosen)
            .map(|((backend, id), chosen)| (backend, id, chosen.availability))
    }
}

/// The choices for the services in scope, in order of name. The roster is that of the state.
pub fn choices<'a>(
    state: &'a State,
    roster: &'a Roster,
    facts: &Facts,
    scope: &Scope,
) -> Vec<Choice<'a>> {
    let choice = |service: &'a Service| {
        Some(Choice {
            service,
            enrolled: roster.services.get(&service.name)?,
            selection: select(service, facts),
        })
    };
    match scope {
        Scope::All => state.services.values().filter_map(choice).collect(),
        Scope::Services(names) => {
            let services = names.iter().filter_map(|name| state.services.get(name));
            services.filter_map(choice).collect()
        }
    }
}

/// What the data plane should hold.
#[derive(Debug)]
pub struct Target<'a> {
    /// Services by key.
    pub services: BTreeMap<ServiceKey, TargetService<'a>>,
    /// Nothing if the target has not all services.
    pub whole: Option<Whole<'a>>,
    facts: &'a Facts,
}

/// What only all services together tell.
#[derive(Debug)]
pub struct Whole<'a> {
    /// One entry for each address that services have.
    pub addresses: BTreeMap<ServiceKey, ServiceEntry>,
    /// Ids of all backends.
    pub ids: &'a FxHashSet<u64>,
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
#[derive(Debug)]
pub struct TargetService<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Flags of its entry.
    pub flags: u32,
    /// What becomes of its flows.
    pub policy: FlowPolicy,
    /// How its connection IDs are read.
    pub quic: Option<QuicConfig>,
    /// The backends that have a weight.
    pub members: &'a Arc<Members>,
    /// All its backends, in order of name.
    pub backends: Vec<TargetBackend<'a>>,
}

/// One backend of the target.
#[derive(Debug)]
pub struct TargetBackend<'a> {
    /// Its name: what its slots follow from.
    pub name: &'a Name,
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
    let mut identity = Identity(Xxh64::new(0));
    identity.add(service.name.as_str());
    identity.add("\0");
    identity.add(backend.name.as_str());
    identity.add("\0");
    // What is common is spelled without the machinery of formatting: there may be very many backends.
    match backend.address {
        IpAddr::V4(address) => {
            for (byte, dot) in address.octets().into_iter().zip(["", ".", ".", "."]) {
                identity.add(dot);
                identity.number(byte);
            }
        }
        IpAddr::V6(address) => {
            let _ = write!(identity, "{address}");
        }
    }
    identity.add("\0");
    identity.number(service.mode as u8);
    if let Some(port) = service.gue_port {
        let _ = write!(identity, "\0{port}");
    }
    identity.0.digest()
}

/// A hash of text.
struct Identity(Xxh64);

impl Identity {
    fn add(&mut self, text: &str) {
        self.0.update(text.as_bytes());
    }

    /// Adds a number as decimal text.
    fn number(&mut self, number: u8) {
        let digits = [number / 100, number / 10 % 10, number % 10].map(|digit| b'0' + digit);
        let leading = usize::from(number < 100) + usize::from(number < 10);
        self.0.update(digits.get(leading..).unwrap_or_default());
    }
}

impl fmt::Write for Identity {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.add(text);
        Ok(())
    }
}

/// Chooses, brings the departures up to date with that, and says what the data plane should hold then. The roster is that of the
/// state.
pub fn wanted<'a>(
    state: &'a State,
    roster: &'a Roster,
    facts: &'a mut Facts,
    mirror: &Mirror,
    scope: &Scope,
) -> Target<'a> {
    let choices = choices(state, roster, facts, scope);
    let whole = (*scope == Scope::All).then_some((state, roster));
    departure::follow(&choices, whole, facts, mirror);
    target(&choices, whole, facts)
}

/// The target of choices. `whole`: the state and roster that they are all of, unless there are others.
pub fn target<'a>(
    choices: &[Choice<'a>],
    whole: Option<(&State, &'a Roster)>,
    facts: &'a Facts,
) -> Target<'a> {
    let services = choices.iter();
    Target {
        services: services
            .map(|choice| (choice.enrolled.key, target_service(choice, facts)))
            .collect(),
        whole: whole.map(|(state, roster)| Whole {
            addresses: addresses(state),
            ids: &roster.ids,
        }),
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

fn target_service<'a>(choice: &Choice<'a>, facts: &Facts) -> TargetService<'a> {
    let service = choice.service;
    let backends = choice.backends().map(|(backend, id, availability)| {
        // Also a backend that gets no slots has its next hop kept: the last packets on their way to it still find it.
        let hop = facts
            .next_hops
            .get(&backend.address)
            .and_then(|hop| hop.as_ref().ok());
        let entry = entry(service, backend, id, hop, facts);
        let idle = availability == Availability::NONE;
        let lost = idle && departure::is_gone(service, backend, id, &choice.selection, facts);
        TargetBackend {
            name: &backend.name,
            weight: backend.weight,
            availability,
            entry: entry.with_lost(lost),
            server_id: backend.server_id,
        }
    });
    TargetService {
        name: &service.name,
        flags: service.hash.flags()
            | service.quic.map_or(0, ServiceEntry::quic_flags)
            | ServiceEntry::prefix_flags(choice.enrolled.key.prefix),
        policy: service.flows,
        quic: service.quic,
        members: &choice.enrolled.members,
        backends: backends.collect(),
    }
}

fn entry(
    service: &Service,
    backend: &Backend,
    id: u64,
    hop: Option<&ResolvedHop>,
    facts: &Facts,
) -> BackendEntry {
    let identity = BackendEntry {
        address: backend.address.into(),
        mode: service.mode as u8,
        port: service.gue_port.unwrap_or(0).to_be(),
        id,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Limits, yaml};
    use xxhash_rust::xxh64::xxh64;

    /// Entries that an earlier daemon wrote are found by their ids.
    #[test]
    fn ids_are_of_names_address_mode_and_port_and_never_change() {
        let text = "services:
- { name: www, address: 10.0.0.1, protocol: tcp, port: 80, backends: [
    { name: a, address: 10.1.0.255 }, { name: b, address: 9.0.90.100 }, { name: c, address: 'fd00::7:0:0:1' }] }
- { name: udp, address: 10.0.0.1, protocol: udp, port: 80, mode: gue, backends: [{ name: d, address: 192.168.1.10 }] }
";
        let spec = yaml::parse(text, "test").unwrap();
        let limits = Limits {
            services: 8,
            backends: 8,
        };
        let state = State::parse(&spec, &limits).unwrap();
        let mut ids = Vec::new();
        for service in state.services.values() {
            for backend in service.backends.values() {
                ids.push(backend_id(service, backend));
            }
        }
        let texts = [
            "udp d 192.168.1.10 3 6080",
            "www a 10.1.0.255 2",
            "www b 9.0.90.100 2",
            "www c fd00::7:0:0:1 2",
        ];
        let with_zeros = |text: &str| xxh64(text.replace(' ', "\0").as_bytes(), 0);
        assert_eq!(ids, texts.map(with_zeros));
    }
}
