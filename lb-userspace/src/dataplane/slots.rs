//! The slot tables: inner maps of `SLOT_TABLES`, memory-mapped.
//!
//! **Invariants.** `tables` holds exactly the tables that the outer map holds: nobody else writes it while this daemon
//! holds the pin directory's lock. The outer map keeps the inner ones alive, so they have no pins of their own.

use super::{mapped::SharedWords, shape::Shape, sys};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{ArrayOfMaps, Map, MapData, MapError};
use lb_common::{limits::SLOTS, maps::SLOT_TABLES, slot::Slot};
use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering,
};

/// All slot tables of a node.
#[derive(Debug)]
pub(super) struct SlotTables {
    outer: ArrayOfMaps<MapData>,
    fd: OwnedFd,
    inner: Shape,
    tables: BTreeMap<u32, SharedWords>,
}

impl SlotTables {
    /// Takes over the outer map with the tables that are in it; new tables get the shape `inner`.
    pub(super) fn open(map: Map, inner: Shape) -> Result<Self> {
        let Map::ArrayOfMaps(data) = &map else {
            bail!("map {SLOT_TABLES} is not an array of maps")
        };
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        let outer = ArrayOfMaps::try_from(map)?;
        let mut tables = BTreeMap::new();
        for index in 0..outer.len() {
            if let Some(table) = get(&outer, index)? {
                tables.insert(index, share(index, &table)?);
            }
        }
        Ok(Self {
            outer,
            fd,
            inner,
            tables,
        })
    }

    /// Number of places for tables.
    pub(super) fn capacity(&self) -> u32 {
        self.outer.len()
    }

    /// Indexes of the tables that exist.
    pub(super) fn indexes(&self) -> Vec<u32> {
        self.tables.keys().copied().collect()
    }

    /// Makes sure that these tables exist. Waits for one RCU grace period, some 10 ms, when it has to make any; on an
    /// error none of them may have been made.
    pub(super) fn create(&mut self, indexes: &[u32]) -> Result<()> {
        let capacity = self.capacity();
        let mut new = BTreeMap::new();
        for &index in indexes {
            ensure!(
                index < capacity,
                "service index {index} is not below {capacity} (limits.services)"
            );
            if !self.tables.contains_key(&index) {
                let table =
                    MapData::create(self.inner.definition(), "SLOTS", None).with_context(|| {
                        format!("cannot create the slot table of service index {index}")
                    })?;
                let words = share(index, &table)?;
                new.insert(index, (table, words));
            }
        }
        let entries: Vec<_> = new
            .iter()
            .map(|(index, (table, _))| (*index, table.fd().as_fd()))
            .collect();
        sys::array_of_maps_set(self.fd.as_fd(), &entries)
            .context("cannot put new slot tables into the outer map")?;
        self.tables
            .extend(new.into_iter().map(|(index, (_, words))| (index, words)));
        Ok(())
    }

    /// Reads all slots of a table.
    pub(super) fn read(&self, index: u32) -> Result<Vec<Slot>> {
        self.read_as(index, Slot)
    }

    /// Reads all slots of a table, whose words mean what `slot` says.
    pub(super) fn read_as(&self, index: u32, slot: impl Fn(u64) -> Slot) -> Result<Vec<Slot>> {
        let words = self.table(index)?.words().iter();
        Ok(words
            .map(|word| slot(word.load(Ordering::Acquire)))
            .collect())
    }

    /// Reads these slots of a table, in their order.
    pub(super) fn read_some(&self, index: u32, numbers: &[u32]) -> Result<Vec<Slot>> {
        let words = self.table(index)?.words();
        let mut slots = Vec::with_capacity(numbers.len());
        for number in numbers {
            let word = words.get(*number as usize);
            let word = word.with_context(|| out_of_range(index, *number))?;
            slots.push(Slot(word.load(Ordering::Acquire)));
        }
        Ok(slots)
    }

    /// Stores the given slots, and no others, one after the other; none when one of the numbers is out of range.
    pub(super) fn store(&self, index: u32, slots: &[(u32, Slot)]) -> Result<()> {
        let words = self.table(index)?.words();
        if let Some((number, _)) = slots.iter().find(|(number, _)| *number >= SLOTS) {
            bail!(out_of_range(index, *number));
        }
        for (number, slot) in slots {
            if let Some(word) = words.get(*number as usize) {
                // Release: backend entries written before are visible to whoever sees the slot.
                word.store(slot.0, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Removes a table if it exists. Waits for an RCU grace period.
    pub(super) fn remove(&mut self, index: u32) -> Result<()> {
        if self.tables.contains_key(&index) {
            sys::array_of_maps_delete(self.fd.as_fd(), index).with_context(|| {
                format!("cannot remove the slot table of service index {index}")
            })?;
            self.tables.remove(&index);
        }
        Ok(())
    }

    fn table(&self, index: u32) -> Result<&SharedWords> {
        self.tables.get(&index).with_context(|| {
            format!("service index {index} has no slot table: it must be created first")
        })
    }
}

fn out_of_range(index: u32, number: u32) -> String {
    format!("slot {number} of service index {index} is not below {SLOTS}")
}

/// The inner map at `index`, if there is one.
pub(super) fn get(outer: &ArrayOfMaps<MapData>, index: u32) -> Result<Option<MapData>> {
    match outer.get(&index, 0) {
        Ok(table) => Ok(Some(table)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error)
            .with_context(|| format!("cannot open the slot table of service index {index}")),
    }
}

fn share(index: u32, table: &MapData) -> Result<SharedWords> {
    SharedWords::map(table.fd().as_fd(), SLOTS as usize)
        .with_context(|| format!("cannot map the slot table of service index {index} into memory"))
}
