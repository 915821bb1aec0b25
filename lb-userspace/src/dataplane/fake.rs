//! An in-memory data plane: the model that tests hold the control loop against.

use super::{DataPlane, Installed};
use anyhow::{Context, Result, ensure};
use lb_common::{
    backend::{BackendEntry, Mode},
    flow_table::{FlowEntry, FlowEvent, FlowKey, PacketKind, SYN_REUSE_SECONDS},
    limits::SLOTS,
    quic::{ServerEntry, ServerKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    stats::Counter,
    verdict::Verdict,
};
use std::collections::BTreeMap;

/// Maps as plain collections. Each write checks what a packet could see in that moment: the order of writes that
/// [`DataPlane`] asks for is enforced here, so that every test of the control loop tests it as well.
#[derive(Clone, Debug, Default)]
pub struct FakeDataPlane {
    services: BTreeMap<ServiceKey, ServiceEntry>,
    backends: BTreeMap<u32, BackendEntry>,
    tables: BTreeMap<u32, Vec<Slot>>,
    servers: BTreeMap<ServerKey, ServerEntry>,
    /// The flow table.
    pub flows: BTreeMap<FlowKey, FlowEntry>,
    /// Entries that it holds.
    pub flow_capacity: u32,
    flow_events: [u64; FlowEvent::COUNT as usize],
    service_capacity: u32,
    backend_capacity: u32,
    /// Number of writes so far.
    pub writes: u64,
    /// When set, writes fail once this many have been made.
    pub fail_after: Option<u64>,
}

impl FakeDataPlane {
    /// Empty maps of the given sizes.
    pub fn new(service_capacity: u32, backend_capacity: u32) -> Self {
        Self {
            service_capacity,
            backend_capacity,
            flow_capacity: 1 << 16,
            ..Self::default()
        }
    }

    /// The entry of a backend index that is in use.
    pub fn backend(&self, index: u32) -> Option<&BackendEntry> {
        self.backends.get(&index).filter(|entry| entry.mode != 0)
    }

    /// The entry a packet of this slot would be forwarded by: what the XDP program would do.
    pub fn forward(&self, key: &ServiceKey, slot: u32) -> Option<&BackendEntry> {
        let service = self.services.get(key)?;
        let owner = self
            .tables
            .get(&service.index)?
            .get(slot as usize)?
            .new_owner();
        self.backends.get(&owner).filter(|entry| entry.mode != 0)
    }

    /// What the program does with a packet of a flow in a slot of a service at `now`, in seconds of CLOCK_MONOTONIC: the
    /// index of the backend that it sends it to, or nothing if it drops or passes it.
    pub fn packet(
        &mut self,
        key: &ServiceKey,
        flow: &FlowKey,
        slot: u32,
        kind: PacketKind,
        now: u32,
    ) -> Option<u32> {
        let (first, _) = self.packet_for(key, flow, slot, kind, now)?;
        Some(first)
    }

    /// As [`FakeDataPlane::packet`], with the second owner that the packet names; 0: none.
    pub fn packet_for(
        &mut self,
        key: &ServiceKey,
        flow: &FlowKey,
        slot: u32,
        kind: PacketKind,
        now: u32,
    ) -> Option<(u32, u32)> {
        let service = self.services.get(key)?.index;
        let word = *self.tables.get(&service)?.get(slot as usize)?;
        let (index, second) = if word.is_tracked() {
            self.tracked(service, slot, word, flow, kind, now)?
        } else {
            (word.new_owner(), 0)
        };
        let backend = self.backends.get(&index)?;
        (is_used(backend) && backend.next_hop.is_resolved()).then_some((index, second))
    }

    fn tracked(
        &mut self,
        service: u32,
        slot: u32,
        word: Slot,
        flow: &FlowKey,
        kind: PacketKind,
        now: u32,
    ) -> Option<(u32, u32)> {
        let known = self.flows.get(flow).copied();
        if let Some(entry) = known
            && self.counts(&entry, service, kind, now)
        {
            let closing = match kind {
                PacketKind::TcpEnd => FlowEntry::CLOSING,
                _ => 0,
            };
            let seen = FlowEntry {
                seen: now,
                flags: entry.flags | closing,
                ..entry
            };
            self.flows.insert(*flow, seen);
            self.count(FlowEvent::Hit);
            let second = match kind {
                PacketKind::TcpSyn => 0,
                _ => self.nameable(entry.backend, entry.flags >> 8),
            };
            return Some((entry.backend, second));
        }
        let owner = match kind {
            PacketKind::TcpSyn => word.new_owner(),
            PacketKind::Tcp | PacketKind::TcpEnd => word.old_owner(),
            PacketKind::Udp if word.is_settled() => word.new_owner(),
            PacketKind::Udp => word.old_owner(),
        };
        // Nobody, or an entry that is not in use: the packet is dropped.
        let backend = self.backends.get(&owner).filter(|entry| is_used(entry))?;
        let other = match kind {
            PacketKind::TcpSyn => 0,
            _ if owner == word.old_owner() => word.new_owner(),
            _ => word.old_owner(),
        };
        let second = match other == owner {
            true => 0,
            false => self.nameable(owner, other),
        };
        if kind != PacketKind::TcpEnd {
            let entry = FlowEntry {
                backend: owner,
                generation: backend.generation,
                service,
                slot,
                seen: now,
                flags: second << 8,
            };
            self.record(flow, entry);
            self.count(match known {
                Some(_) => FlowEvent::Replaced,
                None => FlowEvent::Recorded,
            });
        }
        Some((owner, second))
    }

    /// The second owner, if packets for the first can name it; else 0.
    fn nameable(&self, first: u32, second: u32) -> u32 {
        let (Some(first), Some(other)) = (self.backends.get(&first), self.backends.get(&second))
        else {
            return 0;
        };
        let both_gue = first.mode == Mode::Gue as u8 && other.mode == Mode::Gue as u8;
        let is_there = other.flags & BackendEntry::LOST == 0
            && other.next_hop.is_resolved()
            && other.port != 0;
        if both_gue && is_there && first.address.is_v4() == other.address.is_v4() {
            second
        } else {
            0
        }
    }

    /// Whether a packet follows an entry.
    fn counts(&self, entry: &FlowEntry, service: u32, kind: PacketKind, now: u32) -> bool {
        let Some(backend) = self.backends.get(&entry.backend) else {
            return false;
        };
        let is_there = is_used(backend)
            && backend.generation == entry.generation
            && backend.flags & BackendEntry::LOST == 0;
        let is_again = kind != PacketKind::TcpSyn
            || !entry.is_closing() && entry.idle(now) <= SYN_REUSE_SECONDS;
        entry.service == service && is_there && is_again
    }

    /// Records a flow; in a full table in the place of the one that has been silent for longest.
    fn record(&mut self, flow: &FlowKey, entry: FlowEntry) {
        if !self.flows.contains_key(flow) && self.flows.len() >= self.flow_capacity as usize {
            let oldest = self.flows.iter().min_by_key(|(_, entry)| entry.seen);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.flows.remove(&oldest);
            }
        }
        self.flows.insert(*flow, entry);
    }

    fn count(&mut self, event: FlowEvent) {
        if let Some(count) = self.flow_events.get_mut(event as usize) {
            *count += 1;
        }
    }

    /// The backend that a packet with this server ID goes to; nothing if its flow decides.
    pub fn named(&self, key: &ServiceKey, id: u64) -> Option<u32> {
        let service = self.services.get(key)?;
        let config = ServiceEntry::quic_config(service.flags);
        if service.flags & ServiceEntry::QUIC == 0 {
            return None;
        }
        let entry = self.servers.get(&ServerKey {
            service: service.index,
            length: config.server_id_length.into(),
            id,
        })?;
        let backend = self.backends.get(&entry.backend)?;
        let keeps_flows = is_used(backend)
            && backend.generation == entry.generation
            && backend.flags & BackendEntry::LOST == 0;
        keeps_flows.then_some(entry.backend)
    }

    fn written(&mut self) -> Result<()> {
        ensure!(
            self.fail_after.is_none_or(|limit| self.writes < limit),
            "the fake data plane was told to fail"
        );
        self.writes += 1;
        Ok(())
    }

    fn is_named(&self, backend: u32) -> bool {
        let names = |slot: &Slot| slot.new_owner() == backend || slot.old_owner() == backend;
        self.tables.values().any(|table| table.iter().any(names))
    }
}

