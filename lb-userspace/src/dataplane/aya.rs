//! The real data plane: the XDP program and its maps in the kernel.
//!
//! **Invariants.** Links and maps are pinned before anything depends on them, so the daemon may die at any point and
//! packets keep flowing. The attached program is only ever replaced by one whose maps are ready. Calls never
//! panic, and block for some ten milliseconds at most, waiting for the kernel; only opening takes longer.

use super::{
    DataPlane, Installed,
    adopt::{self, Adoption, Found},
    attach::{Attacher, Attachment, InterfaceSetting},
    drop_log::DropLog,
    interfaces,
    loader::{self, Maps},
    object::BALANCER,
    pins::{Generation, PinDirectory},
    shape::Wanted,
};
use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{MapError, PerCpuValues},
    sys::SyscallError,
};
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowKey},
    maps,
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    stats::Counter,
};
use std::{
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
};

pub use super::privilege::check_privileges;

/// What the data plane needs to know of the node's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where links and maps are pinned: an absolute path on a BPF file system, of this network namespace's own.
    pub pin_directory: PathBuf,
    /// The interfaces that packets come in on.
    pub interfaces: Vec<InterfaceSetting>,
    /// Seed of the flow hash.
    pub hash_seed: u64,
    /// Services that fit (`limits.services`).
    pub services: u32,
    /// Backend entries that fit (`limits.backends`), entry 0 included.
    pub backends: u32,
}

/// The program in the kernel, its maps, and the interfaces it is attached to.
pub struct AyaDataPlane {
    pins: PinDirectory,
    generation: Generation,
    attacher: Attacher,
    maps: Maps,
    drop_log: DropLog,
}

/// Loads the program, with the attached program's maps if they fit and with new ones if not. Attaches nothing yet and
/// does not disturb what is attached.
///
/// # Errors
/// When privileges or the BPF file system are missing, another process or another network namespace holds the pin
/// directory, or the kernel refuses the program. What was attached before stays as it was.
pub fn open(settings: &Settings) -> Result<(AyaDataPlane, Adoption)> {
    check_privileges()?;
    let wanted = Wanted::new(BALANCER, settings.services, settings.backends)?;
    let pins = PinDirectory::open(&settings.pin_directory)?;
    adopt::check_namespace(&pins)?;
    let found = adopt::find(&pins, &wanted)?;
    let (generation, new) = match &found {
        Found::Fitting(generation) => (generation.clone(), false),
        Found::Nothing | Found::Differing(_) => (pins.new_generation(maps::LAYOUT_VERSION)?, true),
    };
    adopt::sweep(&pins, &generation)?;

    let loaded = loader::load(settings, &wanted, &generation).inspect_err(|_| {
        if new {
            // The next start would remove it too, but its memory is wanted back now.
            let _ = pins.remove_generation(&generation);
        }
    });
    let (attacher, maps, drop_log) = loaded?;
    let mut data_plane = AyaDataPlane {
        pins,
        generation,
        attacher,
        maps,
        drop_log,
    };
    let adoption = match found {
        Found::Nothing => Adoption::Fresh,
        Found::Differing(differences) => Adoption::Replaced { differences },
        Found::Fitting(_) => {
            let Installed {
                services, backends, ..
            } = data_plane.installed()?;
            Adoption::Reused {
                services: services.len(),
                backends: backends.len(),
            }
        }
    };
    Ok((data_plane, adoption))
}

/// Takes everything down: programs off the interfaces, links, maps and the pin directory itself. Works without a
/// daemon and on what a crash has left. Returns what was done, a line each; nothing when there was nothing to do.
///
/// # Errors
/// When a running daemon or another network namespace holds the pin directory, or something cannot be removed.
pub fn detach(pin_directory: &Path) -> Result<Vec<String>> {
    check_privileges()?;
    let Some(pins) = PinDirectory::existing(pin_directory)? else {
        return Ok(Vec::new());
    };
    adopt::check_namespace(&pins)?;
    let present = interfaces::list()?;
    let mut done = Vec::new();
    for index in pins.links()? {
        pins.remove_link(index)?;
        done.push(
            match present.iter().find(|interface| interface.index == index) {
                Some(interface) => format!("detached from {}", interface.name),
                None => format!("removed the link of interface index {index}, which is gone"),
            },
        );
    }
    for generation in pins.generations()? {
        pins.remove_generation(&generation)?;
        done.push(format!("removed the maps {}", generation.path.display()));
    }
    let path = pins.path().display().to_string();
    pins.remove()?;
    done.push(format!("removed {path}"));
    Ok(done)
}

impl AyaDataPlane {
    /// Writes what the program has logged since to the daemon's log. Nothing unless that was asked for at the start.
    pub fn flush_drop_log(&mut self) {
        self.drop_log.flush();
    }

