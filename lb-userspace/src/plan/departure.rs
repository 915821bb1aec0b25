//! Backends that are on their way out: their old flows stay with them for a while.
//!
//! A backend departs when it is drained, has weight 0, is removed, or fails its probes under `on_down: keep`. Its
//! flows are given up, and it is *gone*, when the service's drain timeout has passed since; at once with `--now` and
//! under `on_down: reset`.

use super::{
    Facts,
    mirror::Mirror,
    roster::Roster,
    select::{Condition, Selection},
    target::Choice,
};
use crate::{
    health::{
        checker::{Target, TargetId},
        state::HealthState,
    },
    overlay::Availability,
    spec::{AllDown, Backend, FlowPolicy, Name, OnDown, Service, State},
};
use lb_common::{backend::BackendEntry, service::ServiceKey};
use rustc_hash::FxHashSet;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// Why a backend departs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `drain`, or weight 0.
    Drained,
    /// It is not in the desired state any more.
    Removed,
    /// It is down, and the service keeps its flows.
    Down,
}

/// A backend on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Why.
    pub reason: Reason,
    /// Its service and its name; unknown for one that a new daemon found in the data plane only.
    pub name: Option<(Name, Name)>,
    /// Its address.
    pub address: IpAddr,
    /// When it began, CLOCK_MONOTONIC.
    pub since: Duration,
    /// When its flows are given up, CLOCK_MONOTONIC.
    pub until: Duration,
    /// The probe that tells whether a removed backend still lives; nothing: not probed, or it stays with its flows.
    pub probe: Option<(TargetId, Target)>,
    /// Whether such a probe is not believed: see `is_believed`.
    pub doubted: bool,
}

/// Departures by backend id.
pub type Departures = BTreeMap<u64, Departure>;

/// Notes the backends that a change of the desired state (each with its roster) removes, `at_once`: without regard for their
/// flows. Those of a removed service have nobody to get packets from.
pub fn remove(
    before: (&State, &Roster),
    after: (&State, &Roster),
    now: Duration,
    at_once: bool,
    departures: &mut Departures,
) {
    let keys = after.1.services.values().map(|enrolled| enrolled.key);
    let keys: FxHashSet<ServiceKey> = keys.collect();
    for (service, enrolled) in before.0.services.values().zip(before.1.services.values()) {
        let stays = keys.contains(&enrolled.key);
        for (backend, id) in service.backends.values().zip(&enrolled.ids) {
            if after.1.ids.contains(id) {
                continue;
            }
            let begun = departures.get(id).map_or(now, |departure| departure.since);
            let until = if at_once || !stays {
                now
            } else {
                begun.saturating_add(service.flows.drain_timeout)
            };
            departures.insert(
                *id,
                Departure {
                    reason: Reason::Removed,
                    name: Some((service.name.clone(), backend.name.clone())),
                    address: backend.address,
                    since: begun,
                    until,
                    probe: probe(service, backend),
                    doubted: false,
                },
            );
        }
    }
    part_probes(after.0, departures);
}

/// Verdicts have the name of a backend, whatever its address: one that is removed is not probed while its name has another
/// address, or had one later.
fn part_probes(state: &State, departures: &mut Departures) {
    let mut latest: BTreeMap<TargetId, (Duration, IpAddr)> = BTreeMap::new();
    for departure in departures.values() {
        if let Some((id, target)) = &departure.probe {
            let one = (departure.since, target.address);
            let last = latest.entry(id.clone()).or_insert(one);
            *last = one.max(*last);
        }
    }
    for departure in departures.values_mut() {
        let is_other = |(id, target): &mut (TargetId, Target)| {
            let service = state.services.get(&id.service);
            let configured = service.and_then(|service| service.backends.get(&id.backend));
            let address = configured.map(|backend| backend.address);
            let latest = latest.get(id).map(|(_, address)| *address);
            address.or(latest) != Some(target.address)
        };
        departure.probe.take_if(is_other);
    }
}

fn probe(service: &Service, backend: &Backend) -> Option<(TargetId, Target)> {
    let check = service
        .health
        .clone()
        .filter(|_| service.flows.on_down == OnDown::Reset)?;
    let id = TargetId {
        service: service.name.clone(),
        backend: backend.name.clone(),
    };
    Some((
        id,
        Target {
            address: backend.address,
            check,
            initial: HealthState::Up,
        },
    ))
}

