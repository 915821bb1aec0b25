//! What a change of the desired state does to the tables and to established flows, computed before it is made.

mod flows;
#[cfg(test)]
mod tests;
mod warnings;

use crate::{
    api::protocol::TableChange,
    health::state::HealthState,
    neighbour::ResolvedHop,
    overlay::{Availability, NOBODY},
    plan::{
        Facts,
        roster::{Enrolled, Roster},
        select::{Condition, select},
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

/// The consequences of going from one state to another, each with its roster. New backends are taken to be up and reachable,
/// because that is where the change leads once they have been probed. `now`: flows of removed backends do not get the drain timeout.
pub fn impact(
    before: (&State, &Roster),
    after: (&State, &Roster),
    facts: &Facts,
    now: bool,
) -> Impact {
    let hopeful = assume_well(after.0, facts);
    let mut impact = Impact::default();
    let by_key: HashMap<ServiceKey, (&Service, &Enrolled)> = services(before)
        .map(|(service, enrolled)| (enrolled.key, (service, enrolled)))
        .collect();
    let mut gone = by_key.clone();
    for (service, enrolled) in services(after) {
        gone.remove(&enrolled.key);
        let old = by_key.get(&enrolled.key).copied();
        if old.is_some_and(|(old, _)| old == service) {
            continue;
        }
        let view = View::new(service, enrolled, &hopeful);
        let old_view = old.map(|(old, enrolled)| View::new(old, enrolled, facts));
        impact.tables.extend(match &old_view {
            None => added(&view),
            Some(old) => changed(old, &view, now),
        });
        let warning = warnings::warning(old_view.as_ref(), &view, now);
        impact.warnings.extend(warning);
        let connections = old.and_then(|(old, _)| warnings::of_connections(old, service));
        impact.warnings.extend(connections);
    }
    let gone = gone.into_values();
    impact
        .tables
        .extend(gone.map(|(service, _)| removed(service)));
    impact.tables.sort_by(|a, b| a.service.cmp(&b.service));
    impact
}

/// The services of a state, with what its roster has of them; both are in order of name.
fn services<'a>(
    (state, roster): (&'a State, &'a Roster),
) -> impl Iterator<Item = (&'a Service, &'a Enrolled)> {
    state.services.values().zip(roster.services.values())
}

/// A service as its table follows from it.
struct View<'a> {
    service: &'a Service,
    enrolled: &'a Enrolled,
    /// The backends that have a weight, in order of name.
    members: Vec<&'a Backend>,
    /// How available each of them is.
    availability: Vec<Availability>,
    condition: Condition,
}

impl<'a> View<'a> {
    fn new(service: &'a Service, enrolled: &'a Enrolled, facts: &Facts) -> Self {
        let members: Vec<&Backend> = service
            .backends
            .values()
            .filter(|backend| backend.weight > 0)
            .collect();
        let (condition, availability) = availability(service, &members, facts);
        Self {
            service,
            enrolled,
            members,
            availability,
            condition,
        }
    }

    /// The id of each member.
    fn ids(&self) -> Vec<u64> {
        let backends = self.service.backends.values().zip(&self.enrolled.ids);
        let members = backends.filter(|(backend, _)| backend.weight > 0);
        members.map(|(_, id)| *id).collect()
    }

    /// The member that owns each slot.
    fn owners(&self) -> Vec<u32> {
        let overlay = self.enrolled.members.overlay();
        overlay.live(&self.availability)
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
    let is_same = old_ids == new_ids && old.enrolled.members == new.enrolled.members;
    if is_same && old.availability == new.availability {
        return None;
    }
    let mut numbers = Numbers::default();
    let (old_numbers, new_numbers) = (numbers.of(&old_ids), numbers.of(&new_ids));
    let mut balance = vec![0_i64; numbers.count()];
    let mut moved_from = vec![0_u32; numbers.count()];
    for (before, after) in owners(old, new, is_same) {
        let (before, after) = (old_numbers[before as usize], new_numbers[after as usize]);
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

/// The owners before and after of each slot that can change. `is_same`: both have the same members.
fn owners(old: &View<'_>, new: &View<'_>, is_same: bool) -> Vec<(u32, u32)> {
    if !is_same {
        return old.owners().into_iter().zip(new.owners()).collect();
    }
    // The same slots in the same order, there and back.
    let overlay = new.enrolled.members.overlay();
    let after = overlay.update(&old.availability, &new.availability);
    let before = overlay.update(&new.availability, &old.availability);
    let both = before.into_iter().zip(after);
    both.map(|((_, before), (_, after))| (before, after))
        .collect()
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