/// Whether the program takes an entry for a backend.
fn is_used(entry: &BackendEntry) -> bool {
    Mode::from_u8(entry.mode).is_some()
}

impl DataPlane for FakeDataPlane {
    fn installed(&mut self) -> Result<Installed> {
        let backends = self.backends.iter().filter(|(_, entry)| entry.mode != 0);
        Ok(Installed::new(
            self.services.clone(),
            backends.map(|(index, entry)| (*index, *entry)).collect(),
            self.tables.keys().copied().collect(),
            self.servers.clone(),
        ))
    }

    fn service_capacity(&self) -> u32 {
        self.service_capacity
    }

    fn backend_capacity(&self) -> u32 {
        self.backend_capacity
    }

    fn write_backend(&mut self, index: u32, entry: &BackendEntry) -> Result<()> {
        self.written()?;
        ensure!(
            (1..self.backend_capacity).contains(&index),
            "backend index {index} out of range"
        );
        if let Some(old) = self
            .backends
            .get(&index)
            .filter(|old| old.mode != 0 && self.is_named(index))
        {
            let same = (old.address, old.mode, old.id, old.generation)
                == (entry.address, entry.mode, entry.id, entry.generation);
            ensure!(
                same,
                "backend {index} changed its identity while a slot names it"
            );
        }
        let mut servers = self.servers.values();
        let named = servers.find(|server| server.backend == index);
        ensure!(
            named.is_none_or(|server| is_used(entry) && server.generation == entry.generation),
            "backend {index} goes while a server ID names it"
        );
        self.backends.insert(index, *entry);
        Ok(())
    }

