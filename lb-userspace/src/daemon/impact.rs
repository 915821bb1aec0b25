//! What a change of the desired state does to the tables and to established flows, computed before it is made.

mod flows;
#[cfg(test)]
mod tests;
mod warnings;

use crate::{
    api::protocol::TableChange,
    health::state::HealthState,
    neighbour::ResolvedHop,
    overlay::{Availability, NOBODY, Overlay},
    plan::{
        Facts,
        select::{Condition, select},
        target::{backend_id, service_key},
    },
    spec::{Backend, Service, State},
};
use lb_common::{limits::SLOTS, service::ServiceKey};
use std::{collections::HashMap, net::IpAddr};

/// Consequences of a change.
#[derive(Debug, Default)]
pub struct Impact {
    /// Services whose table changes, in order of name.
    pub tables: Vec<TableChange>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// The consequences of going from one state to another. New backends are taken to be up and reachable, because that
/// is where the change leads once they have been probed. `now`: flows of removed backends do not get the drain timeout.
pub fn impact(before: &State, after: &State, facts: &Facts, now: bool) -> Impact {
    let hopeful = assume_well(after, facts);
    let mut impact = Impact::default();
    let by_key: HashMap<ServiceKey, &Service> = before
        .services
        .values()
        .map(|service| (service_key(service), service))
        .collect();
    let mut gone = by_key.clone();
    for service in after.services.values() {
        let key = service_key(service);
        gone.remove(&key);
        let old = by_key.get(&key).copied();
        if old == Some(service) {
            continue;
        }
        let view = View::new(service, &hopeful);
        let old_view = old.map(|old| View::new(old, facts));
        impact.tables.extend(match &old_view {
            None => added(&view),
            Some(old) => changed(old, &view, now),
        });
        let warning = warnings::warning(old_view.as_ref(), &view, now);
        impact.warnings.extend(warning);
        let connections = old.and_then(|old| warnings::of_connections(old, service));
        impact.warnings.extend(connections);
    }
    impact.tables.extend(gone.into_values().map(removed));
    impact.tables.sort_by(|a, b| a.service.cmp(&b.service));
    impact
}

/// A service as its table follows from it.
struct View<'a> {
    service: &'a Service,
    /// The backends that have a weight, in order of name.
    members: Vec<&'a Backend>,
    /// How available each of them is.
    availability: Vec<Availability>,
    condition: Condition,
}

impl<'a> View<'a> {
    fn new(service: &'a Service, facts: &Facts) -> Self {
        let members: Vec<&Backend> = service
            .backends
            .values()
            .filter(|backend| backend.weight > 0)
            .collect();
        let (condition, availability) = availability(service, &members, facts);
        Self {
            service,
            members,
            availability,
            condition,
        }
    }

    fn ids(&self) -> Vec<u64> {
        let id = |backend: &&Backend| backend_id(self.service, backend);
        self.members.iter().map(id).collect()
    }

    fn shape(&self) -> Vec<(String, u16)> {
        let shape = |backend: &&Backend| (backend.name.to_string(), backend.weight);
        self.members.iter().map(shape).collect()
    }

    /// Whether any backend takes new flows.
    fn is_served(&self) -> bool {
        self.availability
            .iter()
            .any(|availability| *availability > Availability::NONE)
    }
}

/// How available each member of a service is to new flows, and how the service stands.
fn availability(
    service: &Service,
    members: &[&Backend],
    facts: &Facts,
) -> (Condition, Vec<Availability>) {
    let selection = select(service, facts);
    let chosen = |backend: &&Backend| selection.availability(&backend.name);
    let availability = members.iter().map(chosen).collect();
    (selection.condition, availability)
}

/// A service that was not there before: all its slots get an owner, and no flow is established.
fn added(view: &View<'_>) -> Option<TableChange> {
    view.is_served().then(|| TableChange {
        service: view.service.name.to_string(),
        slots_changed: SLOTS,
        necessary: SLOTS,
        new_flows_basis_points: 10_000,
        old_flows: "there are none yet".into(),
        ..TableChange::default()
    })
}

