//! The program and its maps, loaded into the kernel from the embedded object.

use super::{
    attach::Attacher, aya::Settings, backends::BackendArray, drop_log::DropLog, exits::Exits,
    flows::FlowTable, object::BALANCER, pins::Generation, shape::Wanted, slots::SlotTables,
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
    service::{ServiceEntry, ServiceKey},
    stats::Counter,
};

/// The program's maps.
pub(super) struct Maps {
    pub(super) services: HashMap<MapData, ServiceKey, ServiceEntry>,
    pub(super) tables: SlotTables,
    pub(super) backends: BackendArray,
    pub(super) verdicts: PerCpuArray<MapData, u64>,
    pub(super) service_stats: Counters,
    pub(super) backend_stats: Counters,
    pub(super) flows: FlowTable,
    pub(super) flow_events: PerCpuArray<MapData, u64>,
    pub(super) exits: Exits,
}

/// Loads the program with the maps of a generation: those that are pinned there are used, the others are made.
pub(super) fn load(
    settings: &Settings,
    wanted: &Wanted,
    generation: &Generation,
) -> Result<(Attacher, Maps, DropLog)> {
    let mut loader = EbpfLoader::new();
    loader.override_global(maps::HASH_SEED, &settings.hash_seed, true);
    let log_level = DropLog::level();
    loader.override_global(maps::LOG_LEVEL, &log_level, true);
    for name in maps::ALL {
        loader.map_pin_path(name, generation.path.join(name));
        if let Some(entries) = settings.sizes().entries(name) {
            loader.map_max_entries(name, entries);
        }
    }
    let mut ebpf = loader
        .load(BALANCER)
        .context("cannot create the maps of the XDP program")?;
    let drop_log = DropLog::open(&mut ebpf, log_level)?;
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
    let maps = Maps {
        services: HashMap::try_from(map(maps::SERVICES)?)?,
        tables: SlotTables::open(map(maps::SLOT_TABLES)?, wanted.slot_table)?,
        backends: BackendArray::open(&map(maps::BACKENDS)?)?,
        verdicts: PerCpuArray::try_from(map(maps::VERDICTS)?)?,
        service_stats: Counters(PerCpuArray::try_from(map(maps::SERVICE_STATS)?)?),
        backend_stats: Counters(PerCpuArray::try_from(map(maps::BACKEND_STATS)?)?),
        flows: FlowTable::open(map(maps::FLOWS)?)?,
        flow_events: PerCpuArray::try_from(map(maps::FLOW_EVENTS)?)?,
        exits: Exits::open(map(maps::EXITS)?, map(maps::EXIT_MACS)?)?,
    };
    Ok((attacher, maps, drop_log))
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
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
