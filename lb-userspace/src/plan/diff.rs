//! The difference between the target and the mirror, as ordered steps.

use super::{
    census::Census,
    life::Rules,
    mirror::Mirror,
    pool::{Free, Pool},
    roster::{Members, Updates},
    servers::Servers,
    table::{Due, Inputs, Table},
    target::{Target, TargetBackend, TargetService, Whole},
};
use anyhow::{Context, Result};
use lb_common::{
    backend::BackendEntry,
    limits::SLOTS,
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
};
use std::{cell::Cell, collections::BTreeSet, sync::Arc};

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
    let mut pool = Pool::new(mirror, capacity, generation);
    if let Some(whole) = &target.whole {
        pool.add_leavers(target, whole, mirror);
    }
    let services = target.services.values();
    let indexes: Vec<Vec<Option<u32>>> = services
        .map(|service| pool.add_service(service, mirror))
        .collect();
    let mut free = Free::new(mirror.service_cursor, 0, capacity.services);
    let (mut parts, mut updates) = (Parts::default(), Updates::default());
    for ((key, service), indexes) in target.services.iter().zip(&indexes) {
        let index = match mirror.service_index(key) {
            Some(index) => index,
            None => free
                .take(|index| mirror.tables.contains(&index))
                .context("the services map is full: raise `limits.services` in the node config")?,
        };
        parts.add_entry(index, key, service, mirror);
        if let Some(whole) = &target.whole {
            let servers = &mut parts.servers;
            servers.add(index, service, indexes, whole, &pool, mirror);
        }
        let exists = mirror.tables.contains(&index);
        let mut read = |numbers: &[u32]| match exists {
            true => read(index, numbers),
            false => Ok(vec![Slot::EMPTY; numbers.len()]),
        };
        // Slots that come in a row mostly had the same owner. Nobody is gone.
        let asked = Cell::new((0, true));
        let is_gone = |owner| {
            if asked.get().0 != owner {
                asked.set((owner, pool.is_gone(owner, mirror)));
            }
            asked.get().1
        };
        let rules = Rules {
            now: target.now(),
            policy: &service.policy,
            unused: mirror.unused.contains(&index),
            is_gone: &is_gone,
        };
        let known = mirror.known.get(&index).map(Arc::as_ref);
        let inputs = inputs(service, indexes);
        let (table, updates) = ((index, known), &mut updates);
        let due = due(table, inputs, &rules, census, updates, &mut read)?;
        parts.add_table(index, service, known, due);
    }
    Ok(parts.in_order(pool, target, mirror))
}

/// What a plan is put together from.
#[derive(Default)]
struct Parts {
    /// Service indexes that need a table.
    tables: Vec<u32>,
    /// The steps that bring tables about.
    slots: Vec<Step>,
    /// The steps that write entries of services.
    services: Vec<Step>,
    servers: Servers,
    /// Backends that slots still name for old flows.
    named: BTreeSet<u32>,
}

impl Parts {
    /// Takes in the table and the entry that a service should have.
    fn add_entry(
        &mut self,
        index: u32,
        key: &ServiceKey,
        service: &TargetService<'_>,
        mirror: &Mirror,
    ) {
        if !mirror.tables.contains(&index) {
            self.tables.push(index);
        }
        let entry = ServiceEntry {
            index,
            flags: service.flags,
        };
        if mirror.services.get(key) != Some(&entry) {
            self.services.push(Step::PutService { key: *key, entry });
        }
    }

    /// Takes in what is due to a table.
    fn add_table(
        &mut self,
        index: u32,
        service: &TargetService<'_>,
        known: Option<&Table>,
        due: Option<Due>,
    ) {
        let table = due.as_ref().map(|due| &due.table).or(known);
        let old_owners = table
            .into_iter()
            .flat_map(|table| table.old_owners().keys());
        self.named.extend(old_owners.copied());
        self.slots.extend(due.map(|due| Step::StoreSlots {
            service: index,
            slots: due.slots,
            moved: due.moved,
            table: Arc::new(due.table),
            name: service.name.to_string(),
        }));
    }

    /// All steps, in order.
    fn in_order(mut self, pool: Pool, target: &Target<'_>, mirror: &Mirror) -> Plan {
        let mut steps = pool.before;
        if !self.tables.is_empty() {
            steps.push(Step::CreateTables {
                services: self.tables,
            });
        }
        steps.append(&mut self.slots);
        if let Some(whole) = &target.whole {
            steps.extend(self.servers.missing(mirror));
            steps.extend(new_addresses(whole, mirror));
        }
        steps.append(&mut self.services);
        let mut may_clear = false;
        if let Some(whole) = &target.whole {
            steps.extend(self.servers.surplus(mirror));
            may_clear = removals(target, whole, mirror, &mut steps);
        }
        steps.extend(pool.after);
        if may_clear {
            let clear = pool.left.difference(&self.named);
            steps.extend(clear.map(|index| Step::ClearBackend { index: *index }));
        }
        Plan {
            steps,
            left_out: pool.left_out,
        }
    }
}

/// What is due to the table of a service, if anything is.
fn due(
    (service, known): (u32, Option<&Table>),
    inputs: Inputs,
    rules: &Rules<'_>,
    census: Option<&Census>,
    updates: &mut Updates,
    read: &mut dyn FnMut(&[u32]) -> Result<Vec<Slot>>,
) -> Result<Option<Due>> {
    match known {
        Some(table) if table.is_settled(&inputs) => Ok(None),
        Some(table) => table.next(service, inputs, rules, census, updates, read),
        None => {
            let all: Vec<u32> = (0..SLOTS).collect();
            let found = Table::found(&read(&all)?, rules.now);
            found.next(service, inputs, rules, census, updates, read)
        }
    }
}

/// What the table of a service follows from. `indexes`: those of its backends.
fn inputs(service: &TargetService<'_>, indexes: &[Option<u32>]) -> Inputs {
    let weighty = || {
        let backends = service.backends.iter().zip(indexes);
        backends.filter(|(backend, _)| backend.weight > 0)
    };
    let with_index = || weighty().filter_map(|(backend, index)| Some((backend, (*index)?)));
    let owners: Vec<u32> = with_index().map(|(_, index)| index).collect();
    let members = if owners.len() == service.members.list().len() {
        Arc::clone(service.members)
    } else {
        let member =
            |(backend, _): (&TargetBackend<'_>, u32)| (backend.name.clone(), backend.weight);
        Arc::new(Members::new(with_index().map(member).collect()))
    };
    Inputs {
        members,
        owners,
        availability: with_index()
            .map(|(backend, _)| backend.availability)
            .collect(),
        policy: service.policy,
    }
}

/// The steps that write the entries of addresses that are not as they should be.
fn new_addresses(whole: &Whole<'_>, mirror: &Mirror) -> impl Iterator<Item = Step> {
    let differ = whole
        .addresses
        .iter()
        .filter(|(key, entry)| mirror.addresses.get(key) != Some(entry));
    differ.map(|(key, entry)| Step::PutAddress {
        key: *key,
        entry: *entry,
    })
}

/// Adds the steps that remove services that the target does not name, then their addresses, then tables. Whether no table is left without a service.
fn removals(
    target: &Target<'_>,
    whole: &Whole<'_>,
    mirror: &Mirror,
    steps: &mut Vec<Step>,
) -> bool {
    let gone = mirror
        .services
        .iter()
        .filter(|(key, _)| !target.services.contains_key(key));
    steps.extend(gone.map(|(key, _)| Step::RemoveService { key: *key }));
    let gone = mirror
        .addresses
        .keys()
        .filter(|key| !whole.addresses.contains_key(key));
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
