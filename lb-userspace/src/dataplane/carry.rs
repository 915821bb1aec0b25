//! Carrying over: what the attached program's maps hold, copied into new maps of other sizes, so that a change of the limits
//! forgets nothing.
//!
//! **Invariants.** The old maps are read only: the old program goes on with them. Nothing is written before all is known to
//! fit, and what is written keeps its index, bit by bit. Only flows change in the old maps meanwhile, as their daemon is
//! gone; those are copied again when the new program takes over.

use super::{
    backends::BackendArray,
    clock,
    flows::FlowTable,
    loader::Maps,
    lru_flows::LruFlows,
    pins::Generation,
    services,
    shape::{Shape, Wanted},
    slots::SlotTables,
};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowKey},
    maps,
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
};
use std::{collections::BTreeMap, time::Duration};

/// The layout version that had steady slots and no flow table, and else was as it is now.
const STEADY_ONLY: u32 = 1;
/// The last whose slots had their flags elsewhere.
const FLAGS_BELOW: u32 = 6;

/// What was carried over into new maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Services, with their slot tables.
    pub services: usize,
    /// Backend entries in use.
    pub backends: usize,
    /// Entries of the flow table.
    pub flows: u64,
}

/// The attached program's maps, opened to be copied.
pub(super) struct OldMaps {
    services: BTreeMap<ServiceKey, ServiceEntry>,
    backends: BTreeMap<u32, BackendEntry>,
    tables: SlotTables,
    /// What a slot's word means.
    slot: fn(u64) -> Slot,
    flows: Option<OldFlowTable>,
    servers: BTreeMap<ServerKey, ServerEntry>,
}

impl OldMaps {
    /// Opens the maps of a generation. The error says why they cannot be read.
    pub(super) fn open(generation: &Generation, wanted: &Wanted) -> Result<Self> {
        let layout = generation.layout;
        ensure!(
            (STEADY_ONLY..=maps::LAYOUT_VERSION).contains(&layout),
            "this lbd cannot read maps of layout version {layout}"
        );
        let open = |name| open(generation, name, wanted);
        // What ran before there were prefixes has no map of them.
        let prefixes = generation.path.join(maps::SERVICE_PREFIXES).exists();
        let prefixes = prefixes.then(|| open(maps::SERVICE_PREFIXES)).transpose()?;
        let services = services::entries(pinned(generation, maps::SERVICES)?, prefixes)?;
        let flows = if layout == STEADY_ONLY {
            None
        } else {
            Some(OldFlowTable::open(pinned(generation, maps::FLOWS)?)?)
        };
        // Maps of an earlier version have none.
        let servers = if generation.path.join(maps::QUIC_SERVERS).exists() {
            let servers: HashMap<_, ServerKey, ServerEntry> =
                HashMap::try_from(open(maps::QUIC_SERVERS)?)?;
            servers
                .iter()
                .collect::<Result<_, _>>()
                .context("cannot read the map of servers")?
        } else {
            BTreeMap::new()
        };
        Ok(Self {
            servers,
            services,
            backends: BackendArray::open(&open(maps::BACKENDS)?)?.in_use(),
            tables: SlotTables::open(open(maps::SLOT_TABLES)?, wanted.slot_table)?,
            slot: if layout <= FLAGS_BELOW {
                Slot::of_version_6
            } else {
                Slot
            },
            flows,
        })
    }

    /// Refuses what has no room in `new`.
    pub(super) fn check_room(&self, new: &Maps) -> Result<()> {
        let (tables, backends) = (new.tables.capacity(), new.backends.capacity());
        let services = self.services.values().map(|entry| entry.index);
        if let Some(index) = services.chain(self.tables.indexes()).max()
            && index >= tables
        {
            bail!("service index {index} is in use and not below {tables} (limits.services)");
        }
        if let Some((index, _)) = self.backends.last_key_value()
            && *index >= backends
        {
            bail!("backend index {index} is in use and not below {backends} (limits.backends)");
        }
        Ok(())
    }

