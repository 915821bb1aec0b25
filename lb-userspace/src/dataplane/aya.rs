//! The real data plane: the XDP program and its maps in the kernel.
//!
//! **Invariants.** Links and maps are pinned before anything depends on them, so the daemon may die at any point and
//! packets keep flowing. The attached program is only ever replaced by one whose maps are ready. Calls block for some
//! milliseconds at most, and never panic.

use super::{
    DataPlane, Installed,
    adopt::{self, Adoption, Found},
    attach::{Attacher, Attachment, InterfaceSetting},
    backends::BackendArray,
    interfaces,
    object::BALANCER,
    pins::{Generation, PinDirectory},
    shape::{self, Wanted},
    slots::SlotTables,
};
use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
    programs::Xdp,
    util::nr_cpus,
};
use lb_common::{
    backend::BackendEntry,
    maps,
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    stats::Counter,
};
use std::path::{Path, PathBuf};

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
    services: HashMap<MapData, ServiceKey, ServiceEntry>,
    service_capacity: u32,
    tables: SlotTables,
    backends: BackendArray,
    verdicts: PerCpuArray<MapData, u64>,
    service_stats: PerCpuArray<MapData, Counter>,
    backend_stats: PerCpuArray<MapData, Counter>,
}

/// Loads the program, with the attached program's maps if they fit and with new ones if not. Attaches nothing yet and
/// does not disturb what is attached.
///
/// # Errors
/// When privileges or the BPF file system are missing, another process holds the pin directory, or the kernel refuses
/// the program. What was attached before stays as it was.
pub fn open(settings: &Settings) -> Result<(AyaDataPlane, Adoption)> {
    check_privileges()?;
    let wanted = Wanted::new(BALANCER, settings.services, settings.backends)?;
    let pins = PinDirectory::open(&settings.pin_directory)?;
    let found = adopt::find(&pins, &wanted)?;
    let generation = match &found {
        Found::Fitting(generation) => generation.clone(),
        Found::Nothing | Found::Differing(_) => pins.new_generation(maps::LAYOUT_VERSION)?,
    };
    adopt::sweep(&pins, &generation)?;

    let mut data_plane = load(settings, &wanted, pins, generation)?;
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
/// When a running daemon holds the pin directory, or something cannot be removed.
pub fn detach(pin_directory: &Path) -> Result<Vec<String>> {
    check_privileges()?;
    let Some(pins) = PinDirectory::existing(pin_directory)? else {
        return Ok(Vec::new());
    };
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

fn load(
    settings: &Settings,
    wanted: &Wanted,
    pins: PinDirectory,
    generation: Generation,
) -> Result<AyaDataPlane> {
    let mut loader = EbpfLoader::new();
    loader.override_global(maps::HASH_SEED, &settings.hash_seed, true);
    for name in maps::ALL {
        loader.map_pin_path(name, generation.path.join(name));
        if let Some(entries) = shape::entries(name, settings.services, settings.backends) {
            loader.map_max_entries(name, entries);
        }
    }
    let mut ebpf = loader
        .load(BALANCER)
        .context("cannot create the maps of the XDP program")?;
    let program: &mut Xdp = ebpf
        .program_mut(maps::PROGRAM)
        .with_context(|| {
            format!(
                "the embedded eBPF object has no program {}; build again",
                maps::PROGRAM
            )
        })?
        .try_into()?;
    program
        .load()
        .context("the kernel refuses the XDP program; Linux 5.15 or newer is needed")?;
    let attacher = Attacher::new(program, settings.interfaces.clone())?;

    let mut map = |name| take(&mut ebpf, name);
    Ok(AyaDataPlane {
        services: HashMap::try_from(map(maps::SERVICES)?)?,
        service_capacity: settings.services,
        tables: SlotTables::open(map(maps::SLOT_TABLES)?, wanted.slot_table)?,
        backends: BackendArray::open(&map(maps::BACKENDS)?)?,
        verdicts: PerCpuArray::try_from(map(maps::VERDICTS)?)?,
        service_stats: PerCpuArray::try_from(map(maps::SERVICE_STATS)?)?,
        backend_stats: PerCpuArray::try_from(map(maps::BACKEND_STATS)?)?,
        pins,
        generation,
        attacher,
    })
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the embedded eBPF object has no map {name}; build again"))
}

impl AyaDataPlane {
    /// Brings the program onto every configured interface, in the place of an earlier daemon's program if there is
    /// one, and takes it off interfaces that are not configured any more. To be called when the maps are filled, and
    /// again from time to time: what is in order is left alone, what was impossible before is tried again.
    ///
    /// Never fails as a whole: each attachment's note says what is wrong with it.
    pub fn activate(&mut self) -> Vec<Attachment> {
        let result = self
            .attacher
            .activate(&self.pins)
            .and_then(|()| adopt::sweep(&self.pins, &self.generation));
        if let Err(error) = result {
            tracing::warn!("attaching is incomplete and will be tried again: {error:#}");
        }
        self.attachments()
    }

    /// Configures other interfaces, for the next [`AyaDataPlane::activate`].
    pub fn set_interfaces(&mut self, interfaces: Vec<InterfaceSetting>) {
        self.attacher.set_interfaces(interfaces);
    }

    /// What is on the configured interfaces now, asked from the kernel.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.attacher.attachments(&self.pins)
    }
}

impl DataPlane for AyaDataPlane {
    fn installed(&mut self) -> Result<Installed> {
        let services = self
            .services
            .iter()
            .collect::<Result<_, _>>()
            .context("cannot read the services map")?;
        Ok(Installed {
            services,
            backends: self.backends.in_use(),
            tables: self.tables.indexes(),
        })
    }

    fn service_capacity(&self) -> u32 {
        self.service_capacity
    }

    fn backend_capacity(&self) -> u32 {
        self.backends.capacity()
    }

    fn write_backend(&mut self, index: u32, entry: &BackendEntry) -> Result<()> {
        self.backends.write(index, entry)
    }

    fn create_table(&mut self, service: u32) -> Result<()> {
        self.tables.create(service)
    }

    fn read_slots(&mut self, service: u32) -> Result<Vec<Slot>> {
        self.tables.read(service)
    }

    fn store_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()> {
        self.tables.store(service, slots)
    }

    fn remove_table(&mut self, service: u32) -> Result<()> {
        self.tables.remove(service)
    }

    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<()> {
        let capacity = self.service_capacity;
        ensure!(
            entry.index < capacity,
            "service index {} is not below {capacity} (limits.services)",
            entry.index
        );
        self.services.insert(key, entry, 0).with_context(|| {
            format!("cannot write {key:?} to the services map, which holds {capacity} at most")
        })
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Result<()> {
        match self.services.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot remove {key:?} from the services map"))
            }
        }
    }

    fn verdicts(&mut self) -> Result<Vec<u64>> {
        let sum = |values: Result<PerCpuValues<u64>, _>| values.map(|values| values.iter().sum());
        self.verdicts
            .iter()
            .map(sum)
            .collect::<Result<_, _>>()
            .context("cannot read the verdict counters")
    }

    fn service_counter(&mut self, service: u32) -> Result<Counter> {
        counter(&self.service_stats, service)
            .with_context(|| format!("cannot read the counter of service {service}"))
    }

    fn backend_counter(&mut self, backend: u32) -> Result<Counter> {
        counter(&self.backend_stats, backend)
            .with_context(|| format!("cannot read the counter of backend {backend}"))
    }

    fn reset_service_counter(&mut self, service: u32) -> Result<()> {
        reset(&mut self.service_stats, service)
            .with_context(|| format!("cannot reset the counter of service {service}"))
    }

    fn reset_backend_counter(&mut self, backend: u32) -> Result<()> {
        reset(&mut self.backend_stats, backend)
            .with_context(|| format!("cannot reset the counter of backend {backend}"))
    }
}

/// Sum over all CPUs.
fn counter(map: &PerCpuArray<MapData, Counter>, index: u32) -> Result<Counter> {
    let add = |a: Counter, b: &Counter| Counter {
        packets: a.packets + b.packets,
        bytes: a.bytes + b.bytes,
    };
    Ok(map.get(&index, 0)?.iter().fold(Counter::default(), add))
}

fn reset(map: &mut PerCpuArray<MapData, Counter>, index: u32) -> Result<()> {
    let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    map.set(
        index,
        PerCpuValues::try_from(vec![Counter::default(); cpus])?,
        0,
    )?;
    Ok(())
}
