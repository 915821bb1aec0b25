//! The backends array, memory-mapped.
//!
//! **Invariants.** An entry is written word by word, and only the words that differ, so that a packet that uses the
//! entry meanwhile sees each field old or new; `next_hop` is a word of its own and goes last, so that an entry becomes
//! usable only when it is complete. Reading all entries costs no system calls.

use super::mapped::SharedWords;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Map, MapData};
use lb_common::{backend::BackendEntry, maps::BACKENDS};
use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

const WORDS: usize = size_of::<BackendEntry>() / size_of::<u64>();

const _: () = assert!(WORDS * size_of::<u64>() == size_of::<BackendEntry>());
const _: () = assert!(std::mem::offset_of!(BackendEntry, next_hop) == 0);

/// All backend entries of a node.
#[derive(Debug)]
pub(super) struct BackendArray {
    entries: SharedWords,
    capacity: u32,
}

impl BackendArray {
    /// Takes over the map with what is in it.
    pub(super) fn open(map: &Map) -> Result<Self> {
        let Map::Array(data) = map else {
            bail!("map {BACKENDS} is not an array")
        };
        let capacity = data.info()?.max_entries();
        Self::share(data, capacity).with_context(|| format!("cannot map {BACKENDS} into memory"))
    }

    fn share(data: &MapData, capacity: u32) -> Result<Self> {
        let entries = SharedWords::map(data.fd().as_fd(), capacity as usize * WORDS)?;
        Ok(Self { entries, capacity })
    }

    /// Number of entries, entry 0 included.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The entries that are in use, by index.
    pub(super) fn in_use(&self) -> BTreeMap<u32, BackendEntry> {
        (0..)
            .zip(self.entries.words().chunks_exact(WORDS).map(load))
            .filter(|(_, entry)| entry.mode != 0)
            .collect()
    }

    /// Writes an entry.
    pub(super) fn write(&self, index: u32, entry: &BackendEntry) -> Result<()> {
        let capacity = self.capacity;
        ensure!(
            index != 0,
            "backend index 0 means \"no backend\" and cannot be written"
        );
        let start = index as usize * WORDS;
        let place = self
            .entries
            .words()
            .get(start..start + WORDS)
            .with_context(|| {
                format!("backend index {index} is not below {capacity} (limits.backends)")
            })?;
        store(place, entry);
        Ok(())
    }
}

fn load(place: &[AtomicU64]) -> BackendEntry {
    let mut words = [0; WORDS];
    for (word, shared) in words.iter_mut().zip(place) {
        *word = shared.load(Ordering::Acquire);
    }
    // SAFETY: both are 64 bytes, and a BackendEntry is plain data without padding, valid for every bit pattern.
    unsafe { std::mem::transmute::<[u64; WORDS], BackendEntry>(words) }
}

fn store(place: &[AtomicU64], entry: &BackendEntry) {
    // SAFETY: both are 64 bytes, and a BackendEntry has no padding, so every byte of it is initialised.
    let words = unsafe { std::mem::transmute::<BackendEntry, [u64; WORDS]>(*entry) };
    // Backwards: the next hop is the first word and has to be the last one stored.
    for (shared, word) in place.iter().zip(words).rev() {
        if shared.load(Ordering::Relaxed) != word {
            shared.store(word, Ordering::Release);
        }
    }
}
