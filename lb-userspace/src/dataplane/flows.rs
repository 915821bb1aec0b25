//! The flow table, read and written while the program uses it.

use super::sys::{self, Step};
use anyhow::{Context as _, Result};
use aya::{
    maps::{HashMap, Map, MapData, MapError},
    sys::SyscallError,
};
use lb_common::{
    flow_table::{FlowEntry, FlowKey},
    maps::FLOWS,
};
use std::{
    io::ErrorKind,
    os::fd::{AsFd as _, OwnedFd},
};

/// Entries read by one call, if none of the kernel's buckets holds more: 64 bytes each.
const STEP: usize = 4_096;

const WRITE: &str = "cannot write to the flow table";

/// `BPF_NOEXIST` of bpf(2).
const ABSENT_ONLY: u64 = 1;

/// The LRU map of flows.
#[derive(Debug)]
pub(super) struct FlowTable {
    map: HashMap<MapData, FlowKey, FlowEntry>,
    fd: OwnedFd,
    capacity: u32,
}

impl FlowTable {
    /// Takes over the map with what is in it.
    pub(super) fn open(map: Map) -> Result<Self> {
        let Map::LruHashMap(data) = &map else {
            anyhow::bail!("map {FLOWS} is not an LRU hash map")
        };
        let capacity = data.info()?.max_entries();
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        // Refuses keys and values of other sizes.
        let map = HashMap::try_from(map)?;
        Ok(Self { map, fd, capacity })
    }