/// Brings the departures up to date with what is chosen, the facts and what the data plane holds. `whole`: the state and roster
/// that the choices are all of, unless there are others.
pub fn follow(
    choices: &[Choice<'_>],
    whole: Option<(&State, &Roster)>,
    facts: &mut Facts,
    mirror: &Mirror,
) {
    let mut departures = std::mem::take(&mut facts.departures);
    if let Some((state, roster)) = whole {
        follow_removed(state, &roster.ids, &mut departures, facts.now, mirror);
    }
    for departure in departures.values_mut() {
        let probed = departure.probe.as_ref().map(|(id, _)| &id.service);
        let place = probed.map(|name| choices.binary_search_by(|one| one.service.name.cmp(name)));
        if let Some(Ok(place)) = place {
            let choice = &choices[place];
            departure.doubted = !is_believed(choice.service, &choice.selection);
        }
    }
    for choice in choices {
        follow_choice(choice, &mut departures, facts, mirror);
    }
    facts.departures = departures;
}

/// Takes in which backends the desired state does not have (any more), and which it has again.
fn follow_removed(
    state: &State,
    configured: &FxHashSet<u64>,
    departures: &mut Departures,
    now: Duration,
    mirror: &Mirror,
) {
    departures.retain(|id, departure| match departure.reason {
        Reason::Removed => mirror.index_of.contains_key(id) && !configured.contains(id),
        Reason::Drained | Reason::Down => configured.contains(id),
    });
    // Whose it was is not known any more: nobody's flows get less time than they are promised.
    let patience = state
        .services
        .values()
        .map(|service| service.flows.drain_timeout)
        .max()
        .unwrap_or(FlowPolicy::default().drain_timeout);
    for entry in mirror
        .backends
        .values()
        .filter(|entry| !configured.contains(&entry.id))
    {
        let until = if is_marked(entry.id, mirror) {
            now
        } else {
            now.saturating_add(patience)
        };
        departures.entry(entry.id).or_insert_with(|| Departure {
            reason: Reason::Removed,
            name: None,
            address: entry.address.into(),
            since: now,
            until,
            probe: None,
            doubted: false,
        });
    }
    part_probes(state, departures);
}

/// Takes in which backends of a service get no new flows, and which do.
fn follow_choice(choice: &Choice<'_>, departures: &mut Departures, facts: &Facts, mirror: &Mirror) {
    let service = choice.service;
    let timeout = service.flows.drain_timeout;
    for (backend, id, availability) in choice.backends() {
        let idle = availability == Availability::NONE;
        let reason = idle.then(|| reason(service, backend, &choice.selection, facts));
        let Some(reason) = reason.flatten() else {
            departures.remove(&id);
            continue;
        };
        let since = match departures.get(&id) {
            Some(departure) => departure.since,
            // From an earlier daemon: its deadline has passed.
            None if is_marked(id, mirror) => facts.now.saturating_sub(timeout),
            None => facts.now,
        };
        departures.insert(
            id,
            Departure {
                reason,
                name: Some((service.name.clone(), backend.name.clone())),
                address: backend.address,
                since,
                until: since.saturating_add(timeout),
                probe: None,
                doubted: false,
            },
        );
    }
}

/// Whether the data plane has a backend marked as one whose flows are given up.
fn is_marked(id: u64, mirror: &Mirror) -> bool {
    let index = mirror.backend_index(id);
    index
        .and_then(|index| mirror.backends.get(&index))
        .is_some_and(|entry| entry.flags & BackendEntry::LOST != 0)
}

/// Whether a backend that fails its probes is taken to be down. When none is up and traffic goes on all the same, a
/// departing backend is no worse than the others.
fn is_believed(service: &Service, selection: &Selection) -> bool {
    match selection.condition {
        Condition::AllDownOpen => false,
        Condition::NoBackends => service.when_all_down == AllDown::Closed,
        Condition::Up | Condition::AllDownClosed | Condition::Starting => true,
    }
}

/// Why a configured backend that gets no new flows departs, if it does.
fn reason(
    service: &Service,
    backend: &Backend,
    selection: &Selection,
    facts: &Facts,
) -> Option<Reason> {
    if backend.drain || backend.weight == 0 {
        return Some(Reason::Drained);
    }
    is_lost(service, backend, selection, facts).then_some(Reason::Down)
}

/// Whether it is known that a backend cannot be reached or does not serve.
fn is_lost(service: &Service, backend: &Backend, selection: &Selection, facts: &Facts) -> bool {
    let id = TargetId {
        service: service.name.clone(),
        backend: backend.name.clone(),
    };
    let down = service.health.is_some()
        && facts.health.get(&id) == Some(&HealthState::Down)
        && is_believed(service, selection);
    down || facts
        .next_hops
        .get(&backend.address)
        .is_some_and(Result::is_err)
}

/// Whether the flows of a configured backend with this id that gets no new ones are given up.
pub fn is_gone(
    service: &Service,
    backend: &Backend,
    id: u64,
    selection: &Selection,
    facts: &Facts,
) -> bool {
    let over = facts
        .departures
        .get(&id)
        .is_some_and(|d| d.until <= facts.now);
    over || service.flows.on_down == OnDown::Reset && is_lost(service, backend, selection, facts)
}

/// Whether the flows of a backend that is not in the desired state are given up.
pub fn has_left(id: u64, facts: &Facts) -> bool {
    facts.departures.get(&id).is_none_or(|departure| {
        let down = |(id, _): &(TargetId, Target)| facts.health.get(id) == Some(&HealthState::Down);
        departure.until <= facts.now
            || !departure.doubted && departure.probe.as_ref().is_some_and(down)
    })
}
