//! What the flow table holds: counted from time to time while slots are tracked.

use super::mirror::Mirror;
use crate::dataplane::{DataPlane, clock};
use anyhow::Result;
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowEvent, FlowKey},
    limits::SLOTS,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    time::Duration,
};

/// Seconds for which a flow whose client has sent FIN or RST is kept: the last packets of both directions.
const CLOSING: u32 = 60;
/// Seconds after which such a flow is not waited for any more.
const CLOSED: u32 = 5;
/// Seconds without a packet before an entry that counts for nothing is removed: it may be about to be overwritten.
const UNDISTURBED: u32 = 10;

/// One count.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// When it began, CLOCK_MONOTONIC.
    pub begun: Duration,
    /// Entries in the table, dead ones included.
    pub entries: u64,
    /// Entries it removed.
    pub removed: u64,
    /// Flows that the program had recorded before it began.
    pub recorded: u64,
    /// Flows that are alive, by backend index; those that are at one of two, for both.
    pub flows: BTreeMap<u32, u64>,
    /// (service index, slot, backend index) of each entry that is left; of a guess also with the second owner.
    homes: BTreeSet<(u32, u32, u32)>,
}

impl Census {
    /// Entries that it left in the table.
    pub const fn left(&self) -> u64 {
        self.entries.saturating_sub(self.removed)
    }

    /// Whether entries of a slot name another backend than `owner`; nothing if the census began before `since`.
    pub fn elsewhere(&self, service: u32, slot: u32, owner: u32, since: Duration) -> Option<bool> {
        if self.begun <= since {
            return None;
        }
        let mut homes = self
            .homes
            .range((service, slot, 0)..=(service, slot, u32::MAX));
        Some(homes.any(|(_, _, backend)| *backend != owner))
    }
}

/// Counts, and removes what counts for nothing any more.
///
/// # Errors
/// When the flow table cannot be read or written.
pub fn take(plane: &mut dyn DataPlane, mirror: &Mirror, now: Duration) -> Result<Census> {
    let recorded = plane
        .flow_events()?
        .get(FlowEvent::Recorded as usize)
        .copied();
    let mut census = Census {
        begun: now,
        recorded: recorded.unwrap_or(0),
        ..Census::default()
    };
    let mut dead = Vec::new();
    let timeouts: BTreeMap<u32, u32> = mirror
        .services
        .values()
        .filter_map(|service| {
            let table = mirror.known.get(&service.index)?;
            Some((service.index, clock::seconds(table.policy().drain_timeout)))
        })
        .collect();
    let used: BTreeSet<u32> = mirror
        .services
        .values()
        .map(|service| service.index)
        .collect();
    let second = clock::seconds(now);
    plane.scan_flows(&mut |key: &FlowKey, entry: &FlowEntry| {
        census.entries += 1;
        let idle = entry.idle(second);
        let Some(timeout) = timeouts.get(&entry.service) else {
            if idle >= UNDISTURBED && !used.contains(&entry.service) {
                dead.push(*key);
            }
            return;
        };
        let patience = if entry.is_closing() {
            CLOSING.min(*timeout)
        } else {
            *timeout
        };
        let needed = counts(mirror, entry) && is_tracked(mirror, entry);
        if !needed && idle >= UNDISTURBED || idle >= patience.max(UNDISTURBED) {
            dead.push(*key);
        } else {
            let is_alive = needed && idle < patience && (!entry.is_closing() || idle < CLOSED);
            for backend in iter::once(entry.backend).chain(second_of(mirror, entry)) {
                census.homes.insert((entry.service, entry.slot, backend));
                if is_alive {
                    *census.flows.entry(backend).or_default() += 1;
                }
            }
        }
    })?;
    census.removed = plane.remove_flows(&dead)?;
    Ok(census)
}

/// Whether the program would follow the entry.
fn counts(mirror: &Mirror, entry: &FlowEntry) -> bool {
    mirror.backends.get(&entry.backend).is_some_and(|backend| {
        backend.generation == entry.generation && backend.flags & BackendEntry::LOST == 0
    })
}

/// The second owner that packets of the entry's flow name: while they do, the slot must be tracked.
fn second_of(mirror: &Mirror, entry: &FlowEntry) -> Option<u32> {
    let second = entry.second();
    let backend = mirror.backends.get(&second)?;
    (second != 0 && backend.flags & BackendEntry::LOST == 0).then_some(second)
}

/// Whether the program looks flows of the entry's slot up.
fn is_tracked(mirror: &Mirror, entry: &FlowEntry) -> bool {
    let table = mirror.known.get(&entry.service);
    entry.slot < SLOTS && table.is_some_and(|table| table.is_tracked(entry.slot))
}
