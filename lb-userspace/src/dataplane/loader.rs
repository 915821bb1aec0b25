//! The program and its maps, loaded into the kernel from the embedded object.

use super::{
    attach::{Attacher, InterfaceSetting},
    aya::Settings,
    backends::BackendArray,
    drop_log::DropLog,
    exits::Exits,
    flows::FlowTable,
    interfaces,
    object::BALANCER,
    pins::Generation,
    services::Services,
    shape::Wanted,
    slots::SlotTables,
};
use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, PerCpuArray, PerCpuValues},
    programs::Xdp,
    util::nr_cpus,
};
use lb_common::{
    maps,
    quic::{ServerEntry, ServerKey},
    stats::Counter,
    verdict::Verdict,
};

/// The program's maps.
pub(super) struct Maps {
    pub(super) services: Services,
    pub(super) tables: SlotTables,
    pub(super) backends: BackendArray,
    pub(super) verdicts: PerCpuArray<MapData, u64>,
    pub(super) service_stats: Counters,
    pub(super) backend_stats: Counters,
    pub(super) flows: FlowTable,
    pub(super) flow_events: PerCpuArray<MapData, u64>,
    pub(super) exits: Exits,
    pub(super) servers: HashMap<MapData, ServerKey, ServerEntry>,
}

impl Maps {
    /// Sets the counter of a service to zero and adds its packets to those that services had which are no more. No packet is counted for it
    /// at this moment, and the program never writes to that sum.
    pub(super) fn retire_service_counter(&mut self, service: u32) -> Result<()> {
        let packets = self.service_stats.sum(service)?.packets;
        if packets > 0 {
            let forwarded = Verdict::Forwarded as u32;
            let mut sum: Vec<u64> = self.verdicts.get(&forwarded, 0)?.to_vec();
            if let Some(first) = sum.first_mut() {
                *first += packets;
            }
            let sum = PerCpuValues::try_from(sum)?;
            self.verdicts.set(forwarded, sum, 0)?;
        }
        self.service_stats.reset(service)
    }
}

/// Loads the program with the maps of a generation: those that are pinned there are used, the others are made.
pub(super) fn load(
    settings: &Settings,
    wanted: &Wanted,
    generation: &Generation,
) -> Result<(Attacher, Maps, DropLog)> {
    let mut loader = with_pins(settings, generation, &maps::ALL);
    let log_level = DropLog::level();
    loader.override_global(maps::LOG_LEVEL, &log_level, true);
    let mut loaded = load_program(&mut loader, settings)?;
    let drop_log = DropLog::open(&mut loaded.ebpf, log_level)?;
    let attacher = Attacher::new(loaded.program()?, settings.interfaces.clone())?;

    let mut map = |name| take(&mut loaded.ebpf, name);
    let maps = Maps {
        services: Services::open(&map(maps::SERVICES)?, map(maps::SERVICE_PREFIXES)?)?,
        tables: SlotTables::open(map(maps::SLOT_TABLES)?, wanted.slot_table)?,
        backends: BackendArray::open(&map(maps::BACKENDS)?)?,
        verdicts: PerCpuArray::try_from(map(maps::VERDICTS)?)?,
        service_stats: Counters(PerCpuArray::try_from(map(maps::SERVICE_STATS)?)?),
        backend_stats: Counters(PerCpuArray::try_from(map(maps::BACKEND_STATS)?)?),
        flows: FlowTable::open(&map(maps::FLOWS)?)?,
        flow_events: PerCpuArray::try_from(map(maps::FLOW_EVENTS)?)?,
        exits: Exits::open(map(maps::EXITS)?, map(maps::EXIT_MACS)?)?,
        servers: HashMap::try_from(map(maps::QUIC_SERVERS)?)?,
    };
    Ok((attacher, maps, drop_log))
}

/// A loader of the program, its log off, with those of a generation's maps that are named; the others are made.
pub(super) fn with_pins<'a>(
    settings: &'a Settings,
    generation: &Generation,
    names: &[&'static str],
) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.override_global(maps::HASH_SEED, &settings.hash_seed, true);
    loader.override_global(maps::LOG_LEVEL, &0_u8, true);
    let service_mask = settings.sizes().service_mask();
    loader.override_global(maps::SERVICE_MASK, service_mask, true);
    for name in names {
        loader.map_pin_path(name, generation.path.join(name));
    }
    for name in maps::ALL {
        if let Some(entries) = settings.sizes().entries(name) {
            loader.map_max_entries(name, entries);
        }
    }
    loader
}

/// The object in the kernel, with the one program of it that is loaded.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    name: &'static str,
}

impl Loaded {
    /// The program.
    pub(super) fn program(&mut self) -> Result<&mut Xdp> {
        program(&mut self.ebpf, self.name)
    }
}

/// Loads the program into the kernel: the one for jumbo frames if there are any and the kernel has it.
pub(super) fn load_program(loader: &mut EbpfLoader<'_>, settings: &Settings) -> Result<Loaded> {
    let mut ebpf = loader
        .load(BALANCER)
        .context("cannot create the maps of the XDP program")?;
    if has_jumbo_frames(&settings.interfaces)? {
        match program(&mut ebpf, maps::FRAGS_PROGRAM)?.load() {
            Ok(()) => {
                let name = maps::FRAGS_PROGRAM;
                return Ok(Loaded { ebpf, name });
            }
            Err(error) => tracing::warn!(
                "interfaces with an MTU above {JUMBO} may refuse native XDP: the kernel refuses the program for jumbo \
                 frames, which needs Linux 5.18: {error}"
            ),
        }
    }
    program(&mut ebpf, maps::PROGRAM)?
        .load()
        .context("the kernel refuses the XDP program; Linux 5.15 or newer is needed")?;
    let name = maps::PROGRAM;
    Ok(Loaded { ebpf, name })
}

/// An MTU above this may need several buffers a frame: drivers split pages, and veth has some 3,500 bytes for one.
const JUMBO: u32 = 2_000;

fn has_jumbo_frames(settings: &[InterfaceSetting]) -> Result<bool> {
    let configured = |name: &str| settings.iter().any(|setting| setting.name == name);
    Ok(interfaces::list()?
        .iter()
        .any(|interface| interface.mtu > JUMBO && configured(&interface.name)))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the embedded eBPF object has no program {name}; build again"))?;
    Ok(program.try_into()?)
}

pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name)
        .with_context(|| format!("the embedded eBPF object has no map {name}; build again"))
}

/// Counters of all services or of all backends, by index.
pub(super) struct Counters(PerCpuArray<MapData, Counter>);

impl Counters {
    /// Sum of one counter over all CPUs.
    pub(super) fn sum(&self, index: u32) -> Result<Counter> {
        let add = |a: Counter, b: &Counter| Counter {
            packets: a.packets + b.packets,
            bytes: a.bytes + b.bytes,
        };
        Ok(self.0.get(&index, 0)?.iter().fold(Counter::default(), add))
    }

    /// Sets one counter to zero on all CPUs.
    pub(super) fn reset(&mut self, index: u32) -> Result<()> {
        let cpus = nr_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
        self.0.set(
            index,
            PerCpuValues::try_from(vec![Counter::default(); cpus])?,
            0,
        )?;
        Ok(())
    }
}
