//! All counters of the XDP program at once, so that a test can say which ones moved *and* that no other did.

use anyhow::{Context, Result};
use aya::{
    Ebpf, Pod,
    maps::{MapData, PerCpuArray},
};
use lb_common::{flow_table::FlowEvent, maps, stats::Counter, verdict::Verdict};
use std::collections::BTreeMap;

/// Counters, summed over CPUs; those at zero are left out, so that equality compares every one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets by verdict. One that is forwarded is counted for its service alone.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// (packets, bytes) by service index.
    pub services: BTreeMap<u32, (u64, u64)>,
    /// (packets, bytes) by backend index.
    pub backends: BTreeMap<u32, (u64, u64)>,
    /// What the flow table was used for.
    pub flows: BTreeMap<FlowEvent, u64>,
}

impl Counters {
    /// Reads every counter.
    pub fn read(ebpf: &Ebpf) -> Result<Self> {
        let verdicts = Verdict::ALL
            .iter()
            .map(|verdict| (*verdict, *verdict as u32));
        let flows = FlowEvent::ALL.iter().map(|event| (*event, *event as u32));
        let services = counters(ebpf, maps::SERVICE_STATS)?;
        let mut verdicts = counts(ebpf, maps::VERDICTS, verdicts)?;
        let forwarded: u64 = services.values().map(|(packets, _)| packets).sum();
        if forwarded > 0 {
            *verdicts.entry(Verdict::Forwarded).or_default() += forwarded;
        }
        Ok(Self {
            verdicts,
            flows: counts(ebpf, maps::FLOW_EVENTS, flows)?,
            services,
            backends: counters(ebpf, maps::BACKEND_STATS)?,
        })
    }

    /// What a single packet that was not forwarded should count.
    pub fn of_verdict(verdict: Verdict) -> Self {
        Self {
            verdicts: BTreeMap::from([(verdict, 1)]),
            ..Self::default()
        }
    }

    /// What a single forwarded frame of `bytes` should count.
    pub fn of_forwarded(service: u32, backend: u32, bytes: usize) -> Self {
        Self {
            verdicts: BTreeMap::from([(Verdict::Forwarded, 1)]),
            services: BTreeMap::from([(service, (1, bytes as u64))]),
            backends: BTreeMap::from([(backend, (1, bytes as u64))]),
            flows: BTreeMap::new(),
        }
    }

    /// These, and one use of the flow table.
    pub fn with_flow(mut self, event: FlowEvent) -> Self {
        *self.flows.entry(event).or_default() += 1;
        self
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (verdict, count) in &other.verdicts {
            *self.verdicts.entry(*verdict).or_default() += count;
        }
        for (event, count) in &other.flows {
            *self.flows.entry(*event).or_default() += count;
        }
        let both = [
            (&mut self.services, &other.services),
            (&mut self.backends, &other.backends),
        ];
        for (sums, counts) in both {
            for (index, (packets, bytes)) in counts {
                let sum = sums.entry(*index).or_default();
                *sum = (sum.0 + packets, sum.1 + bytes);
            }
        }
    }

    /// What has been counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            verdicts: moved(
                &self.verdicts,
                |key| before.verdicts.get(key).copied(),
                |now, old| now - old,
            ),
            services: moved(
                &self.services,
                |key| before.services.get(key).copied(),
                pairwise,
            ),
            backends: moved(
                &self.backends,
                |key| before.backends.get(key).copied(),
                pairwise,
            ),
            flows: moved(
                &self.flows,
                |key| before.flows.get(key).copied(),
                |now, old| now - old,
            ),
        }
    }
}

fn pairwise(now: (u64, u64), old: (u64, u64)) -> (u64, u64) {
    (now.0 - old.0, now.1 - old.1)
}

fn moved<K: Ord + Copy, V: Copy + PartialEq + Default>(
    now: &BTreeMap<K, V>,
    before: impl Fn(&K) -> Option<V>,
    difference: impl Fn(V, V) -> V,
) -> BTreeMap<K, V> {
    let deltas = now
        .iter()
        .map(|(key, value)| (*key, difference(*value, before(key).unwrap_or_default())));
    deltas.filter(|(_, delta)| *delta != V::default()).collect()
}

fn array<'a, T: Pod>(ebpf: &'a Ebpf, name: &str) -> Result<PerCpuArray<&'a MapData, T>> {
    let map = ebpf
        .map(name)
        .with_context(|| format!("the object has no map {name}"))?;
    PerCpuArray::try_from(map).with_context(|| format!("map {name}"))
}

/// The counts of a map that are not zero, by what is counted at which index.
fn counts<K: Ord>(
    ebpf: &Ebpf,
    name: &str,
    indexes: impl Iterator<Item = (K, u32)>,
) -> Result<BTreeMap<K, u64>> {
    let map = array::<u64>(ebpf, name)?;
    let mut all = BTreeMap::new();
    for (key, index) in indexes {
        let sum = map.get(&index, 0)?.iter().sum();
        if sum != 0 {
            all.insert(key, sum);
        }
    }
    Ok(all)
}

fn counters(ebpf: &Ebpf, name: &str) -> Result<BTreeMap<u32, (u64, u64)>> {
    let map = array::<Counter>(ebpf, name)?;
    let mut all = BTreeMap::new();
    for index in 0..map.len() {
        let cpus = map.get(&index, 0)?;
        let sum = cpus
            .iter()
            .fold((0, 0), |sum, c| (sum.0 + c.packets, sum.1 + c.bytes));
        if sum != (0, 0) {
            all.insert(index, sum);
        }
    }
    Ok(all)
}