    /// Brings the program onto every configured interface, in the place of an earlier daemon's program if there is
    /// one, and takes it off interfaces that are not configured any more. To be called when the maps are filled, and
    /// again from time to time: what is in order is left alone, what was impossible before is tried again.
    ///
    /// What is wrong with an interface is its attachment's note.
    ///
    /// # Errors
    /// When the kernel does not say which interfaces there are: nothing new is known of any.
    pub fn activate(&mut self) -> Result<Vec<Attachment>> {
        let result = self
            .attacher
            .activate(&self.pins)
            .and_then(|()| adopt::sweep(&self.pins, &self.generation));
        let attachments = self.attachments()?;
        if let Err(error) = result {
            tracing::warn!("attaching is incomplete and will be tried again: {error:#}");
        }
        Ok(attachments)
    }

    /// Configures other interfaces, for the next [`AyaDataPlane::activate`].
    pub fn set_interfaces(&mut self, interfaces: Vec<InterfaceSetting>) {
        self.attacher.set_interfaces(interfaces);
    }

    /// What is on the configured interfaces now, asked from the kernel.
    ///
    /// # Errors
    /// When the kernel does not say which interfaces there are: nothing new is known of any.
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        self.attacher.attachments(&self.pins)
    }
}

impl DataPlane for AyaDataPlane {
    fn installed(&mut self) -> Result<Installed> {
        let services = self
            .maps
            .services
            .iter()
            .collect::<Result<_, _>>()
            .context("cannot read the services map")?;
        Ok(Installed {
            services,
            backends: self.maps.backends.in_use(),
            tables: self.maps.tables.indexes(),
        })
    }

    fn service_capacity(&self) -> u32 {
        self.maps.tables.capacity()
    }

    fn backend_capacity(&self) -> u32 {
        self.maps.backends.capacity()
    }

    fn write_backend(&mut self, index: u32, entry: &BackendEntry) -> Result<()> {
        self.maps.backends.write(index, entry)
    }

    fn create_tables(&mut self, services: &[u32]) -> Result<()> {
        self.maps.tables.create(services)
    }

    fn read_slots(&mut self, service: u32) -> Result<Vec<Slot>> {
        self.maps.tables.read(service)
    }

    fn store_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()> {
        self.maps.tables.store(service, slots)
    }

    fn remove_table(&mut self, service: u32) -> Result<()> {
        self.maps.tables.remove(service)
    }

    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<()> {
        let capacity = self.service_capacity();
        ensure!(
            entry.index < capacity,
            "service index {} is not below {capacity} (limits.services)",
            entry.index
        );
        self.maps.services.insert(key, entry, 0).with_context(|| {
            format!(
                "cannot write {} to the services map, which holds {capacity} at most",
                name(key)
            )
        })
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Result<()> {
        match self.maps.services.remove(key) {
            Err(MapError::SyscallError(SyscallError { io_error, .. }))
                if io_error.kind() == ErrorKind::NotFound =>
            {
                Ok(())
            }
            result => {
                result.with_context(|| format!("cannot remove {} from the services map", name(key)))
            }
        }
    }

    fn verdicts(&mut self) -> Result<Vec<u64>> {
        let sum = |values: Result<PerCpuValues<u64>, _>| values.map(|values| values.iter().sum());
        self.maps
            .verdicts
            .iter()
            .map(sum)
            .collect::<Result<_, _>>()
            .context("cannot read the verdict counters")
    }

    fn service_counter(&mut self, service: u32) -> Result<Counter> {
        self.maps
            .service_stats
            .sum(service)
            .with_context(|| format!("cannot read the counter of service {service}"))
    }

    fn backend_counter(&mut self, backend: u32) -> Result<Counter> {
        self.maps
            .backend_stats
            .sum(backend)
            .with_context(|| format!("cannot read the counter of backend {backend}"))
    }

    fn reset_service_counter(&mut self, service: u32) -> Result<()> {
        self.maps
            .service_stats
            .reset(service)
            .with_context(|| format!("cannot reset the counter of service {service}"))
    }

    fn reset_backend_counter(&mut self, backend: u32) -> Result<()> {
        self.maps
            .backend_stats
            .reset(backend)
            .with_context(|| format!("cannot reset the counter of backend {backend}"))
    }

    fn flow_capacity(&self) -> u32 {
        0
    }

    fn flow_events(&mut self) -> Result<Vec<u64>> {
        anyhow::bail!("not yet")
    }

    fn scan_flows(&mut self, _visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()> {
        anyhow::bail!("not yet")
    }

    fn remove_flows(&mut self, _keys: &[FlowKey]) -> Result<u64> {
        anyhow::bail!("not yet")
    }
}

/// A service as errors name it.
fn name(key: &ServiceKey) -> String {
    let port = u16::from_be(key.port);
    format!(
        "service {}, protocol {}, port {port}",
        IpAddr::from(key.address),
        key.protocol
    )
}
