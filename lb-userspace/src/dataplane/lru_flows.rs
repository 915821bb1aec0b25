//! The flow table as layout versions up to 4 had it, an LRU hash map of the kernel: read, so that a daemon can take over from one of
//! them.

use super::sys::{self, Step};
use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use lb_common::{
    flow_table::{FlowEntry, FlowKey},
    maps::FLOWS,
};
use std::os::fd::{AsFd as _, OwnedFd};

/// Entries read by one call, if none of the kernel's buckets holds more: 64 bytes each.
const STEP: usize = 4_096;

/// The LRU map of flows.
#[derive(Debug)]
pub(super) struct LruFlows {
    fd: OwnedFd,
}

impl LruFlows {
    /// Takes over the map with what is in it.
    pub(super) fn open(data: &MapData) -> Result<Self> {
        let info = data.info()?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        ensure!(
            sizes == (size_of::<FlowKey>(), size_of::<FlowEntry>()),
            "map {FLOWS} has other keys and entries: {sizes:?} bytes"
        );
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        Ok(Self { fd })
    }

    /// Shows every entry to `visit`.
    pub(super) fn scan(&self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()> {
        self.scan_by(STEP, visit)
    }

    /// Shows all entries to `visit`; some `step` of them are read at a time.
    fn scan_by(&self, step: usize, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()> {
        let mut keys: Vec<FlowKey> = Vec::with_capacity(step);
        let mut entries: Vec<FlowEntry> = Vec::with_capacity(step);
        let mut position = None;
        loop {
            // SAFETY: `open` has seen that keys and values are of these types' sizes; both are plain data.
            let step = unsafe {
                sys::map_lookup_batch(self.fd.as_fd(), &mut position, &mut keys, &mut entries)
            };
            let step = step.context("cannot read the flow table")?;
            for (key, entry) in keys.iter().zip(&entries) {
                visit(key, entry);
            }
            match step {
                Step::More => {}
                Step::TooSmall => {
                    // A bucket larger than the buffer; none is larger than the map.
                    let more = keys.capacity();
                    keys.reserve(2 * more);
                    entries.reserve(2 * more);
                }
                Step::End => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::aya::check_privileges;
    use aya::maps::{HashMap, Map};
    use lb_common::address::Address;
    use std::collections::BTreeMap;

    #[test]
    fn a_scan_shows_every_entry_once_whatever_fits_in_its_buffer() {
        if check_privileges().is_err() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        for (capacity, count) in [(1_024, 0), (1_024, 1), (16_384, 9_000)] {
            const LRU_HASH: u32 = 9;
            let shape = aya_obj::Map::new_from_params(LRU_HASH, 40, 24, capacity, 0);
            let map = MapData::create(shape, "FLOWS", None).unwrap();
            let lru = LruFlows::open(&map).unwrap();
            let map = Map::from_map_data(map).unwrap();
            let mut map: HashMap<_, FlowKey, FlowEntry> = HashMap::try_from(map).unwrap();
            let mut expected = BTreeMap::new();
            for number in 0..count {
                let key = FlowKey {
                    source: Address([1, 2, 3, number]),
                    destination: Address([9; 4]),
                    source_port: number as u16,
                    destination_port: 80,
                    protocol: 6,
                };
                let entry = FlowEntry {
                    backend: number,
                    ..FlowEntry::default()
                };
                map.insert(key, entry, 0).unwrap();
                expected.insert(key, entry);
            }
            for step in [1, 2, 7, 100_000, STEP] {
                let mut found = BTreeMap::new();
                let mut visit = |key: &FlowKey, entry: &FlowEntry| {
                    assert_eq!(found.insert(*key, *entry), None, "{key:?} was shown twice");
                };
                lru.scan_by(step, &mut visit).unwrap();
                assert_eq!(found, expected, "{count} flows, {step} a step");
            }
        }
    }
}
