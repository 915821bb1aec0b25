//! The backend entries of a plan: which index each backend has or gets, what its entry should be, and whose flows are given up.

use super::{
    diff::{Capacity, Step},
    mirror::Mirror,
    target::{Target, TargetService, Whole},
};
use lb_common::backend::BackendEntry;
use rustc_hash::FxHashSet;
use std::collections::BTreeSet;

/// The backend entries of a plan.
pub(super) struct Pool {
    /// Writes before slots: new entries, next hops, backends that are back.
    pub(super) before: Vec<Step>,
    /// Writes after slots: marks of backends whose flows are given up.
    pub(super) after: Vec<Step>,
    /// Indexes whose flows are given up.
    lost: FxHashSet<u32>,
    /// Indexes whose flows were given up and are no more.
    back: FxHashSet<u32>,
    /// Indexes of backends that the target does not name and whose flows are given up.
    pub(super) left: BTreeSet<u32>,
    pub(super) left_out: Vec<String>,
    free: Free,
    /// Generation of the indexes that this plan takes.
    pub(super) generation: u32,
}

impl Pool {
    /// Nothing yet. `generation` marks the indexes that are taken.
    pub(super) fn new(mirror: &Mirror, capacity: Capacity, generation: u32) -> Self {
        Self {
            before: Vec::new(),
            after: Vec::new(),
            lost: FxHashSet::default(),
            back: FxHashSet::default(),
            left: BTreeSet::new(),
            left_out: Vec::new(),
            free: Free::new(mirror.backend_cursor, 1, capacity.backends),
            generation,
        }
    }

    /// Takes in what an entry should be. Flows are given up after the slots have been stored, taken up again before.
    fn add(&mut self, index: u32, old: Option<&BackendEntry>, entry: BackendEntry) {
        if entry.flags & BackendEntry::LOST != 0 {
            self.lost.insert(index);
        }
        if old == Some(&entry) {
            return;
        }
        let first = match old {
            Some(old) if old.flags & BackendEntry::LOST == 0 => entry.with_lost(false),
            Some(_) if entry.flags & BackendEntry::LOST == 0 => {
                self.back.insert(index);
                entry
            }
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

    /// Whether the flows of a backend index are given up once this plan is applied. Backends that it is not of stay as they are.
    pub(super) fn is_gone(&self, index: u32, mirror: &Mirror) -> bool {
        let was_lost = |entry: &BackendEntry| entry.flags & BackendEntry::LOST != 0;
        self.lost.contains(&index)
            || mirror
                .backends
                .get(&index)
                .is_none_or(|entry| was_lost(entry) && !self.back.contains(&index))
    }

    /// Takes in the backends of a service; the index of each, if there is one for it.
    pub(super) fn add_service(
        &mut self,
        service: &TargetService<'_>,
        mirror: &Mirror,
    ) -> Vec<Option<u32>> {
        let backends = service.backends.iter();
        backends
            .map(|backend| {
                let known = mirror.backend_index(backend.entry.id);
                let old = known.and_then(|index| mirror.backends.get(&index));
                let is_used = |index| mirror.backends.contains_key(&index);
                let Some(index) = known.or_else(|| self.free.take(is_used)) else {
                    let name = format!("{}/{}", service.name, backend.name);
                    self.left_out.push(name);
                    return None;
                };
                let entry = match old {
                    // A lost next hop takes the backend's slots away; until they are gone the last known one is the best there
                    // is.
                    Some(old) if !backend.entry.next_hop.is_resolved() => {
                        old.with_lost(backend.entry.flags & BackendEntry::LOST != 0)
                    }
                    Some(old) => BackendEntry {
                        generation: old.generation,
                        ..backend.entry
                    },
                    None => BackendEntry {
                        generation: self.generation,
                        ..backend.entry
                    },
                };
                self.add(index, old, entry);
                Some(index)
            })
            .collect()
    }

    /// Takes in the backends that the target does not name.
    pub(super) fn add_leavers(&mut self, target: &Target<'_>, whole: &Whole<'_>, mirror: &Mirror) {
        for (index, old) in &mirror.backends {
            if !whole.ids.contains(&old.id) {
                let entry = target.leaver(old);
                self.add(*index, Some(old), entry);
                if entry.flags & BackendEntry::LOST != 0 {
                    self.left.insert(*index);
                }
            } else if mirror.backend_index(old.id) != Some(*index) {
                // Two entries of one id: a defect of an earlier daemon.
                self.lost.insert(*index);
                self.left.insert(*index);
            }
        }
    }
}

/// Indexes of `first..end`, starting behind a cursor and going round once.
pub(super) struct Free(Box<dyn Iterator<Item = u32>>);

impl Free {
    pub(super) fn new(cursor: u32, first: u32, end: u32) -> Self {
        let start = cursor.saturating_add(1).clamp(first, end);
        Self(Box::new((start..end).chain(first..start)))
    }

    /// The next that is not used.
    pub(super) fn take(&mut self, is_used: impl Fn(u32) -> bool) -> Option<u32> {
        self.0.find(|index| !is_used(*index))
    }
}
