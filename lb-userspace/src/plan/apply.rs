//! Applies steps to a data plane, keeping the mirror true with each.

use super::{diff::Step, mirror::Mirror};
use crate::dataplane::DataPlane;
use anyhow::{Context, Result};
use lb_common::backend::BackendEntry;
use std::sync::Arc;

/// Applies the steps in order. On an error the steps before it stay applied and the mirror knows them, so that the
/// next plan goes on from there.
///
/// # Errors
/// The first step that fails.
pub fn apply(steps: &[Step], plane: &mut dyn DataPlane, mirror: &mut Mirror) -> Result<()> {
    steps
        .iter()
        .try_for_each(|step| apply_one(step, plane, mirror))
}

fn apply_one(step: &Step, plane: &mut dyn DataPlane, mirror: &mut Mirror) -> Result<()> {
    match step {
        Step::WriteBackend { index, entry, new } => {
            if *new {
                plane
                    .reset_backend_counter(*index)
                    .with_context(|| format!("counter of backend {index}"))?;
                mirror.backend_cursor = *index;
            }
            plane
                .write_backend(*index, entry)
                .with_context(|| format!("writing backend {index}"))?;
            mirror.backends.insert(*index, *entry);
            mirror.index_of.insert(entry.id, *index);
        }
        Step::CreateTables { services } => {
            for service in services {
                plane
                    .reset_service_counter(*service)
                    .with_context(|| format!("counter of service {service}"))?;
            }
            plane
                .create_tables(services)
                .context("creating slot tables")?;
            mirror.service_cursor = services.last().copied().unwrap_or(mirror.service_cursor);
            mirror.tables.extend(services);
            mirror.unused.extend(services);
        }
        Step::StoreSlots {
            service,
            slots,
            table,
            name,
            ..
        } => {
            if !slots.is_empty() {
                mirror.known.remove(service);
                plane
                    .store_slots(*service, slots)
                    .with_context(|| format!("storing slots of service {name}"))?;
            }
            mirror.known.insert(*service, Arc::clone(table));
        }
        Step::PutServer { key, entry } => {
            plane.put_server(key, entry).context("adding a server ID")?;
            mirror.servers.insert(*key, *entry);
        }
        Step::RemoveServer { key } => {
            plane.remove_server(key).context("removing a server ID")?;
            mirror.servers.remove(key);
        }
        Step::PutService { key, entry } => {
            plane.put_service(key, entry).context("adding a service")?;
            mirror.services.insert(*key, *entry);
        }
        Step::RemoveService { key } => {
            plane.remove_service(key).context("removing a service")?;
            mirror.services.remove(key);
        }
        Step::PutAddress { key, entry } => {
            plane.put_service(key, entry).context("adding an address")?;
            mirror.addresses.insert(*key, *entry);
        }
        Step::RemoveAddress { key } => {
            plane.remove_service(key).context("removing an address")?;
            mirror.addresses.remove(key);
        }
        Step::RemoveTable { service } => {
            mirror.known.remove(service);
            plane
                .remove_table(*service)
                .with_context(|| format!("removing the slot table of service {service}"))?;
            mirror.tables.remove(service);
        }
        Step::ClearBackend { index } => {
            let unused = BackendEntry::default();
            plane
                .write_backend(*index, &unused)
                .with_context(|| format!("clearing backend {index}"))?;
            if let Some(old) = mirror.backends.remove(index)
                && mirror.index_of.get(&old.id) == Some(index)
            {
                mirror.index_of.remove(&old.id);
            }
        }
    }
    Ok(())
}