/// A service that is gone: its packets are no longer the balancer's.
fn removed(service: &Service) -> TableChange {
    TableChange {
        service: service.name.to_string(),
        slots_changed: SLOTS,
        necessary: SLOTS,
        new_flows_basis_points: 10_000,
        lost_slots: SLOTS,
        old_flows: "all end at once, with the service".into(),
        ..TableChange::default()
    }
}

/// A service that was there before; nothing if no slot changes its owner.
fn changed(old: &View<'_>, new: &View<'_>, now: bool) -> Option<TableChange> {
    let (old_ids, new_ids) = (old.ids(), new.ids());
    let (old_shape, new_shape) = (old.shape(), new.shape());
    if old_ids == new_ids && old_shape == new_shape && old.availability == new.availability {
        return None;
    }
    let overlay = Overlay::new(&new_shape);
    let after = overlay.live(&new.availability);
    let before = if old_shape == new_shape {
        overlay.live(&old.availability)
    } else {
        Overlay::new(&old_shape).live(&old.availability)
    };
    let mut numbers = Numbers::default();
    let (old_numbers, new_numbers) = (numbers.of(&old_ids), numbers.of(&new_ids));
    let mut balance = vec![0_i64; numbers.count()];
    let mut moved_from = vec![0_u32; numbers.count()];
    for (before, after) in before.iter().zip(&after) {
        let (before, after) = (old_numbers[*before as usize], new_numbers[*after as usize]);
        if before != after {
            balance[before] -= 1;
            balance[after] += 1;
            moved_from[before] += 1;
        }
    }
    let slots_changed: u32 = moved_from.iter().sum();
    if slots_changed == 0 {
        return None;
    }
    let necessary = balance.iter().filter(|gain| **gain > 0).sum::<i64>() as u32;
    // By member of before; what nobody owned has no flows.
    let moved: Vec<u32> = old_numbers[1..].iter().map(|n| moved_from[*n]).collect();
    let fate = flows::fate(old, new, &moved, now);
    Some(TableChange {
        service: new.service.name.to_string(),
        slots_changed,
        necessary,
        collateral: slots_changed - necessary,
        new_flows_basis_points: flows::basis_points(slots_changed),
        expiring_slots: fate.expiring,
        lost_slots: fate.lost,
        old_flows: fate.sentence(new.service),
        seconds: fate.seconds(new.service),
    })
}

/// Numbers for backends, so that positions in two tables can be compared. Nobody is 0.
#[derive(Default)]
struct Numbers(HashMap<u64, usize>);

impl Numbers {
    /// The number of each position in a table of these backends.
    fn of(&mut self, ids: &[u64]) -> Vec<usize> {
        let mut numbers = vec![NOBODY as usize];
        for id in ids {
            let next = self.count();
            numbers.push(*self.0.entry(*id).or_insert(next));
        }
        numbers
    }

    /// One more than the highest number.
    fn count(&self) -> usize {
        self.0.len() + 1
    }
}

/// Facts in which whatever is not known yet is well.
fn assume_well(state: &State, facts: &Facts) -> Facts {
    let mut hopeful = facts.clone();
    let interface = facts.interfaces.first().copied().unwrap_or(0);
    hopeful.interfaces.insert(interface);
    let hop = ResolvedHop {
        mac: [2; 6],
        interface,
        interface_name: String::new(),
        gateway: None,
        source: IpAddr::from([0, 0, 0, 0]),
        mtu: u16::MAX,
    };
    for service in state.services.values() {
        for backend in service.backends.values() {
            let id = super::target_id(service, backend);
            hopeful.health.entry(id).or_insert(HealthState::Up);
            hopeful
                .next_hops
                .entry(backend.address)
                .or_insert_with(|| Ok(hop.clone()));
        }
    }
    hopeful
}
