//! The real data plane: the XDP program and its maps in the kernel.
//!
//! **Invariants.** Links and maps are pinned before anything depends on them, so the daemon may die at any point and
//! packets keep flowing. The attached program is only ever replaced by one whose maps are ready. Calls never
//! panic, and block for some ten milliseconds at most, waiting for the kernel; only opening takes longer.

use super::{
    DataPlane, Installed,
    adopt::{self, Adoption, Found},
    attach::{Attacher, Attachment, InterfaceSetting},
    carry::{Carried, OldFlows, OldMaps},
    clock,
    drop_log::DropLog,
    exits, interfaces,
    loader::{self, Maps},
    looking::{Loader, Tracer},
    object::BALANCER,
    pins::{Generation, PinDirectory},
    services::absent_is_fine,
    shape::{Sizes, Wanted},
};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowKey},
    maps,
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    stats::Counter,
    verdict::Verdict,
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
    /// Flows that the flow table is made for (`limits.flows`).
    pub flows: u32,
}

impl Settings {
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            services: self.services,
            backends: self.backends,
            flows: self.flows,
        }
    }
}

/// The program in the kernel, its maps, and the interfaces it is attached to.
pub struct AyaDataPlane {
    settings: Settings,
    pins: PinDirectory,
    generation: Generation,
    attacher: Attacher,
    maps: Maps,
    drop_log: DropLog,
    /// The flow table of maps that were carried over, as long as their program may still write to it.
    old_flows: Option<OldFlows>,
    /// Whether the program has been told where packets can be redirected to.
    knows_exits: bool,
}

/// Loads the program, with the attached program's maps if they fit. If not, it makes new ones and copies into them what
/// the old ones hold, counters excepted. Attaches nothing yet and does not disturb what is attached.
///
/// # Errors
/// When privileges or the BPF file system are missing, another process or another network namespace holds the pin
/// directory, or the kernel refuses the program. What was attached before stays as it was.
pub fn open(settings: &Settings) -> Result<(AyaDataPlane, Adoption)> {
    check_privileges()?;
    let wanted = Wanted::new(BALANCER, &settings.sizes())?;
    let pins = PinDirectory::open(&settings.pin_directory)?;
    adopt::check_namespace(&pins)?;
    let found = adopt::find(&pins, &wanted)?;
    let (generation, new) = match &found {
        Found::Fitting(generation) => (generation.clone(), false),
        Found::Nothing | Found::Differing(..) => (pins.new_generation(maps::LAYOUT_VERSION)?, true),
    };
    adopt::sweep(&pins, &generation)?;

    let discard = || {
        if new {
            // The next start would remove it too, but its memory is wanted back now.
            let _ = pins.remove_generation(&generation);
        }
    };
    let loaded = loader::load(settings, &wanted, &generation).inspect_err(|_| discard());
    let (attacher, mut maps, drop_log) = loaded?;
    let (adoption, old_flows) = match found {
        Found::Nothing => (Adoption::Fresh, None),
        Found::Differing(old, differences) => {
            let (carried, old_flows) =
                carry_over(&old, &wanted, &mut maps).inspect_err(|_| discard())?;
            let replaced = Adoption::Replaced {
                differences,
                carried,
            };
            (replaced, old_flows)
        }
        Found::Fitting(_) => (reused(&maps)?, None),
    };
    let data_plane = AyaDataPlane {
        settings: settings.clone(),
        pins,
        generation,
        attacher,
        maps,
        drop_log,
        old_flows,
        knows_exits: false,
    };
    Ok((data_plane, adoption))
}

fn reused(maps: &Maps) -> Result<Adoption> {
    let Installed {
        services, backends, ..
    } = installed(maps)?;
    Ok(Adoption::Reused {
        services: services.len(),
        backends: backends.len(),
    })
}

