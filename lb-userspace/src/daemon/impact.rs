//! What a change of the desired state does to the tables, computed before it is made.

use crate::{
    api::protocol::TableChange,
    health::state::HealthState,
    maglev::{self, Member},
    neighbour::ResolvedHop,
    plan::{
        Facts,
        select::select,
        target::{backend_id, service_key},
    },
    spec::{Service, State},
};
use lb_common::limits::SLOTS;
use std::{collections::BTreeMap, net::IpAddr};

/// Consequences of a change.
#[derive(Debug, Default)]
pub struct Impact {
    /// Services whose table changes, in order of name.
    pub tables: Vec<TableChange>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// The consequences of going from one state to another. New backends are taken to be up and reachable, because that
/// is where the change leads once they have been probed.
pub fn impact(before: &State, after: &State, facts: &Facts) -> Impact {
    let hopeful = assume_well(after, facts);
    let mut impact = Impact::default();
    for service in after.services.values() {
        let old = before
            .services
            .values()
            .find(|old| service_key(old) == service_key(service));
        if old == Some(service) {
            continue;
        }
        let slots_changed = slots_changed(old, facts, service, &hopeful);
        if slots_changed > 0 {
            impact.tables.push(TableChange {
                service: service.name.to_string(),
                slots_changed,
            });
        }
        impact.warnings.extend(warning(service));
    }
    for service in before.services.values() {
        if !after
            .services
            .values()
            .any(|new| service_key(new) == service_key(service))
        {
            impact.tables.push(TableChange {
                service: service.name.to_string(),
                slots_changed: SLOTS,
            });
        }
    }
    impact.tables.sort_by(|a, b| a.service.cmp(&b.service));
    impact
}

/// Something about a service that is allowed and hardly meant.
fn warning(service: &Service) -> Option<String> {
    if service.backends.is_empty() {
        return Some(format!(
            "service {} has no backends yet: its packets are dropped until one is added (lbctl backend add)",
            service.name
        ));
    }
    let idle = service.backends.values().all(|backend| backend.weight == 0);
    idle.then(|| {
        format!(
            "every backend of service {} has weight 0: its packets will be dropped",
            service.name
        )
    })
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
        mtu: 0,
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

fn slots_changed(
    old: Option<&Service>,
    old_facts: &Facts,
    new: &Service,
    new_facts: &Facts,
) -> u32 {
    let mut numbers = BTreeMap::new();
    let after = owners(new, new_facts, &mut numbers);
    let before = old
        .map(|old| owners(old, old_facts, &mut numbers))
        .unwrap_or_default();
    let before = before
        .into_iter()
        .chain(std::iter::repeat(maglev::NO_OWNER));
    after
        .into_iter()
        .zip(before)
        .filter(|(after, before)| after != before)
        .count() as u32
}

/// The service's table, with owners numbered as they are met.
fn owners(service: &Service, facts: &Facts, numbers: &mut BTreeMap<u64, u32>) -> Vec<u32> {
    let selection = select(service, facts);
    let active = service
        .backends
        .values()
        .filter(|b| selection.backends.get(&b.name).is_some_and(Result::is_ok));
    let members: Vec<Member<'_>> = active
        .map(|backend| {
            let next = numbers.len() as u32 + 1;
            let owner = *numbers.entry(backend_id(service, backend)).or_insert(next);
            Member {
                name: backend.name.as_str(),
                weight: backend.weight,
                owner,
            }
        })
        .collect();
    maglev::table(&members)
}
