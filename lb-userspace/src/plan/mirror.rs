//! What the data plane holds, as far as planning needs it: which index belongs to whom. Read once from the maps
//! when the daemon starts (they are the truth, so that nothing on disk can disagree with them) and kept with every
//! step applied.

use super::table::Table;
use crate::dataplane::Installed;
use lb_common::{
    backend::BackendEntry,
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
};
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The mirror of the maps.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// The services in the services map.
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    /// The entries of addresses in it.
    pub addresses: BTreeMap<ServiceKey, ServiceEntry>,
    /// Backend entries in use, by index.
    pub backends: FxHashMap<u32, BackendEntry>,
    /// Index of each backend by its id.
    pub index_of: FxHashMap<u64, u32>,
    /// Who has which server ID in QUIC connection IDs.
    pub servers: BTreeMap<ServerKey, ServerEntry>,
    /// Slot tables that exist, by service index.
    pub tables: BTreeSet<u32>,
    /// What is in each table, as far as it is known: not before the first plan, and not after a write that failed.
    pub known: BTreeMap<u32, Arc<Table>>,
    /// Service indexes that have not forwarded a packet yet: there is no flow that a move could break.
    pub unused: BTreeSet<u32>,
    /// Where the search for a free backend index goes on, so that an index is reused as late as possible.
    pub backend_cursor: u32,
    /// Where the search for a free service index goes on.
    pub service_cursor: u32,
}

impl Mirror {
    /// The mirror of what is installed. Entries with an id that another entry has as well are left out of
    /// `index_of`, and so are removed as nobody's by the next plan.
    pub fn new(installed: Installed) -> Self {
        let mut index_of = FxHashMap::default();
        for (index, entry) in &installed.backends {
            index_of.entry(entry.id).or_insert(*index);
        }
        Self {
            backend_cursor: installed.backends.keys().next_back().copied().unwrap_or(0),
            service_cursor: installed.tables.iter().max().copied().unwrap_or(0),
            services: installed.services,
            addresses: installed.addresses,
            backends: installed.backends.into_iter().collect(),
            servers: installed.servers,
            index_of,
            tables: installed.tables.into_iter().collect(),
            known: BTreeMap::new(),
            unused: BTreeSet::new(),
        }
    }

    /// Whether tables are left that no service uses.
    pub fn has_unused_tables(&self) -> bool {
        self.tables.len() > self.services.len()
    }

    /// Number of slots that wait for a moment or a census.
    pub fn waiting(&self) -> u64 {
        self.known
            .values()
            .map(|table| table.waiting() as u64)
            .sum()
    }

    /// Whether slots wait for a moment or a census.
    pub fn is_waiting(&self) -> bool {
        self.known.values().any(|table| table.waiting() > 0)
    }

    /// The table of a service.
    pub fn table(&self, key: &ServiceKey) -> Option<&Table> {
        self.known.get(&self.service_index(key)?).map(Arc::as_ref)
    }

    /// Index of the service with this key.
    pub fn service_index(&self, key: &ServiceKey) -> Option<u32> {
        self.services.get(key).map(|entry| entry.index)
    }

    /// Index of the backend with this id.
    pub fn backend_index(&self, id: u64) -> Option<u32> {
        self.index_of.get(&id).copied()
    }
}