/// Copies what the maps of a generation hold into new ones, if it can be read and fits; if not, says why. An error means
/// that the new maps could not be written.
fn carry_over(
    old: &Generation,
    wanted: &Wanted,
    new: &mut Maps,
) -> Result<(Result<Carried, String>, Option<OldFlows>)> {
    let old = OldMaps::open(old, wanted).and_then(|old| {
        old.check_room(new)?;
        Ok(old)
    });
    match old {
        Ok(old) => {
            let now = clock::monotonic();
            let carried = old
                .copy_to(new)
                .context("cannot carry over what the running data plane holds")?;
            Ok((Ok(carried), old.into_flows(now)))
        }
        Err(why) => Ok((Err(format!("{why:#}")), None)),
    }
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

/// What is on these interfaces, for somebody who holds no pin directory: a program by one of our names counts as ours.
///
/// # Errors
/// When the kernel does not say which interfaces there are.
pub fn observe(settings: &[InterfaceSetting]) -> Result<Vec<Attachment>> {
    let present = interfaces::list()?;
    let look = |setting: &InterfaceSetting| {
        let found = present
            .iter()
            .find(|interface| interface.name == setting.name);
        let ours = found.and_then(|interface| interface.xdp).filter(|xdp| {
            let info = adopt::program(xdp.program);
            let name = info
                .as_ref()
                .and_then(|info| info.name_as_str())
                .unwrap_or_default();
            [lb_common::maps::PROGRAM, lb_common::maps::FRAGS_PROGRAM].contains(&name)
        });
        Attachment {
            name: setting.name.clone(),
            index: found.map_or(0, |interface| interface.index),
            up: found.is_some_and(|interface| interface.up),
            mode: ours.map(|xdp| xdp.mode),
            program_id: ours.map_or(0, |xdp| xdp.program),
            note: if ours.is_some() {
                String::new()
            } else {
                "no program of ours is on it".into()
            },
        }
    };
    Ok(settings.iter().map(look).collect())
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
        // Before the new program takes over, so that it knows nearly all flows from its first packet on, and its exits.
        self.copy_flows();
        if !std::mem::replace(&mut self.knows_exits, true) {
            let (_, exits) = self.attacher.look(&self.pins)?;
            self.set_exits(&exits);
        }
        let result = self
            .attacher
            .activate(&self.pins)
            .and_then(|()| adopt::sweep(&self.pins, &self.generation));
        // And after it has, as the old one recorded flows until then.
        self.copy_flows();
        if matches!(self.pins.generations().as_deref(), Ok([_])) {
            self.old_flows = None;
        }
        let (attachments, exits) = self.attacher.look(&self.pins)?;
        self.set_exits(&exits);
        if let Err(error) = result {
            tracing::warn!("attaching is incomplete and will be tried again: {error:#}");
        }
        Ok(attachments)
    }

    /// What loads the program once more, to look on.
    pub fn loader(&self) -> Loader {
        Loader {
            settings: self.settings.clone(),
            generation: self.generation.clone(),
        }
    }

    /// Puts a program that traces in the place of the attached one, on every interface, each at once.
    ///
    /// # Errors
    /// When the kernel does not hand out the program, or does not say which interfaces there are.
    pub fn trace(&mut self, tracer: &mut Tracer) -> Result<Vec<Attachment>> {
        self.attacher.stand_in(Some(tracer.program()?));
        self.activate()
    }

    /// Puts the program that only forwards back in its place.
    ///
    /// # Errors
    /// As [`AyaDataPlane::activate`].
    pub fn end_trace(&mut self) -> Result<Vec<Attachment>> {
        self.attacher.stand_in(None);
        self.activate()
    }

    /// Tells the program where packets can be redirected to; what could not be written is tried again in the next tick.
    fn set_exits(&mut self, exits: &exits::Wanted) {
        if let Err(error) = self.maps.exits.set(exits) {
            tracing::warn!("packets may be dropped as drop_wrong_interface: {error:#}");
        }
    }

    /// Copies the flows that the old program has recorded since.
    fn copy_flows(&mut self) {
        if let Some(old) = &mut self.old_flows {
            match old.copy_to(&self.maps.flows) {
                Ok(0) => {}
                Ok(flows) => tracing::info!(flows, "flows recorded meanwhile were carried over"),
                Err(error) => tracing::warn!(
                    "flows that the old program has recorded are forgotten, and may go to other backends: {error:#}"
                ),
            }
        }
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
        Ok(self.attacher.look(&self.pins)?.0)
    }
}