    fn create_tables(&mut self, services: &[u32]) -> Result<()> {
        self.written()?;
        for service in services {
            ensure!(
                *service < self.service_capacity,
                "service index {service} out of range"
            );
            self.tables
                .entry(*service)
                .or_insert_with(|| vec![Slot::EMPTY; SLOTS as usize]);
        }
        Ok(())
    }

    fn read_slots(&mut self, service: u32) -> Result<Vec<Slot>> {
        self.tables
            .get(&service)
            .cloned()
            .with_context(|| format!("no slot table {service}"))
    }

    fn read_some_slots(&mut self, service: u32, numbers: &[u32]) -> Result<Vec<Slot>> {
        let table = self.tables.get(&service);
        let table = table.with_context(|| format!("no slot table {service}"))?;
        let read = |number: &u32| table.get(*number as usize).copied();
        let words = numbers.iter().map(read).collect::<Option<_>>();
        words.with_context(|| format!("a slot of service {service} is not below {SLOTS}"))
    }

    fn store_slots(&mut self, service: u32, slots: &[(u32, Slot)]) -> Result<()> {
        self.written()?;
        for (_, slot) in slots {
            for owner in [slot.new_owner(), slot.old_owner()] {
                let known = owner == 0
                    || self
                        .backends
                        .get(&owner)
                        .is_some_and(|entry| entry.mode != 0);
                ensure!(known, "slot names backend {owner}, which is not written");
            }
        }
        let table = self
            .tables
            .get_mut(&service)
            .with_context(|| format!("no slot table {service}"))?;
        for (number, slot) in slots {
            *table
                .get_mut(*number as usize)
                .with_context(|| format!("no slot {number}"))? = *slot;
        }
        Ok(())
    }

    fn remove_table(&mut self, service: u32) -> Result<()> {
        self.written()?;
        ensure!(
            self.services
                .iter()
                .all(|(key, entry)| key.is_of_address() || entry.index != service),
            "table {service} is in use"
        );
        ensure!(
            self.servers.keys().all(|key| key.service != service),
            "table {service} goes before its server IDs"
        );
        self.tables.remove(&service);
        Ok(())
    }

    fn put_server(&mut self, key: &ServerKey, entry: &ServerEntry) -> Result<()> {
        self.written()?;
        let backend = self.backends.get(&entry.backend);
        ensure!(
            backend
                .is_some_and(|backend| is_used(backend) && backend.generation == entry.generation),
            "server ID of backend {}, which is not written",
            entry.backend
        );
        ensure!(
            self.tables.contains_key(&key.service),
            "server ID of service {}, which has no table",
            key.service
        );
        self.servers.insert(*key, *entry);
        Ok(())
    }

    fn remove_server(&mut self, key: &ServerKey) -> Result<()> {
        self.written()?;
        self.servers.remove(key);
        Ok(())
    }

    fn put_service(&mut self, key: &ServiceKey, entry: &ServiceEntry) -> Result<()> {
        self.written()?;
        if !key.is_of_address() {
            ensure!(
                self.tables.contains_key(&entry.index),
                "service before its table {}",
                entry.index
            );
            ensure!(
                self.services.contains_key(&key.its_address()),
                "service before its address"
            );
        }
        let told = entry.flags & ServiceEntry::prefix_flags(u8::MAX);
        ensure!(
            told == ServiceEntry::prefix_flags(key.prefix),
            "an entry does not tell the length of its prefix"
        );
        self.services.insert(*key, *entry);
        Ok(())
    }

    fn remove_service(&mut self, key: &ServiceKey) -> Result<()> {
        self.written()?;
        let left = |other: &ServiceKey| other != key && other.its_address() == *key;
        ensure!(
            !key.is_of_address() || !self.services.keys().any(left),
            "an address of a service is removed"
        );
        self.services.remove(key).context("no such service")?;
        Ok(())
    }

    fn verdicts(&mut self) -> Result<Vec<u64>> {
        Ok(vec![0; Verdict::COUNT as usize])
    }

    fn service_counter(&mut self, _service: u32) -> Result<Counter> {
        Ok(Counter::default())
    }

    fn backend_counter(&mut self, _backend: u32) -> Result<Counter> {
        Ok(Counter::default())
    }

    fn reset_service_counter(&mut self, _service: u32) -> Result<()> {
        self.written()
    }

    fn reset_backend_counter(&mut self, _backend: u32) -> Result<()> {
        self.written()
    }

    fn flow_capacity(&self) -> u32 {
        self.flow_capacity
    }

    fn flow_events(&mut self) -> Result<Vec<u64>> {
        Ok(self.flow_events.to_vec())
    }

    fn scan_flows(&mut self, visit: &mut dyn FnMut(&FlowKey, &FlowEntry)) -> Result<()> {
        for (key, entry) in &self.flows {
            visit(key, entry);
        }
        Ok(())
    }

    fn remove_flows(&mut self, keys: &[FlowKey]) -> Result<u64> {
        self.written()?;
        Ok(keys
            .iter()
            .filter(|key| self.flows.remove(key).is_some())
            .count() as u64)
    }
}

#[cfg(test)]
mod tests;
