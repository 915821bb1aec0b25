//! The data plane as the control loop sees it: maps to read and write, one small trait. [`aya`] is the real one,
//! [`fake`] an in-memory model for tests.
//!
//! **Invariant.** Every method leaves a data plane in which each packet is handled right, either as before or as
//! after. The order in which they are called (backends, slots, services; removals in reverse) is `plan`'s business.

mod adopt;
pub mod attach;
pub mod aya;
mod backends;
mod buckets;
mod carry;
pub mod clock;
pub mod decap;
mod drop_log;
mod exits;
pub mod fake;
mod flows;
mod interfaces;
mod loader;
mod looking;
mod lru_flows;
mod mapped;
pub mod object;
mod pins;
mod port;
mod privilege;
mod services;
mod shape;
mod slots;
mod sys;

pub use self::{
    adopt::Adoption,
    attach::{AttachMode, Attachment, InterfaceSetting},
    aya::{AyaDataPlane, Settings},
    buckets::Buckets,
    carry::Carried,
    flows::FlowTable,
    interfaces::XdpMode,
    looking::{Explained, Explainer, Loader, SHORTEST, Tracer},
};

use anyhow::Result;
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowKey},
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    stats::Counter,
};
use std::collections::BTreeMap;

/// What is in the maps: read once when a daemon starts, so that it continues where the last one stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The services in the services maps.
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    /// The entries of addresses and prefixes in them.
    pub addresses: BTreeMap<ServiceKey, ServiceEntry>,
    /// Entries of the backends array that are in use (mode not 0), by index.
    pub backends: BTreeMap<u32, BackendEntry>,
    /// Indexes of the slot tables that exist.
    pub tables: Vec<u32>,
    /// Who has which server ID in QUIC connection IDs.
    pub servers: BTreeMap<ServerKey, ServerEntry>,
}

impl Installed {
    /// What is installed: all `entries` of the services maps, and the rest.
    fn new(
        entries: BTreeMap<ServiceKey, ServiceEntry>,
        backends: BTreeMap<u32, BackendEntry>,
        tables: Vec<u32>,
        servers: BTreeMap<ServerKey, ServerEntry>,
    ) -> Self {
        let (addresses, services) = entries
            .into_iter()
            .partition(|(key, _)| key.is_of_address());
        Self {
            services,
            addresses,
            backends,
            tables,
            servers,
        }
    }
}

/// The maps of the XDP program.
pub trait DataPlane: Send {
    /// Reads what is installed.
    fn installed(&mut self) -> Result<Installed>;

    /// Number of services that fit (`limits.services`).
    fn service_capacity(&self) -> u32;

    /// Entries of the backends array (`limits.backends`); index 0 is not used.
    fn backend_capacity(&self) -> u32;

    /// Writes a backend entry. Only the fields that [`BackendEntry`] allows to change may differ while a slot can
    /// name the index.
    fn write_backend(&mut self, index: u32, entry: &BackendEntry) -> Result<()>;

    /// Makes sure that the slot tables of these service indexes exist; new ones are empty. One call for many waits for
    /// the kernel once.
    fn create_tables(&mut self, services: &[u32]) -> Result<()>;

    /// Reads a service's slots: [`lb_common::limits::SLOTS`] of them.
    fn read_slots(&mut self, service: u32) -> Result<Vec<Slot>>;

    /// Reads the words of these slots of a service, in their order.
    fn read_some_slots(&mut self, service: u32, numbers: &[u32]) -> Result<Vec<Slot>>;

    /// Stores the given slots (number, word), each with one aligned 64-bit store.
    fn store_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()>;

    /// Removes the slot table of a service index that no service names any more.
    fn remove_table(&mut self, service: u32) -> Result<()>;

    /// Gives a backend a server ID at a service that has a table: for QUIC connection IDs. The backend's entry is written, and is
    /// of the generation that `entry` says.
    fn put_server(&mut self, key: &ServerKey, entry: &ServerEntry) -> Result<()>;

    /// Takes a server ID away; one that nobody has is no error. Before the backend's entry is cleared or given to another.
    fn remove_server(&mut self, key: &ServerKey) -> Result<()>;

    /// Adds a service, or the entry of an address that services need, or changes an entry.
    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<()>;

    /// Removes a service, or the entry of an address that no service has any more.
    fn remove_service(&mut self, key: &ServiceKey) -> Result<()>;

    /// Packets by verdict, summed over CPUs, in order of [`lb_common::verdict::Verdict`] number.
    fn verdicts(&mut self) -> Result<Vec<u64>>;

    /// Counter of a service index, summed over CPUs.
    fn service_counter(&mut self, service: u32) -> Result<Counter>;

    /// Counter of a backend index, summed over CPUs.
    fn backend_counter(&mut self, backend: u32) -> Result<Counter>;

    /// Sets the counter of a service index to zero, before the index is given to another service.
    fn reset_service_counter(&mut self, service: u32) -> Result<()>;

    /// Sets the counter of a backend index to zero, before the index is given to another backend.
    fn reset_backend_counter(&mut self, backend: u32) -> Result<()>;

    /// Flows that the flow table is made for (`limits.flows`).
    fn flow_capacity(&self) -> u32;

    /// What the program did with the flow table, summed over CPUs, in order of
    /// [`lb_common::flow_table::FlowEvent`] number.
    fn flow_events(&mut self) -> Result<Vec<u64>>;

    /// Shows every entry of the flow table to `visit`, each at least as it was at some moment of the call. Entries that
    /// come or go meanwhile may be shown or not.
    fn scan_flows(&mut self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()>;

    /// Removes entries from the flow table; those that are gone already are no error. Returns how many it removed.
    fn remove_flows(&mut self, keys: &[FlowKey]) -> Result<u64>;
}
