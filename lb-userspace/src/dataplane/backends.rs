//! The backends array, memory-mapped.
//!
//! **Invariants.** An entry is written word by word, and only the words that differ, so that a packet that uses the
//! entry meanwhile sees each field old or new; `next_hop` is a word of its own and goes last, so that an entry becomes
//! usable only when it is complete. When more than next hop and MTU changes, the old next hop goes first: in between
//! there is none, rather than the old one with what it does not belong to. Reading all entries costs no system calls.

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
/// Number of the word that is the next hop.
const NEXT_HOP: usize = 0;

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
            .map(|(index, entry)| (index, entry.unsealed()))
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
        store(place, &entry.sealed());
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
    for (number, word) in stores(&load(place), entry) {
        if let Some(shared) = place.get(number) {
            shared.store(word, Ordering::Release);
        }
    }
}

/// The stores (number of the word, word) that make one entry of another, in order.
fn stores(old: &BackendEntry, new: &BackendEntry) -> Vec<(usize, u64)> {
    // A new MTU or next hop can be seen at once; anything else only together with the next hop that belongs to it.
    let same_way = BackendEntry {
        next_hop: old.next_hop,
        mtu: old.mtu,
        ..*new
    } == *old;
    let mut old = words(old);
    let mut stores = Vec::new();
    if !same_way && old[NEXT_HOP] != 0 {
        old[NEXT_HOP] = 0;
        stores.push((NEXT_HOP, 0));
    }
    // Backwards, as the next hop is the first word.
    for (number, (old, new)) in old.into_iter().zip(words(new)).enumerate().rev() {
        if old != new {
            stores.push((number, new));
        }
    }
    stores
}

fn words(entry: &BackendEntry) -> [u64; WORDS] {
    // SAFETY: both are 64 bytes, and a BackendEntry has no padding, so every byte of it is initialised.
    unsafe { std::mem::transmute::<BackendEntry, [u64; WORDS]>(*entry) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::{address::Address, backend::NextHop};

    fn entry(last: u8) -> BackendEntry {
        let address = |net| {
            Address::from(std::net::IpAddr::from([
                0x20, 1, net, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, last,
            ]))
        };
        BackendEntry {
            next_hop: NextHop::new([2, 0, 0, 0, 0, last]),
            address: address(7),
            outer_source: address(last),
            interface: last.into(),
            mtu: 1500,
            mode: 2,
            generation: 4,
            id: 9,
            ..BackendEntry::default()
        }
    }

    #[test]
    fn whoever_looks_between_two_stores_sees_a_whole_entry_or_one_without_next_hop() {
        let one = entry(1);
        let other_mac = BackendEntry {
            next_hop: NextHop::new([2, 0, 0, 0, 0, 9]),
            ..one
        };
        let other_mtu = BackendEntry { mtu: 1400, ..one };
        let unresolved = BackendEntry {
            next_hop: NextHop::default(),
            ..one
        };
        let nobody = BackendEntry::default();
        let all = [one, other_mac, other_mtu, unresolved, entry(2), nobody];
        for (old, new) in all
            .iter()
            .flat_map(|old| all.iter().map(move |new| (old, new)))
        {
            let place = words(old).map(AtomicU64::new);
            for (number, word) in stores(old, new) {
                place[number].store(word, Ordering::Relaxed);
                let seen = load(&place);
                // Only these two may be of different times.
                let alike = |entry: &BackendEntry| {
                    let (next_hop, mtu) = (seen.next_hop, seen.mtu);
                    seen == BackendEntry {
                        next_hop,
                        mtu,
                        ..*entry
                    }
                };
                let whole = alike(new) && seen.next_hop == new.next_hop
                    || alike(old) && alike(new)
                    || !seen.next_hop.is_resolved();
                assert!(whole, "{old:?} -> {new:?}: {seen:?}");
            }
            assert_eq!(load(&place), *new);
        }
    }

    #[test]
    fn a_new_next_hop_or_mtu_drops_no_packet() {
        let old = entry(1);
        let new = BackendEntry {
            next_hop: NextHop::new([2, 0, 0, 0, 0, 9]),
            mtu: 1400,
            ..old
        };
        assert_eq!(stores(&old, &new).len(), 2);
        assert!(stores(&old, &new).iter().all(|(_, word)| *word != 0));
        assert_eq!(stores(&old, &old), []);
    }
}
