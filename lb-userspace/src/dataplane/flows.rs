//! The flow table, read and written while the program uses it: sets of places in a memory-mapped array (`lb_common::flow_set`).
//!
//! **Invariant.** Places are read and written by the rules that the program keeps to, so that each believes of the other what is
//! whole. A daemon that dies while it writes leaves a place that is busy for ever, which is one place less.

use super::mapped::SharedWords;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::Map;
use lb_common::{
    flow_set::{
        FlowSet, Head, Home, KEY_WORDS, SECRET, SETS, WAYS, WORDS, Worth, entry_of, entry_words,
        home, key_of, key_words,
    },
    flow_table::{FlowEntry, FlowKey},
    maps::FLOWS,
};
use std::{
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering, fence},
};

/// Words of an element of the array.
const ELEMENT: usize = size_of::<FlowSet>() / size_of::<u64>();

/// Times that writing a flow is tried while the program is faster.
const TRIES: u32 = 100;

/// The table of flows.
#[derive(Debug)]
pub struct FlowTable {
    words: SharedWords,
    secret: u64,
    sets: u32,
}

/// The words of a set.
struct Set<'a>(&'a [AtomicU64]);

/// A place that has a flow.
struct Found {
    way: usize,
    key: [u64; KEY_WORDS],
    head: Head,
    entry: FlowEntry,
}

impl FlowTable {
    /// Takes over the map with what is in it; a new one is told its secret and its size first, without which no program finds
    /// anything in it.
    ///
    /// # Errors
    /// When it is another map, or cannot be mapped into memory.
    pub fn open(map: &Map) -> Result<Self> {
        let Map::Array(data) = map else {
            bail!("map {FLOWS} is not an array")
        };
        let info = data.info()?;
        let (elements, size) = (info.max_entries(), info.value_size());
        ensure!(
            size as usize == size_of::<FlowSet>() && elements > 1,
            "map {FLOWS} is an array of {elements} elements of {size} bytes, which is not of this version"
        );
        let words = SharedWords::map(data.fd().as_fd(), elements as usize * ELEMENT)
            .with_context(|| format!("cannot map {FLOWS} into memory"))?;
        let mut new = Self {
            words,
            secret: 0,
            sets: elements - 1,
        };
        let first = new.element(0)?;
        if first.load(SETS) == 0 {
            first.store(SECRET, random()?);
            first.store(SETS, new.sets.into());
        }
        new.secret = first.load(SECRET);
        Ok(new)
    }

    /// Shows every entry to `visit`.
    pub fn scan(&self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) {
        for number in 0..self.sets {
            let Ok(set) = self.set(number) else { return };
            for way in 0..WAYS {
                if let Some(found) = set.read(way) {
                    visit(&key_of(found.key), &found.entry);
                }
            }
        }
    }

    /// What is known of a flow.
    ///
    /// # Errors
    /// None that can happen with a map that [`FlowTable::open`] took.
    pub fn get(&self, key: &FlowKey) -> Result<Option<FlowEntry>> {
        let (set, _, words) = self.home_of(key)?;
        Ok(set.find(&words).map(|found| found.entry))
    }

    /// Removes the entries of these flows, and returns how many there were.
    ///
    /// # Errors
    /// As [`FlowTable::get`].
    pub fn remove(&self, keys: &[FlowKey]) -> Result<u64> {
        let mut removed = 0;
        for key in keys {
            let (set, _, words) = self.home_of(key)?;
            let mut tries = TRIES;
            while tries > 0
                && let Some(found) = set.find(&words)
            {
                tries -= 1;
                removed += u64::from(set.exchange(found.way, found.head, found.head.freed()));
            }
        }
        Ok(removed)
    }

