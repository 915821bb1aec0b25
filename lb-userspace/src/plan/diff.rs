//! The difference between the target and the mirror, as ordered steps.

use super::{
    mirror::{Mirror, StoredMember},
    target::{Target, TargetBackend, TargetService},
};
use crate::maglev::{self, Member};
use anyhow::{Context, Result};
use lb_common::{
    backend::BackendEntry,
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
};
use std::collections::{BTreeMap, BTreeSet};

/// Tables that one plan removes at the most: each waits some 10 ms for the kernel, nobody needs them gone at once, and
/// what the plan leaves is the next one's.
const TABLES_REMOVED_AT_ONCE: usize = 8;

/// One write to the data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a backend entry; a new one gets a fresh counter first.
    WriteBackend {
        /// Its index.
        index: u32,
        /// The entry.
        entry: BackendEntry,
        /// Whether the index was free before.
        new: bool,
    },
    /// Create empty slot tables with fresh counters.
    CreateTables {
        /// Service indexes.
        services: Vec<u32>,
    },
    /// Store the slots that differ (none when only the knowledge of the members is new).
    StoreSlots {
        /// Service index.
        service: u32,
        /// Number and word of each slot that differs.
        slots: Vec<(u32, Slot)>,
        /// What the table follows from.
        members: Vec<StoredMember>,
        /// Name of the service, for logs and metrics.
        name: String,
    },
    /// Add a service or change its entry.
    PutService {
        /// Its key.
        key: ServiceKey,
        /// Its entry.
        entry: ServiceEntry,
    },
    /// Remove a service.
    RemoveService {
        /// Its key.
        key: ServiceKey,
    },
    /// Remove the slot table of a removed service.
    RemoveTable {
        /// Service index.
        service: u32,
    },
    /// Clear the entry of a backend that no slot names any more.
    ClearBackend {
        /// Its index.
        index: u32,
    },
}

/// Sizes of the maps: how many indexes there are.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Service indexes, from 0.
    pub services: u32,
    /// Backend indexes, from 1: one less than this.
    pub backends: u32,
}

/// The steps from what the mirror says to the target. `generation` marks backend indexes taken by this plan;
/// `read_slots` reads a table when it has to be compared.
///
/// # Errors
/// When indexes run out, or a table cannot be read.
pub fn diff(
    target: &Target,
    mirror: &Mirror,
    capacity: Capacity,
    generation: u32,
    read_slots: &mut dyn FnMut(u32) -> Result<Vec<Slot>>,
) -> Result<Vec<Step>> {
    let (backend_steps, index_of) = backends(target, mirror, capacity, generation)?;
    let mut free = Free::new(
        mirror.service_cursor,
        0,
        capacity.services,
        mirror.tables.iter().copied(),
    );
    let (mut tables, mut table_steps, mut service_steps) = (Vec::new(), Vec::new(), Vec::new());
    for (key, service) in &target.services {
        let existing = mirror.service_index(key);
        let index = match existing {
            Some(index) => index,
            None => free
                .take()
                .context("the services map is full: raise `limits.services` in the node config")?,
        };
        if !mirror.tables.contains(&index) {
            tables.push(index);
        }
        table_steps.extend(slots(index, service, mirror, &index_of, read_slots)?);
        if existing.is_none() {
            service_steps.push(Step::PutService {
                key: *key,
                entry: ServiceEntry { index, flags: 0 },
            });
        }
    }
    let mut steps = backend_steps;
    if !tables.is_empty() {
        steps.push(Step::CreateTables { services: tables });
    }
    steps.append(&mut table_steps);
    steps.append(&mut service_steps);
    steps.extend(removals(target, mirror, &index_of));
    Ok(steps)
}

