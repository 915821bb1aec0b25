//! Backends on their way out: what still goes to them.

use super::{core::Core, target_id};
use crate::{
    api::protocol::{DrainView, ErrorBody},
    dataplane::DataPlane,
    plan::{
        departure::{self, Departure, Reason},
        roster::Roster,
    },
    spec::State,
};
use lb_common::backend::BackendEntry;
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// Packets a second of departing backends, by index.
#[derive(Clone, Debug, Default)]
pub struct Rates(BTreeMap<u32, Rate>);

#[derive(Clone, Copy, Debug)]
struct Rate {
    /// When it was read, CLOCK_MONOTONIC.
    at: Duration,
    /// Packets until then.
    packets: u64,
    /// Packets a second in the last measured second; nothing before the second reading.
    per_second: Option<f64>,
}

/// Below this many packets a second nobody waits for a departing backend: a closing handshake, a stray packet.
const QUIET: f64 = 1.0;

/// A connection that is silent since the drain began is in no table. After this time without a packet from anybody (or
/// the drain timeout, if that is shorter) a departing backend counts as left.
const SILENCE: Duration = Duration::from_secs(60);

impl<P: DataPlane> Core<P> {
    /// Notes who leaves and who comes back by a change of the desired state from `before`, with its roster. `at_once`: removed backends
    /// leave without regard for their flows.
    pub(super) fn begin_leaving(&mut self, before: (&State, &Roster), at_once: bool) {
        let now = self.facts.now;
        departure::remove(
            before,
            (&self.state, &self.roster),
            now,
            at_once,
            &mut self.facts.departures,
        );
        self.note_leaving();
        for (name, service) in &self.state.services {
            let old = before.0.services.get(name);
            for backend in service.backends.values() {
                let known = old.and_then(|old| old.backends.get(&backend.name));
                let back = known.is_some_and(|known| known.drain && !backend.drain);
                let new = known.is_none() && service.health.is_none();
                if back || new {
                    self.facts.risen.insert(target_id(service, backend), now);
                }
            }
        }
    }

    /// Reads the counters of departing backends, once a second. One that cannot be read keeps its last rate.
    pub(super) fn measure_rates(&mut self, now: Duration) {
        let indexes: BTreeSet<u32> = self
            .facts
            .departures
            .keys()
            .filter_map(|id| self.mirror.backend_index(*id))
            .collect();
        self.rates.0.retain(|index, _| indexes.contains(index));
        for index in indexes {
            let Ok(counter) = self.plane.backend_counter(index) else {
                continue;
            };
            let packets = counter.packets;
            let rate = self.rates.0.entry(index).or_insert(Rate {
                at: now,
                packets,
                per_second: None,
            });
            let seconds = now.saturating_sub(rate.at).as_secs_f64();
            if seconds >= 0.9 {
                let per_second = packets.saturating_sub(rate.packets) as f64 / seconds;
                *rate = Rate {
                    at: now,
                    packets,
                    per_second: Some(per_second),
                };
            }
        }
    }

    /// `GET /v1/drains`.
    ///
    /// # Errors
    /// While there is no usable desired state.
    pub fn drains(&mut self) -> Result<Vec<DrainView>, ErrorBody> {
        self.usable()?;
        let mut old_owners: FxHashMap<u32, u32> = FxHashMap::default();
        for (index, slots) in self
            .mirror
            .known
            .values()
            .flat_map(|table| table.old_owners())
        {
            *old_owners.entry(*index).or_default() += slots;
        }
        let view = |(id, departure): (&u64, &Departure)| {
            let index = self.mirror.backend_index(*id);
            let slots = index.and_then(|index| old_owners.get(&index));
            self.drain(departure, index, slots.copied().unwrap_or(0))
        };
        let mut drains: Vec<DrainView> = self.facts.departures.iter().filter_map(view).collect();
        drains.sort_by(|a, b| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)));
        Ok(drains)
    }

    fn drain(&self, departure: &Departure, index: Option<u32>, slots: u32) -> Option<DrainView> {
        let now = self.facts.now;
        let lost = index
            .and_then(|index| self.mirror.backends.get(&index))
            .is_none_or(|entry| entry.flags & BackendEntry::LOST != 0);
        // A backend that is down and whose flows are given up is not on its way out: it is out.
        if departure.reason == Reason::Down && lost {
            return None;
        }
        let flows = index
            .zip(self.census.as_ref())
            .and_then(|(index, census)| census.flows.get(&index).copied())
            .unwrap_or(0);
        let rate = index.and_then(|index| self.rates.0.get(&index)?.per_second);
        let waited = now.saturating_sub(departure.since);
        let silence = SILENCE.min(departure.until.saturating_sub(departure.since));
        let quiet = waited >= silence && flows == 0 && rate.is_some_and(|rate| rate < QUIET);
        let (service, backend) = match &departure.name {
            Some((service, backend)) => (service.to_string(), backend.to_string()),
            None => (String::new(), String::new()),
        };
        Some(DrainView {
            service,
            backend,
            address: IpAddr::to_string(&departure.address),
            reason: match departure.reason {
                Reason::Drained => "drain",
                Reason::Removed => "removed",
                Reason::Down => "down",
            }
            .into(),
            since_seconds: now.saturating_sub(departure.since).as_secs(),
            seconds_left: (!lost).then(|| departure.until.saturating_sub(now).as_secs()),
            flows: if lost { 0 } else { flows },
            packets_per_second: rate.unwrap_or(0.0),
            slots,
            safe: lost || quiet,
        })
    }
}
