//! Shapes of maps: what the embedded object and the configured limits want, what the kernel has, and how they differ.

use anyhow::{Context as _, Result};
use aya::maps::MapInfo;
use aya_obj::{
    Object,
    generated::{BPF_F_RDONLY_PROG, bpf_map_type},
};
use lb_common::{flow_set, maps, service_bucket::ServiceBucket};
use std::fmt;

/// What has to be equal for a program to be able to use a map. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

impl Shape {
    fn wanted(map: &aya_obj::Map, entries: Option<u32>) -> Self {
        Self {
            kind: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            entries: entries.unwrap_or(map.max_entries()),
            flags: map.map_flags(),
        }
    }

    /// The shape of a map in the kernel.
    pub(super) fn of(info: &MapInfo) -> Result<Self> {
        let kind = info.map_type()? as u32;
        // The kernel sets this flag on every device map, and refuses one that is made with it.
        let own = if kind == bpf_map_type::BPF_MAP_TYPE_DEVMAP_HASH as u32 {
            BPF_F_RDONLY_PROG
        } else {
            0
        };
        Ok(Self {
            kind,
            key_size: info.key_size(),
            value_size: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags() & !own,
        })
    }

    /// What makes a map of this shape.
    pub(super) fn definition(&self) -> aya_obj::Map {
        aya_obj::Map::new_from_params(
            self.kind,
            self.key_size,
            self.value_size,
            self.entries,
            self.flags,
        )
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match bpf_map_type::try_from(self.kind) {
            Ok(bpf_map_type::BPF_MAP_TYPE_HASH) => f.write_str("hash")?,
            Ok(bpf_map_type::BPF_MAP_TYPE_LRU_HASH) => f.write_str("LRU hash")?,
            Ok(bpf_map_type::BPF_MAP_TYPE_ARRAY) => f.write_str("array")?,
            Ok(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY) => f.write_str("per-CPU array")?,
            Ok(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS) => f.write_str("array of maps")?,
            Ok(bpf_map_type::BPF_MAP_TYPE_LPM_TRIE) => f.write_str("trie of prefixes")?,
            Ok(bpf_map_type::BPF_MAP_TYPE_DEVMAP_HASH) => f.write_str("device map")?,
            _ => write!(f, "map of type {}", self.kind)?,
        }
        write!(
            f,
            " of {} entries, key {} B, value {} B",
            self.entries, self.key_size, self.value_size
        )?;
        if self.flags != 0 {
            write!(f, ", flags {:#x}", self.flags)?;
        }
        Ok(())
    }
}

/// The shapes that a program wants.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Each of [`maps::ALL`].
    pub(super) maps: Vec<(&'static str, Shape)>,
    /// A slot table.
    pub(super) slot_table: Shape,
}

impl Wanted {
    /// The shapes that `object` wants for maps of these sizes.
    pub(super) fn new(object: &[u8], sizes: &Sizes) -> Result<Self> {
        const NOT_OURS: &str = "the embedded eBPF object is not one of this version's; build again";
        let object = Object::parse(object).context(NOT_OURS)?;
        let map = |name| {
            object
                .maps
                .get(name)
                .with_context(|| format!("map {name} is missing: {NOT_OURS}"))
        };
        let wanted = |name| Ok((name, Shape::wanted(map(name)?, sizes.entries(name))));
        let slot_table = map(maps::SLOT_TABLES)?.inner().context(NOT_OURS)?;
        Ok(Self {
            maps: maps::ALL.into_iter().map(wanted).collect::<Result<_>>()?,
            slot_table: Shape::wanted(&slot_table, None),
        })
    }

    /// Whether a map of this name and shape differs in its number of entries at most.
    pub(super) fn is_of_other_size(&self, name: &str, shape: Shape) -> bool {
        let alike = |wanted: &Shape| {
            *wanted
                == Shape {
                    entries: wanted.entries,
                    ..shape
                }
        };
        self.maps
            .iter()
            .any(|(map, wanted)| *map == name && alike(wanted))
    }
}

/// The sizes that the configuration's limits give.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Places for services.
    pub(super) services: u32,
    /// Places for backends, place 0 included.
    pub(super) backends: u32,
    /// Flows that the flow table is made for.
    pub(super) flows: u32,
}

impl Sizes {
    /// A service and its address.
    fn service_keys(&self) -> u32 {
        self.services.saturating_mul(2)
    }

    /// Buckets of the services map.
    fn service_buckets(&self) -> u32 {
        ServiceBucket::count(self.service_keys())
    }

    /// Their number less one, for as long as a loader wants it.
    pub(super) fn service_mask(&self) -> &'static u32 {
        static MASKS: [u32; 32] = {
            let mut masks = [0; 32];
            let mut bits = 0;
            while bits < 32 {
                masks[bits] = (1 << bits) - 1;
                bits += 1;
            }
            masks
        };
        let bits = self.service_buckets().trailing_zeros() as usize;
        MASKS.get(bits).unwrap_or(&0)
    }

    /// Entries of a map whose size the limits give.
    pub(super) fn entries(&self, map: &str) -> Option<u32> {
        match map {
            maps::SERVICES => Some(self.service_buckets().saturating_add(1)),
            maps::SERVICE_PREFIXES => Some(self.service_keys()),
            maps::SLOT_TABLES | maps::SERVICE_STATS => Some(self.services),
            maps::BACKENDS | maps::BACKEND_STATS | maps::QUIC_SERVERS => Some(self.backends),
            maps::FLOWS => Some(1 + flow_set::sets(self.flows)),
            _ => None,
        }
    }
}
