//! Names of the desired state for indexes of the data plane.

use super::core::Core;
use crate::{
    dataplane::DataPlane,
    plan::target::{backend_id, service_key},
    spec::{Backend, Service},
};
use lb_common::backend::BackendEntry;
use std::{collections::BTreeMap, net::IpAddr};

impl<P: DataPlane> Core<P> {
    /// Name of the service with this index.
    pub(super) fn service_name(&self, index: u32) -> Option<String> {
        Some(self.service_of(index)?.name.to_string())
    }

    /// The service of the desired state with this index.
    pub(super) fn service_of(&self, index: u32) -> Option<&Service> {
        let mut services = self.state.services.values();
        services.find(|service| self.mirror.service_index(&service_key(service)) == Some(index))
    }

    /// `service/backend` of a backend's index, or what is known of it.
    pub(super) fn backend_name(&self, index: u32) -> String {
        let Some(entry) = self.mirror.backends.get(&index) else {
            return format!("index {index}");
        };
        match self.find_backend(entry.id) {
            Some((service, backend)) => format!("{}/{}", service.name, backend.name),
            None => self.departed_name(index, entry),
        }
    }

    /// The same for an entry that no backend of the desired state has.
    fn departed_name(&self, index: u32, entry: &BackendEntry) -> String {
        let departure = self.facts.departures.get(&entry.id);
        match departure.and_then(|departure| departure.name.as_ref()) {
            Some((service, backend)) => format!("{service}/{backend}"),
            None => format!("index {index} ({})", IpAddr::from(entry.address)),
        }
    }

    /// The names of all backends, as [`Core::backend_name`] says them.
    pub(super) fn backend_names(&self) -> BTreeMap<u32, String> {
        let names: BTreeMap<u64, String> = self
            .state
            .services
            .values()
            .flat_map(|service| {
                service
                    .backends
                    .values()
                    .map(move |backend| (service, backend))
            })
            .map(|(service, backend)| {
                let name = format!("{}/{}", service.name, backend.name);
                (backend_id(service, backend), name)
            })
            .collect();
        let entries = self.mirror.backends.iter();
        entries
            .map(|(index, entry)| {
                let known = names.get(&entry.id).cloned();
                let name = known.unwrap_or_else(|| self.departed_name(*index, entry));
                (*index, name)
            })
            .collect()
    }

    /// The backend of the desired state with this id.
    pub(super) fn find_backend(&self, id: u64) -> Option<(&Service, &Backend)> {
        self.state.services.values().find_map(|service| {
            let mut backends = service.backends.values();
            let backend = backends.find(|backend| backend_id(service, backend) == id)?;
            Some((service, backend))
        })
    }
}
