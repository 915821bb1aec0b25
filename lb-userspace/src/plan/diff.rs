//! The difference between the target and the mirror, as ordered steps.

use super::{
    census::Census,
    life::Rules,
    mirror::Mirror,
    servers::Servers,
    table::{Inputs, Table},
    target::{Target, TargetService},
};
use anyhow::{Context, Result};
use lb_common::{
    backend::BackendEntry,
    limits::SLOTS,
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
};
use rustc_hash::{FxHashMap, FxHashSet};
use std::{collections::BTreeSet, sync::Arc};

/// Tables that one plan removes at the most: each waits some 10 ms for the kernel, nobody needs them gone at once, and
/// what the plan leaves is the next one's.
const TABLES_REMOVED_AT_ONCE: usize = 8;

/// One write to the data plane.
#[derive(Clone, Debug)]
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
    /// Store the slots that differ (none when only what is known of the table is new).
    StoreSlots {
        /// Service index.
        service: u32,
        /// Number and word of each slot that differs.
        slots: Vec<(u32, Slot)>,
        /// How many of them get another owner for new flows; the others only come to rest.
        moved: u32,
        /// The table with them.
        table: Arc<Table>,
        /// Name of the service, for logs and metrics.
        name: String,
    },
    /// Give a backend a server ID.
    PutServer {
        /// Service and server ID.
        key: ServerKey,
        /// The backend.
        entry: ServerEntry,
    },
    /// Take a server ID away.
    RemoveServer {
        /// Service and server ID.
        key: ServerKey,
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
    /// Add the entry of an address, or change it.
    PutAddress {
        /// Its key.
        key: ServiceKey,
        /// The entry.
        entry: ServiceEntry,
    },
    /// Remove the entry of an address that no service has any more.
    RemoveAddress {
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

/// The steps that are due.
#[derive(Debug, Default)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// Backends (`service/backend`) for which no index is free.
    pub left_out: Vec<String>,
}

/// Reads the words of slots, by the index of a service that has a table and by the numbers of slots.
pub type ReadSlots<'a> = dyn FnMut(u32, &[u32]) -> Result<Vec<Slot>> + 'a;

/// The steps from what the mirror says to the target. `generation` marks backend indexes taken by this plan;
/// `read` reads the words of slots of a service that has a table, in the order of their numbers.
///
/// # Errors
/// When service indexes run out, or a table cannot be read.
pub fn diff(
    target: &Target<'_>,
    mirror: &Mirror,
    capacity: Capacity,
    generation: u32,
    census: Option<&Census>,
    read: &mut ReadSlots<'_>,
) -> Result<Plan> {
    let pool = backends(target, mirror, capacity, generation);
    let mut free = Free::new(
        mirror.service_cursor,
        0,
        capacity.services,
        mirror.tables.iter().copied(),
    );
    let (mut tables, mut table_steps, mut service_steps) = (Vec::new(), Vec::new(), Vec::new());
    let mut named = BTreeSet::new();
    let mut servers = Servers::default();
    for (key, service) in &target.services {
        let existing = mirror.service_index(key);
        let index = match existing {
            Some(index) => index,
            None => free
                .take()
                .context("the services map is full: raise `limits.services` in the node config")?,
        };
        let exists = mirror.tables.contains(&index);
        if !exists {
            tables.push(index);
        }
        servers.add(index, service, &pool, mirror);
        let entry = ServiceEntry {
            index,
            flags: service.flags,
        };
        if mirror.services.get(key) != Some(&entry) {
            service_steps.push(Step::PutService { key: *key, entry });
        }
        let inputs = inputs(service, &pool.index_of);
        let known = mirror.known.get(&index);
        if let Some(table) = known.filter(|table| table.is_settled(&inputs)) {
            named.extend(table.old_owners().keys().copied());
            continue;
        }
        let mut read = |numbers: &[u32]| match exists {
            true => read(index, numbers),
            false => Ok(vec![Slot::EMPTY; numbers.len()]),
        };
        let found;
        let table = match known {
            Some(table) => table.as_ref(),
            None => {
                let all: Vec<u32> = (0..SLOTS).collect();
                found = Table::found(&read(&all)?, target.now());
                &found
            }
        };
        let rules = Rules {
            now: target.now(),
            policy: &service.policy,
            unused: mirror.unused.contains(&index),
            is_gone: &|owner| !pool.alive.contains(&owner),
        };
        let Some(due) = table.next(index, &inputs, &rules, census, &mut read)? else {
            named.extend(table.old_owners().keys().copied());
            continue;
        };
        named.extend(due.table.old_owners().keys().copied());
        table_steps.push(Step::StoreSlots {
            service: index,
            slots: due.slots,
            moved: due.moved,
            table: Arc::new(due.table),
            name: service.name.to_string(),
        });
    }
    let mut steps = pool.before;
    if !tables.is_empty() {
        steps.push(Step::CreateTables { services: tables });
    }
    steps.append(&mut table_steps);
    steps.extend(servers.missing(mirror));
    steps.extend(new_addresses(target, mirror));
    steps.append(&mut service_steps);
    steps.extend(servers.surplus(mirror));
    let all_tables_go = removals(target, mirror, &mut steps);
    steps.extend(pool.after);
    if all_tables_go {
        let clear = pool.left.difference(&named);
        steps.extend(clear.map(|index| Step::ClearBackend { index: *index }));
    }
    Ok(Plan {
        steps,
        left_out: pool.left_out,
    })
}

/// The backend entries of a plan.
#[derive(Default)]
pub(super) struct Pool {
    /// Writes before slots: new entries, next hops, backends that are back.
    before: Vec<Step>,
    /// Writes after slots: marks of backends whose flows are given up.
    after: Vec<Step>,
    /// The index of every backend of the target by id.
    pub(super) index_of: FxHashMap<u64, u32>,
    /// Indexes whose flows are not given up.
    pub(super) alive: FxHashSet<u32>,
    /// Indexes of backends that the target does not name and whose flows are given up.
    left: BTreeSet<u32>,
    left_out: Vec<String>,
    /// Generation of the indexes that this plan takes.
    pub(super) generation: u32,
}

impl Pool {
    /// Takes in what an entry should be. Flows are given up after the slots have been stored, taken up again before.
    fn add(&mut self, index: u32, old: Option<&BackendEntry>, entry: BackendEntry) {
        if entry.flags & BackendEntry::LOST == 0 {
            self.alive.insert(index);
        }
        let first = match old {
            Some(old) if old.flags & BackendEntry::LOST == 0 => entry.with_lost(false),
            Some(_) | None => entry,
        };
        if old != Some(&first) {
            let new = old.is_none();
            self.before.push(Step::WriteBackend {
                index,
                entry: first,
                new,
            });
        }
        if first != entry {
            self.after.push(Step::WriteBackend {
                index,
                entry,
                new: false,
            });
        }
    }
}

fn backends(target: &Target<'_>, mirror: &Mirror, capacity: Capacity, generation: u32) -> Pool {
    let mut free = Free::new(
        mirror.backend_cursor,
        1,
        capacity.backends,
        mirror.backends.keys().copied(),
    );
    let mut pool = Pool {
        generation,
        ..Pool::default()
    };
    for service in target.services.values() {
        for backend in &service.backends {
            let known = mirror.backend_index(backend.entry.id);
            let old = known.and_then(|index| mirror.backends.get(&index));
            let Some(index) = known.or_else(|| free.take()) else {
                pool.left_out
                    .push(format!("{}/{}", service.name, backend.name));
                continue;
            };
            let entry = match old {
                // A lost next hop takes the backend's slots away; until they are gone the last known one is the best there is.
                Some(old) if !backend.entry.next_hop.is_resolved() => {
                    old.with_lost(backend.entry.flags & BackendEntry::LOST != 0)
                }
                Some(old) => BackendEntry {
                    generation: old.generation,
                    ..backend.entry
                },
                None => BackendEntry {
                    generation,
                    ..backend.entry
                },
            };
            pool.add(index, old, entry);
            pool.index_of.insert(entry.id, index);
        }
    }
    for (index, old) in &mirror.backends {
        match pool.index_of.get(&old.id) {
            Some(used) if used == index => {}
            // Two entries of one id: a defect of an earlier daemon.
            Some(_) => drop(pool.left.insert(*index)),
            None => {
                let entry = target.leaver(old);
                pool.add(*index, Some(old), entry);
                if entry.flags & BackendEntry::LOST != 0 {
                    pool.left.insert(*index);
                }
            }
        }
    }
    pool
}

/// What the table of a service follows from.
fn inputs(service: &TargetService, index_of: &FxHashMap<u64, u32>) -> Inputs {
    let mut inputs = Inputs {
        policy: service.policy,
        ..Inputs::default()
    };
    for backend in service.backends.iter().filter(|backend| backend.weight > 0) {
        if let Some(owner) = index_of.get(&backend.entry.id) {
            inputs.members.push((backend.name.clone(), backend.weight));
            inputs.owners.push(*owner);
            inputs.availability.push(backend.availability);
        }
    }
    inputs
}

/// The steps that write the entries of addresses that are not as they should be.
fn new_addresses(target: &Target<'_>, mirror: &Mirror) -> impl Iterator<Item = Step> {
    let differ = target
        .addresses
        .iter()
        .filter(|(key, entry)| mirror.addresses.get(key) != Some(entry));
    differ.map(|(key, entry)| Step::PutAddress {
        key: *key,
        entry: *entry,
    })
}

/// Adds the steps that remove services that the target does not name, then their addresses, then tables. Whether no table is left without a service.
fn removals(target: &Target<'_>, mirror: &Mirror, steps: &mut Vec<Step>) -> bool {
    let gone = mirror
        .services
        .iter()
        .filter(|(key, _)| !target.services.contains_key(key));
    steps.extend(gone.map(|(key, _)| Step::RemoveService { key: *key }));
    let gone = mirror
        .addresses
        .keys()
        .filter(|key| !target.addresses.contains_key(key));
    steps.extend(gone.map(|key| Step::RemoveAddress { key: *key }));
    let kept: BTreeSet<u32> = target
        .services
        .keys()
        .filter_map(|key| mirror.service_index(key))
        .collect();
    let unused: Vec<u32> = mirror.tables.difference(&kept).copied().collect();
    let now = unused.iter().take(TABLES_REMOVED_AT_ONCE);
    steps.extend(now.map(|service| Step::RemoveTable { service: *service }));
    unused.len() <= TABLES_REMOVED_AT_ONCE
}

/// Free indexes of `first..end`, starting behind a cursor and going round once.
struct Free {
    taken: FxHashSet<u32>,
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
