//! Server IDs of QUIC connection IDs: who should have which, and the steps that lead there.
//!
//! **Invariants.** A backend that departs keeps its ID for as long as it keeps its flows, unless another backend is given that ID.
//! IDs are added once their backends are written and before the service asks for them, and removed after it has ceased to.

use super::{
    diff::Step,
    mirror::Mirror,
    pool::Pool,
    target::{TargetService, Whole},
};
use lb_common::quic::{ServerEntry, ServerKey};
use std::collections::BTreeMap;

/// Who should have which server ID.
#[derive(Default)]
pub(super) struct Servers(BTreeMap<ServerKey, ServerEntry>);

impl Servers {
    /// Takes in the servers of the service with this index. `indexes`: those of its backends.
    pub(super) fn add(
        &mut self,
        service: u32,
        target: &TargetService<'_>,
        indexes: &[Option<u32>],
        whole: &Whole<'_>,
        pool: &Pool,
        mirror: &Mirror,
    ) {
        let Some(config) = target.quic else {
            return;
        };
        let length = config.server_id_length.into();
        for (backend, index) in target.backends.iter().zip(indexes) {
            let (Some(id), Some(index)) = (backend.server_id, index) else {
                continue;
            };
            let key = ServerKey {
                service,
                length,
                id: id.number(),
            };
            let known = mirror.backends.get(index);
            let entry = ServerEntry {
                backend: *index,
                generation: known.map_or(pool.generation, |entry| entry.generation),
            };
            self.0.insert(key, entry);
        }
        let all = ServerKey {
            service,
            length,
            id: 0,
        }..=ServerKey {
            service,
            length,
            id: u64::MAX,
        };
        for (key, entry) in mirror.servers.range(all) {
            if departs(entry, whole, pool, mirror) {
                self.0.entry(*key).or_insert(*entry);
            }
        }
    }

    /// The steps that add what is missing.
    pub(super) fn missing(&self, mirror: &Mirror) -> Vec<Step> {
        let differ = self
            .0
            .iter()
            .filter(|(key, entry)| mirror.servers.get(key) != Some(entry));
        let step = |(key, entry): (&ServerKey, &ServerEntry)| Step::PutServer {
            key: *key,
            entry: *entry,
        };
        differ.map(step).collect()
    }

    /// The steps that remove what should not be.
    pub(super) fn surplus(&self, mirror: &Mirror) -> Vec<Step> {
        let gone = mirror
            .servers
            .keys()
            .filter(|key| !self.0.contains_key(key));
        gone.map(|key| Step::RemoveServer { key: *key }).collect()
    }
}

/// Whether an entry is of a backend that the target does not name any more and that still has its flows.
fn departs(entry: &ServerEntry, whole: &Whole<'_>, pool: &Pool, mirror: &Mirror) -> bool {
    mirror.backends.get(&entry.backend).is_some_and(|backend| {
        backend.generation == entry.generation
            && !whole.ids.contains(&backend.id)
            && !pool.is_gone(entry.backend, mirror)
    })
}