    /// Writes an entry, in the place of what is known of the flow, else of what is worth least in its set. Says whether it could:
    /// whether the program was not faster each time.
    ///
    /// # Errors
    /// As [`FlowTable::get`].
    pub fn insert(&self, key: &FlowKey, entry: &FlowEntry) -> Result<bool> {
        let (set, home, words) = self.home_of(key)?;
        for _ in 0..TRIES {
            let (way, head) = match set.find(&words) {
                Some(found) => (found.way, found.head),
                None => match set.least() {
                    Some(least) => least,
                    None => continue,
                },
            };
            let claimed = head.claimed(home.tag);
            if set.exchange(way, head, claimed) {
                set.write(way, &words, entry, claimed);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes an entry of a flow that is not known, and says whether it has.
    ///
    /// # Errors
    /// As [`FlowTable::get`].
    pub fn add(&self, key: &FlowKey, entry: &FlowEntry) -> Result<bool> {
        if self.get(key)?.is_some() {
            return Ok(false);
        }
        self.insert(key, entry)
    }

    /// The set of a key, where in it, and the key's words.
    fn home_of(&self, key: &FlowKey) -> Result<(Set<'_>, Home, [u64; KEY_WORDS])> {
        let words = key_words(key);
        let home = home(words, self.secret, self.sets.into());
        Ok((self.set(home.set)?, home, words))
    }

    fn set(&self, number: u32) -> Result<Set<'_>> {
        self.element(1 + number as usize)
    }

    fn element(&self, number: usize) -> Result<Set<'_>> {
        let start = number * ELEMENT;
        let words = self.words.words().get(start..start + ELEMENT);
        let words = words.with_context(|| format!("map {FLOWS} has no element {number}"))?;
        Ok(Set(words))
    }
}

impl Set<'_> {
    fn load(&self, number: usize) -> u64 {
        let word: Option<&AtomicU64> = self.0.get(number);
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, number: usize, value: u64) {
        if let Some(word) = self.0.get(number) {
            word.store(value, Ordering::Release);
        }
    }

    /// Exchanges a head if it is still the old one, and says whether it was.
    fn exchange(&self, way: usize, old: Head, new: Head) -> bool {
        self.0.get(way).is_some_and(|word| {
            word.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        })
    }

    /// What is in a place, if it is whole.
    fn read(&self, way: usize) -> Option<Found> {
        let before = Head(self.load(way));
        if before.is_busy() || !before.is_used() {
            return None;
        }
        let start = WAYS + way * WORDS;
        let word = |number| self.load(start + number);
        let key = [word(0), word(1), word(2), word(3), word(4)];
        let known = [word(KEY_WORDS), word(KEY_WORDS + 1)];
        let head = Head(self.load(way));
        (head.stamp() == before.stamp() && head.is_used()).then(|| Found {
            way,
            key,
            head,
            entry: entry_of(known, head),
        })
    }

    /// The first place with this key.
    fn find(&self, key: &[u64; KEY_WORDS]) -> Option<Found> {
        (0..WAYS)
            .filter_map(|way| self.read(way))
            .find(|found| found.key == *key)
    }

    /// The place that is worth least, if not all are busy.
    fn least(&self) -> Option<(usize, Head)> {
        (0..WAYS)
            .map(|way| (way, Head(self.load(way))))
            .filter(|(_, head)| !head.is_busy())
            .min_by_key(|(_, head)| *head)
    }

    /// Writes a flow to a place that was claimed. It counts as one that has been followed.
    fn write(&self, way: usize, key: &[u64; KEY_WORDS], entry: &FlowEntry, claimed: Head) {
        fence(Ordering::SeqCst);
        let start = WAYS + way * WORDS;
        let known = entry_words(entry);
        for (number, word) in key.iter().chain(&known).enumerate() {
            self.store(start + number, *word);
        }
        let worth = if entry.is_closing() {
            Worth::Closing
        } else {
            Worth::Followed
        };
        self.store(way, claimed.told(worth, entry.seen).0);
    }
}