impl DataPlane for AyaDataPlane {
    fn installed(&mut self) -> Result<Installed> {
        installed(&self.maps)
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

    fn read_some_slots(&mut self, service: u32, numbers: &[u32]) -> Result<Vec<Slot>> {
        self.maps.tables.read_some(service, numbers)
    }

    fn store_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()> {
        self.maps.tables.store(service, slots)
    }

    fn remove_table(&mut self, service: u32) -> Result<()> {
        self.maps.tables.remove(service)?;
        self.reset_service_counter(service)
    }

    fn put_server(&mut self, key: &ServerKey, entry: &ServerEntry) -> Result<()> {
        self.maps.servers.insert(key, entry, 0).with_context(|| {
            format!(
                "cannot write server ID {:x} of service {} to the map of servers",
                key.id, key.service
            )
        })
    }

    fn remove_server(&mut self, key: &ServerKey) -> Result<()> {
        absent_is_fine(self.maps.servers.remove(key)).with_context(|| {
            format!(
                "cannot remove server ID {:x} of service {} from the map of servers",
                key.id, key.service
            )
        })
    }

    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<()> {
        let capacity = self.service_capacity();
        ensure!(
            entry.index < capacity,
            "service index {} is not below {capacity} (limits.services)",
            entry.index
        );
        self.maps
            .services
            .put(key, entry)
            .with_context(|| format!("there is room for {capacity} services"))
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.maps.services.remove(key)
    }

    fn verdicts(&mut self) -> Result<Vec<u64>> {
        let mut verdicts = sums(&self.maps.verdicts).context("cannot read the verdict counters")?;
        for service in self.maps.tables.indexes() {
            let packets = self.service_counter(service)?.packets;
            if let Some(forwarded) = verdicts.get_mut(Verdict::Forwarded as usize) {
                *forwarded += packets;
            }
        }
        Ok(verdicts)
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
            .retire_service_counter(service)
            .with_context(|| format!("cannot reset the counter of service {service}"))
    }

    fn reset_backend_counter(&mut self, backend: u32) -> Result<()> {
        self.maps
            .backend_stats
            .reset(backend)
            .with_context(|| format!("cannot reset the counter of backend {backend}"))
    }

    fn flow_capacity(&self) -> u32 {
        self.settings.flows
    }

    fn flow_events(&mut self) -> Result<Vec<u64>> {
        sums(&self.maps.flow_events).context("cannot read the counters of the flow table")
    }

    fn scan_flows(&mut self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()> {
        self.maps.flows.scan(visit);
        Ok(())
    }

    fn remove_flows(&mut self, keys: &[FlowKey]) -> Result<u64> {
        self.maps.flows.remove(keys)
    }
}

fn installed(maps: &Maps) -> Result<Installed> {
    Ok(Installed::new(
        maps.services.entries()?,
        maps.backends.in_use(),
        maps.tables.indexes(),
        maps.servers
            .iter()
            .collect::<Result<_, _>>()
            .context("cannot read the map of servers")?,
    ))
}

/// The counts of a per-CPU array, summed over CPUs.
fn sums(counts: &PerCpuArray<MapData, u64>) -> Result<Vec<u64>, MapError> {
    let sum = |values: Result<PerCpuValues<u64>, _>| values.map(|values| values.iter().sum());
    counts.iter().map(sum).collect()
}
