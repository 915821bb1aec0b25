//! What planning needs of the desired state alone, worked out once for each state and not in every plan.
//!
//! **Invariant.** A pure function of the state, apart from what is shared: services whose tables have equal members, now or
//! in the state before, have the same [`Members`], and so one overlay between them.

use super::target::{backend_id, service_key};
use crate::{
    overlay::{Availability, Overlay},
    spec::{Name, Service, State},
};
use lb_common::service::ServiceKey;
use rustc_hash::{FxHashMap, FxHashSet};
use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, OnceLock},
};

/// The services and backends of a state, as planning knows them.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    /// By name.
    pub services: BTreeMap<Name, Enrolled>,
    /// Ids of all backends.
    pub ids: FxHashSet<u64>,
}

/// One service of a state.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// Its key in the services map.
    pub key: ServiceKey,
    /// The id of each of its backends, in order of name.
    pub ids: Vec<u64>,
    /// Those that have a weight.
    pub members: Arc<Members>,
}

impl Roster {
    /// The roster of a state, with members shared with the roster of the state before.
    pub fn new(state: &State, before: &Self) -> Self {
        let mut known: FxHashMap<Vec<(Name, u16)>, Arc<Members>> = FxHashMap::default();
        for Enrolled { members, .. } in before.services.values() {
            known
                .entry(members.list.clone())
                .or_insert_with(|| Arc::clone(members));
        }
        let mut enrol = |service: &Service| {
            let backends = service.backends.values();
            let weighty = backends.clone().filter(|backend| backend.weight > 0);
            let list = weighty.map(|backend| (backend.name.clone(), backend.weight));
            let members = known
                .entry(list.collect())
                .or_insert_with_key(|list| Arc::new(Members::new(list.clone())));
            Enrolled {
                key: service_key(service),
                ids: backends.map(|one| backend_id(service, one)).collect(),
                members: Arc::clone(members),
            }
        };
        let services: BTreeMap<Name, Enrolled> = state
            .services
            .iter()
            .map(|(name, service)| (name.clone(), enrol(service)))
            .collect();
        let ids = services.values().flat_map(|service| &service.ids);
        Self {
            ids: ids.copied().collect(),
            services,
        }
    }
}

/// The members of a table, and the preferences of its slots that follow from them.
#[derive(Debug)]
pub struct Members {
    list: Vec<(Name, u16)>,
    /// Made when a table is first planned.
    overlay: OnceLock<Overlay>,
}

impl Members {
    /// Members with their weights, which are not 0, in order of name.
    pub const fn new(list: Vec<(Name, u16)>) -> Self {
        Self {
            list,
            overlay: OnceLock::new(),
        }
    }

    /// Name and weight of each, in order of name.
    pub fn list(&self) -> &[(Name, u16)] {
        &self.list
    }

    /// The preferences of the slots. The first call computes the base table.
    pub fn overlay(&self) -> &Overlay {
        self.overlay.get_or_init(|| Overlay::new(&self.list))
    }
}

/// The overlay follows from the list.
impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.list == other.list
    }
}

impl Eq for Members {}

/// Where a change of availability takes slots, for one plan: a host that goes down often takes the same slots from it in the
/// tables of many services.
#[derive(Debug, Default)]
pub struct Updates {
    last: Option<Update>,
}

#[derive(Debug)]
struct Update {
    members: Arc<Members>,
    before: Vec<Availability>,
    after: Vec<Availability>,
    slots: Rc<[(u32, u32)]>,
}

impl Updates {
    /// What [`Overlay::update`] says of these members.
    pub fn of(
        &mut self,
        members: &Arc<Members>,
        before: &[Availability],
        after: &[Availability],
    ) -> Rc<[(u32, u32)]> {
        let is_last = |last: &&Update| {
            Arc::ptr_eq(&last.members, members) && last.before == before && last.after == after
        };
        if let Some(last) = self.last.as_ref().filter(is_last) {
            return Rc::clone(&last.slots);
        }
        let slots: Rc<[(u32, u32)]> = members.overlay().update(before, after).into();
        self.last = Some(Update {
            members: Arc::clone(members),
            before: before.to_vec(),
            after: after.to_vec(),
            slots: Rc::clone(&slots),
        });
        slots
    }
}
