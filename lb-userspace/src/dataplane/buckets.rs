//! The services map: buckets in a memory-mapped array ([`ServiceBucket`]).
//!
//! **Invariant.** The program sees a key with its entry or does not see it: a bucket becomes a key's, and ceases to be,
//! by one store. An entry changes by one store.

use super::mapped::SharedWords;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::Map;
use lb_common::{
    maps::SERVICES,
    service::{ServiceEntry, ServiceKey},
    service_bucket::ServiceBucket,
};
use std::{
    os::fd::AsFd as _,
    sync::atomic::{AtomicU64, Ordering},
};

const WORDS: usize = size_of::<ServiceBucket>() / size_of::<u64>();

/// The services of a node that have one address.
#[derive(Debug)]
pub struct Buckets {
    words: SharedWords,
    mask: u32,
    /// Keys that are there.
    used: u32,
}

/// The words of one bucket.
struct Bucket<'a>(&'a [AtomicU64]);

impl Buckets {
    /// Takes over the map with what is in it.
    ///
    /// # Errors
    /// When it is another map, or cannot be mapped into memory.
    pub fn open(map: &Map) -> Result<Self> {
        let Map::Array(data) = map else {
            bail!("map {SERVICES} is not an array")
        };
        let elements = data.info()?.max_entries();
        let buckets = elements.saturating_sub(1);
        ensure!(
            buckets.is_power_of_two(),
            "map {SERVICES} has {elements} elements, which is not a power of two and one"
        );
        let words = SharedWords::map(data.fd().as_fd(), elements as usize * WORDS)
            .with_context(|| format!("cannot map {SERVICES} into memory"))?;
        let mask = buckets - 1;
        let mut new = Self {
            words,
            mask,
            used: 0,
        };
        new.used = new.entries().count() as u32;
        Ok(new)
    }

    /// All keys with their entries.
    pub fn entries(&self) -> impl Iterator<Item = (ServiceKey, ServiceEntry)> {
        (0..=self.mask).filter_map(|number| self.bucket(number).ok()?.load().get())
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// When there is no room.
    pub fn put(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<()> {
        let new = ServiceBucket::new(key, entry);
        let (found, free) = self.look_for(&new)?;
        if let Some(number) = found {
            self.bucket(number)?.store(ENTRY, new.entry);
            return Ok(());
        }
        let room = ServiceBucket::keys(self.mask + 1);
        ensure!(self.used < room, "there is room for {room} keys");
        let free = free.context("no bucket is free near its home")?;
        let bucket = self.bucket(free)?;
        if is_other(key) {
            self.count_other(1)?;
        }
        bucket.store(ENTRY, new.entry);
        bucket.store(START, new.start);
        bucket.store(END, new.end);
        bucket.store(REST, new.rest);
        self.used += 1;
        Ok(())
    }

    /// Removes an entry, if it is there.
    ///
    /// # Errors
    /// None that can happen with a map that [`Buckets::open`] took.
    pub fn remove(&mut self, key: &ServiceKey) -> Result<()> {
        let (found, _) = self.look_for(&ServiceBucket::new(key, &ServiceEntry::default()))?;
        let Some(mut number) = found else {
            return Ok(());
        };
        self.bucket(number)?.store(REST, ServiceBucket::REMOVED);
        self.used = self.used.saturating_sub(1);
        if is_other(key) {
            self.count_other(-1)?;
        }
        // What is looked for behind a removed bucket is not there if the next one is empty.
        while self.bucket(number)?.load().rest == ServiceBucket::REMOVED
            && self.bucket(number.wrapping_add(1))?.load().rest == ServiceBucket::EMPTY
        {
            self.bucket(number)?.store(REST, ServiceBucket::EMPTY);
            number = number.wrapping_sub(1);
        }
        Ok(())
    }

    /// Counts one more (or, with -1, one less) of those that are not found by their exact key alone: here, and in the map of
    /// prefixes.
    ///
    /// # Errors
    /// As [`Buckets::remove`].
    pub fn count_other(&self, change: i64) -> Result<()> {
        let first = self.element(0)?;
        let count = first.load().entry;
        first.store(ENTRY, count.saturating_add_signed(change));
        Ok(())
    }

    /// The bucket that has the key, and the first that it could get.
    fn look_for(&self, key: &ServiceBucket) -> Result<(Option<u32>, Option<u32>)> {
        let home = ServiceBucket::home(key.words());
        let mut free = None;
        for step in 0..ServiceBucket::PROBES {
            let number = home.wrapping_add(step);
            let found = self.bucket(number)?.load();
            if found.words() == key.words() {
                return Ok((Some(number), free));
            }
            if found.get().is_none() {
                free = free.or(Some(number));
            }
            if found.rest == ServiceBucket::EMPTY {
                break;
            }
        }
        Ok((None, free))
    }

    /// The bucket with this number, of which the lower bits count.
    fn bucket(&self, number: u32) -> Result<Bucket<'_>> {
        self.element(1 + (number & self.mask) as usize)
    }

    fn element(&self, number: usize) -> Result<Bucket<'_>> {
        let words = self.words.words().chunks_exact(WORDS).nth(number);
        let words = words.with_context(|| format!("map {SERVICES} has no element {number}"))?;
        Ok(Bucket(words))
    }
}

const START: usize = 0;
const END: usize = 1;
const REST: usize = 2;
const ENTRY: usize = 3;

impl Bucket<'_> {
    fn load(&self) -> ServiceBucket {
        let word = |number| {
            let word: Option<&AtomicU64> = self.0.get(number);
            word.map_or(0, |word| word.load(Ordering::Acquire))
        };
        ServiceBucket {
            start: word(START),
            end: word(END),
            rest: word(REST),
            entry: word(ENTRY),
        }
    }

    /// Release: what was stored before is visible to whoever sees this.
    fn store(&self, number: usize, value: u64) {
        if let Some(word) = self.0.get(number) {
            word.store(value, Ordering::Release);
        }
    }
}

/// Whether packets find it by another key than their own: a service of all ports.
fn is_other(key: &ServiceKey) -> bool {
    key.port == 0 && !key.is_of_address()
}