/// A secret from the kernel.
fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: the kernel writes at most as many bytes as there are.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    ensure!(
        count == bytes.len() as isize,
        "the kernel has no random number: {}",
        std::io::Error::last_os_error()
    );
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::aya::check_privileges;
    use aya::maps::MapData;
    use lb_common::address::Address;
    use std::collections::BTreeMap;

    /// A new table of so many sets, where maps can be made.
    fn table(sets: u32) -> Option<FlowTable> {
        if check_privileges().is_err() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        const ARRAY: u32 = 2;
        const MMAPABLE: u32 = 1 << 10;
        let shape = aya_obj::Map::new_from_params(ARRAY, 4, 1_024, 1 + sets, MMAPABLE);
        let map = Map::from_map_data(MapData::create(shape, "FLOWS", None).unwrap()).unwrap();
        let table = FlowTable::open(&map).unwrap();
        let again = FlowTable::open(&map).unwrap();
        assert_eq!((again.secret, again.sets), (table.secret, sets));
        Some(table)
    }

    fn flow(number: u32, seen: u32) -> (FlowKey, FlowEntry) {
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
            slot: 65_536,
            seen,
            flags: FlowEntry::flags_of(5),
        };
        (key, entry)
    }

    fn contents(table: &FlowTable) -> BTreeMap<FlowKey, FlowEntry> {
        let mut found = BTreeMap::new();
        table.scan(&mut |key, entry| {
            assert_eq!(found.insert(*key, *entry), None, "{key:?} was shown twice");
        });
        found
    }

    #[test]
    fn what_is_written_is_there_until_it_is_removed() {
        let Some(table) = table(300) else { return };
        assert_eq!(contents(&table), BTreeMap::new());
        let mut expected = BTreeMap::new();
        for number in 0..900 {
            let (key, entry) = flow(number, 7);
            assert!(table.add(&key, &entry).unwrap());
            let other = FlowEntry {
                flags: FlowEntry::CLOSING,
                ..entry
            };
            assert!(!table.add(&key, &other).unwrap());
            assert_eq!(table.get(&key).unwrap(), Some(entry));
            table.insert(&key, &other).unwrap();
            expected.insert(key, other);
        }
        assert_eq!(contents(&table), expected);
        let keys: Vec<FlowKey> = (0..1_800).step_by(3).map(|n| flow(n, 0).0).collect();
        assert_eq!(table.remove(&keys).unwrap(), 300);
        expected.retain(|key, _| !keys.contains(key));
        assert_eq!(contents(&table), expected);
        assert_eq!(table.remove(&keys).unwrap(), 0);
        assert_eq!(table.get(&keys[0]).unwrap(), None);
    }

    #[test]
    fn a_full_set_forgets_what_is_closing_and_then_what_was_silent_for_longest() {
        let Some(table) = table(1) else { return };
        for number in 0..16 {
            let (key, mut entry) = flow(number, 100 + number);
            if number == 9 {
                entry.flags |= FlowEntry::CLOSING;
            }
            table.insert(&key, &entry).unwrap();
        }
        for (number, forgotten) in [(16, 9), (17, 0), (18, 1)] {
            let before = contents(&table);
            let (key, entry) = flow(number, 100 + number);
            table.insert(&key, &entry).unwrap();
            let mut expected = before;
            expected.insert(key, entry);
            expected.remove(&flow(forgotten, 0).0);
            assert_eq!(contents(&table), expected);
        }
    }

    #[test]
    fn a_place_that_somebody_is_writing_is_left_alone() {
        let Some(table) = table(1) else { return };
        let (key, entry) = flow(1, 7);
        table.insert(&key, &entry).unwrap();
        let (set, home, words) = table.home_of(&key).unwrap();
        let found = set.find(&words).unwrap();
        assert!(set.exchange(found.way, found.head, found.head.claimed(home.tag)));
        assert_eq!(table.get(&key).unwrap(), None);
        assert_eq!(table.remove(&[key]).unwrap(), 0);
        for number in 2..40 {
            let (key, entry) = flow(number, 7);
            table.insert(&key, &entry).unwrap();
        }
        assert_eq!(contents(&table).len(), WAYS - 1);
        // What it will tell is a flow again.
        let head = Head(set.load(found.way));
        assert_eq!(head, found.head.claimed(home.tag));
        set.store(found.way, head.told(Worth::Followed, 7).0);
        assert_eq!(table.get(&key).unwrap(), Some(entry));
    }
}