/// Steps that write new and changed backend entries, and the index of every backend of the target by id.
fn backends(
    target: &Target,
    mirror: &Mirror,
    capacity: Capacity,
    generation: u32,
) -> Result<(Vec<Step>, BTreeMap<u64, u32>)> {
    let mut free = Free::new(
        mirror.backend_cursor,
        1,
        capacity.backends,
        mirror.backends.keys().copied(),
    );
    let (mut steps, mut index_of) = (Vec::new(), BTreeMap::new());
    for backend in target
        .services
        .values()
        .flat_map(|service| &service.backends)
    {
        let known = mirror.backend_index(backend.entry.id);
        let old = known.and_then(|index| mirror.backends.get(&index));
        let index = match known {
            Some(index) => index,
            None => free
                .take()
                .context("the backends map is full: raise `limits.backends` in the node config")?,
        };
        let entry = match old {
            // A lost next hop takes the backend's slots away; until they are gone the last known one is the best there is.
            Some(old) if !backend.entry.next_hop.is_resolved() => *old,
            Some(old) => BackendEntry {
                generation: old.generation,
                ..backend.entry
            },
            None => BackendEntry {
                generation,
                ..backend.entry
            },
        };
        if old != Some(&entry) {
            steps.push(Step::WriteBackend {
                index,
                entry,
                new: old.is_none(),
            });
        }
        index_of.insert(entry.id, index);
    }
    Ok((steps, index_of))
}

/// The step that makes the table of one service true, if one is needed.
fn slots(
    index: u32,
    service: &TargetService,
    mirror: &Mirror,
    index_of: &BTreeMap<u64, u32>,
    read_slots: &mut dyn FnMut(u32) -> Result<Vec<Slot>>,
) -> Result<Option<Step>> {
    let members = members(&service.backends, index_of);
    if mirror.members.get(&index) == Some(&members) {
        return Ok(None);
    }
    let current = if mirror.tables.contains(&index) {
        read_slots(index)?
    } else {
        Vec::new()
    };
    let slots = changed_slots(&members, &current);
    Ok(Some(Step::StoreSlots {
        service: index,
        slots,
        members,
        name: service.name.clone(),
    }))
}

/// The slots of a table of these members that differ from `current`; missing slots count as empty.
pub fn changed_slots(members: &[StoredMember], current: &[Slot]) -> Vec<(u32, Slot)> {
    let members: Vec<Member<'_>> = members
        .iter()
        .map(|m| Member {
            name: &m.name,
            weight: m.weight,
            owner: m.owner,
        })
        .collect();
    let wanted = maglev::table(&members).into_iter().map(Slot::steady);
    let current = current
        .iter()
        .copied()
        .chain(std::iter::repeat(Slot::EMPTY));
    let differing = (0..)
        .zip(wanted.zip(current))
        .filter(|(_, (wanted, current))| wanted != current);
    differing
        .map(|(number, (wanted, _))| (number, wanted))
        .collect()
}

fn members(backends: &[TargetBackend], index_of: &BTreeMap<u64, u32>) -> Vec<StoredMember> {
    let with_weight = backends.iter().filter(|backend| backend.weight > 0);
    with_weight
        .filter_map(|backend| {
            let owner = *index_of.get(&backend.entry.id)?;
            Some(StoredMember {
                name: backend.name.clone(),
                weight: backend.weight,
                owner,
            })
        })
        .collect()
}

/// Steps that remove what the target does not name: services, then their tables, then backends.
fn removals(target: &Target, mirror: &Mirror, index_of: &BTreeMap<u64, u32>) -> Vec<Step> {
    let gone = mirror
        .services
        .iter()
        .filter(|(key, _)| !target.services.contains_key(key));
    let services = gone.map(|(key, _)| Step::RemoveService { key: *key });
    let kept: BTreeSet<u32> = target
        .services
        .keys()
        .filter_map(|key| mirror.service_index(key))
        .collect();
    let tables = mirror
        .tables
        .difference(&kept)
        .take(TABLES_REMOVED_AT_ONCE)
        .map(|service| Step::RemoveTable { service: *service });
    let used: BTreeSet<u32> = index_of.values().copied().collect();
    let unused = mirror.backends.keys().filter(|index| !used.contains(index));
    let backends = unused.map(|index| Step::ClearBackend { index: *index });
    services.chain(tables).chain(backends).collect()
}

/// Free indexes of `first..end`, starting behind a cursor and going round once.
struct Free {
    taken: BTreeSet<u32>,
    candidates: Box<dyn Iterator<Item = u32>>,
}

impl Free {
    fn new(cursor: u32, first: u32, end: u32, taken: impl Iterator<Item = u32>) -> Self {
        let start = cursor.saturating_add(1).clamp(first, end);
        Self {
            taken: taken.collect(),
            candidates: Box::new((start..end).chain(first..start)),
        }
    }

    fn take(&mut self) -> Option<u32> {
        self.candidates.find(|index| !self.taken.contains(index))
    }
}