    /// Entries that fit.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Shows every entry to `visit`.
    pub(super) fn scan(&self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()> {
        self.scan_by(STEP, |keys, entries| {
            for (key, entry) in keys.iter().zip(entries) {
                visit(key, entry);
            }
            Ok(())
        })
    }

    /// Shows all entries to `visit`, some `step` of them at a time, until it fails.
    fn scan_by(
        &self,
        step: usize,
        mut visit: impl FnMut(&[FlowKey], &[FlowEntry]) -> Result<()>,
    ) -> Result<()> {
        let mut keys: Vec<FlowKey> = Vec::with_capacity(step);
        let mut entries: Vec<FlowEntry> = Vec::with_capacity(step);
        let mut position = None;
        loop {
            // SAFETY: `open` has seen that keys and values are of these types' sizes; both are plain data.
            let step = unsafe {
                sys::map_lookup_batch(self.fd.as_fd(), &mut position, &mut keys, &mut entries)
            };
            let step = step.context("cannot read the flow table")?;
            visit(&keys, &entries)?;
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

    /// Removes the entries of these flows, and returns how many there were.
    pub(super) fn remove(&self, keys: &[FlowKey]) -> Result<u64> {
        let (mut rest, mut removed) = (keys, 0);
        while !rest.is_empty() {
            // SAFETY: as in `scan_by`.
            let (done, result) = unsafe { sys::map_delete_batch(self.fd.as_fd(), rest) };
            removed += done as u64;
            let skip = match result {
                Ok(()) => done.max(1),
                // The one after those removed is gone already.
                Err(error) if error.kind() == ErrorKind::NotFound => done + 1,
                Err(error) => return Err(error).context("cannot remove flows from the flow table"),
            };
            rest = rest.get(skip..).unwrap_or_default();
        }
        Ok(removed)
    }

    /// Copies all entries to `other`, which has none, and returns how many. One that is full forgets what it has not seen
    /// for longest.
    pub(super) fn copy_to(&self, other: &Self) -> Result<u64> {
        let mut copied = 0;
        self.scan_by(STEP, |keys, entries| {
            // SAFETY: as in `scan_by`.
            unsafe { sys::map_update_batch(other.fd.as_fd(), keys, entries) }.context(WRITE)?;
            copied += keys.len() as u64;
            Ok(())
        })?;
        Ok(copied)
    }

    /// Copies to `other` the entries of flows that it does not know, and returns how many. Only those are looked at of
    /// which a packet was seen at `since` or later, in seconds of CLOCK_MONOTONIC.
    pub(super) fn copy_since(&self, since: u32, other: &mut Self) -> Result<u64> {
        let mut copied = 0;
        self.scan_by(STEP, |keys, entries| {
            let pairs = keys.iter().zip(entries);
            for (key, entry) in pairs.filter(|(_, entry)| entry.seen >= since) {
                match other.map.insert(key, entry, ABSENT_ONLY) {
                    Ok(()) => copied += 1,
                    Err(MapError::SyscallError(SyscallError { io_error, .. }))
                        if io_error.kind() == ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(error).context(WRITE),
                }
            }
            Ok(())
        })?;
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::aya::check_privileges;
    use lb_common::address::Address;
    use std::collections::BTreeMap;

    /// A map of `capacity` entries with `count` flows in it, where maps can be made.
    fn table(capacity: u32, count: u32) -> Option<(FlowTable, BTreeMap<FlowKey, FlowEntry>)> {
        if check_privileges().is_err() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        let shape = aya_obj::Map::new_from_params(9, 40, 24, capacity, 0);
        let map = MapData::create(shape, "FLOWS", None).unwrap();
        let mut table = FlowTable::open(Map::from_map_data(map).unwrap()).unwrap();
        let mut expected = BTreeMap::new();
        for number in 0..count {
            let (key, entry) = flow(number);
            table.map.insert(key, entry, 0).unwrap();
            expected.insert(key, entry);
        }
        Some((table, expected))
    }

    fn flow(number: u32) -> (FlowKey, FlowEntry) {
        let key = FlowKey {
            source: Address([1, 2, 3, number]),
            destination: Address([9; 4]),
            source_port: number as u16,
            destination_port: 80,
            protocol: 6,
        };
        let entry = FlowEntry {
            backend: number,
            generation: 2 * number,
            service: 3,
            slot: 4,
            seen: 5,
            flags: 1,
        };
        (key, entry)
    }

    fn contents(table: &FlowTable, step: usize) -> BTreeMap<FlowKey, FlowEntry> {
        let mut found = BTreeMap::new();
        let visit = |keys: &[FlowKey], entries: &[FlowEntry]| {
            assert_eq!(keys.len(), entries.len());
            for (key, entry) in keys.iter().zip(entries) {
                assert_eq!(found.insert(*key, *entry), None, "{key:?} was shown twice");
            }
            Ok(())
        };
        table.scan_by(step, visit).unwrap();
        found
    }

    #[test]
    fn a_scan_shows_every_entry_once_whatever_fits_in_its_buffer() {
        for (capacity, count) in [(1_024, 0), (1_024, 1), (16_384, 9_000)] {
            let Some((table, expected)) = table(capacity, count) else {
                return;
            };
            for step in [1, 2, 7, 100_000, STEP] {
                assert_eq!(
                    contents(&table, step),
                    expected,
                    "{count} flows, {step} a step"
                );
            }
        }
    }

    #[test]
    fn removal_skips_what_is_gone_already() {
        let Some((table, mut expected)) = table(1_024, 300) else {
            return;
        };
        let keys: Vec<FlowKey> = (0..600)
            .step_by(3)
            .map(|number| flow(number * 7 % 600).0)
            .collect();
        let there = keys.iter().filter(|key| expected.contains_key(key)).count() as u64;
        assert!(0 < there && there < keys.len() as u64);
        assert_eq!(table.remove(&keys).unwrap(), there);
        expected.retain(|key, _| !keys.contains(key));
        assert_eq!(contents(&table, STEP), expected);
        assert_eq!(table.remove(&keys).unwrap(), 0);
        assert_eq!(table.remove(&[]).unwrap(), 0);
    }

    #[test]
    fn a_copy_is_the_same() {
        let (Some((from, expected)), Some((to, _))) = (table(16_384, 9_000), table(20_000, 0))
        else {
            return;
        };
        assert_eq!(from.copy_to(&to).unwrap(), 9_000);
        assert_eq!(contents(&to, STEP), expected);
    }

    #[test]
    fn a_second_copy_adds_what_is_new_and_changes_nothing_else() {
        let (Some((mut from, mut expected)), Some((mut to, _))) =
            (table(2_048, 500), table(4_096, 0))
        else {
            return;
        };
        let (key, entry) = flow(7);
        let other = FlowEntry { seen: 99, ..entry };
        to.map.insert(key, other, 0).unwrap();
        assert_eq!(from.copy_since(5, &mut to).unwrap(), 499);
        expected.insert(key, other);
        assert_eq!(contents(&to, STEP), expected);
        for (number, seen) in [(600, 8), (601, 9), (602, 10)] {
            let (key, entry) = flow(number);
            let entry = FlowEntry { seen, ..entry };
            from.map.insert(key, entry, 0).unwrap();
            if seen >= 9 {
                expected.insert(key, entry);
            }
        }
        assert_eq!(from.copy_since(9, &mut to).unwrap(), 2);
        assert_eq!(contents(&to, STEP), expected);
    }

    #[test]
    fn a_smaller_table_takes_what_fits() {
        let (Some((from, _)), Some((to, _))) = (table(8_192, 4_000), table(1_024, 0)) else {
            return;
        };
        assert_eq!(from.copy_to(&to).unwrap(), 4_000);
        let kept = contents(&to, STEP).len();
        assert!((512..=1_024).contains(&kept), "{kept}");
    }
}