    /// Copies everything into `new`, which is empty, in the order that the data plane asks for.
    pub(super) fn copy_to(&self, new: &mut Maps) -> Result<Carried> {
        for (index, entry) in &self.backends {
            new.backends.write(*index, entry)?;
        }
        let tables = self.tables.indexes();
        new.tables.create(&tables)?;
        for index in tables {
            let slots: Vec<(u32, Slot)> = (0..)
                .zip(self.tables.read_as(index, self.slot)?)
                .filter(|(_, slot)| *slot != Slot::EMPTY)
                .collect();
            new.tables.store(index, &slots)?;
        }
        let flows = match &self.flows {
            Some(flows) => flows.copy_since(0, &new.flows)?,
            None => 0,
        };
        for (key, entry) in &self.servers {
            new.servers
                .insert(key, entry, 0)
                .context("cannot write to the map of servers")?;
        }
        for (key, entry) in &self.services {
            new.services.put(key, entry)?;
        }
        Ok(Carried {
            services: self
                .services
                .keys()
                .filter(|key| !key.is_of_address())
                .count(),
            backends: self.backends.len(),
            flows,
        })
    }

    /// The flow table, to be copied again later: all that changes in it after `copied`, a moment before
    /// [`OldMaps::copy_to`] was called.
    pub(super) fn into_flows(self, copied: Duration) -> Option<OldFlows> {
        let flows = self.flows?;
        Some(OldFlows { flows, copied })
    }
}

/// A flow table of whatever layout.
#[derive(Debug)]
enum OldFlowTable {
    Sets(FlowTable),
    /// Up to layout version 4.
    Lru(LruFlows),
}

impl OldFlowTable {
    fn open(map: Map) -> Result<Self> {
        if let Map::LruHashMap(data) = &map {
            return Ok(Self::Lru(LruFlows::open(data)?));
        }
        Ok(Self::Sets(FlowTable::open(&map)?))
    }

    fn scan(&self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()> {
        match self {
            Self::Sets(flows) => {
                flows.scan(visit);
                Ok(())
            }
            Self::Lru(flows) => flows.scan(visit),
        }
    }

    /// Copies to `new` the entries of flows that it does not know, and returns how many. Only those are looked at of which
    /// a packet was seen at `since` or later, in seconds of CLOCK_MONOTONIC.
    fn copy_since(&self, since: u32, new: &FlowTable) -> Result<u64> {
        let mut copied = Ok(0);
        self.scan(&mut |key, entry| {
            if entry.seen >= since
                && let Ok(count) = &mut copied
            {
                match new.add(key, entry) {
                    Ok(is_new) => *count += u64::from(is_new),
                    Err(error) => copied = Err(error),
                }
            }
        })?;
        copied
    }
}

/// A flow table that has been copied, and whose program is still attached.
#[derive(Debug)]
pub(super) struct OldFlows {
    flows: OldFlowTable,
    /// When copying last began.
    copied: Duration,
}

impl OldFlows {
    /// The program's clock may be a tick behind, and counts whole seconds.
    const MARGIN: Duration = Duration::from_secs(1);

    /// Copies the flows that were recorded since the last time and that `new` does not know. Returns how many.
    pub(super) fn copy_to(&mut self, new: &FlowTable) -> Result<u64> {
        let now = clock::monotonic();
        let since = clock::seconds(self.copied.saturating_sub(Self::MARGIN));
        let copied = self.flows.copy_since(since, new)?;
        self.copied = now;
        Ok(copied)
    }
}

/// Opens a map, whatever it was made as.
fn pinned(generation: &Generation, name: &str) -> Result<Map> {
    let path = generation.path.join(name);
    let map =
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Map::from_map_data(map)?)
}

/// Opens a map that differs in nothing but its size from what is wanted.
fn open(generation: &Generation, name: &'static str, wanted: &Wanted) -> Result<Map> {
    let path = generation.path.join(name);
    let map =
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let shape = Shape::of(&map.info()?)?;
    ensure!(
        wanted.is_of_other_size(name, shape),
        "map {name} is of another kind: {shape}"
    );
    Ok(Map::from_map_data(map)?)
}
