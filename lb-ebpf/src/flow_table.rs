//! The flow table: which backend a flow of a tracked slot goes to, whoever owns the slot by now.
//!
//! **Invariants.** Packets of steady slots never come here: no look-up, no clock and no flags on their path. Whatever goes
//! wrong with the table, a packet goes to an owner of its slot.

use crate::{backend, parse::Flow, stats, trace};
use aya_ebpf::{bindings::BPF_ANY, btf_maps::LruHashMap, macros::btf_map};
use lb_common::{
    flow_table::{FlowEntry, FlowEvent, FlowKey, PacketKind, SYN_REUSE_SECONDS},
    limits::DEFAULT_FLOWS,
    slot::Slot,
    verdict::Verdict,
};
use lb_ebpf::clock;

#[btf_map]
static FLOWS: LruHashMap<FlowKey, FlowEntry, { DEFAULT_FLOWS as usize }> = LruHashMap::new();

/// Where a flow is at home.
pub struct Place {
    /// Index of its service.
    pub service: u32,
    /// Number of its slot.
    pub number: u32,
    /// The slot's word.
    pub slot: Slot,
}

/// Index of the backend that a packet of a tracked slot goes to: its flow's, if that is known and still there, else the
/// slot's owner for packets of this kind, which is remembered.
#[inline(always)]
pub fn owner(flow: &Flow, kind: PacketKind, place: &Place) -> Result<u32, Verdict> {
    let key = key(flow);
    let now = clock::seconds();
    let found = FLOWS.get_ptr_mut(key);
    trace::entry(found.map(<*mut _>::cast_const), Some(kind));
    if let Some(entry) = found
        && let Some(backend) = follow(entry, kind, place.service, now)
    {
        stats::count_flow(FlowEvent::Hit);
        return Ok(backend);
    }
    let owner = kind.owner(place.slot);
    if owner == 0 {
        return Err(Verdict::DropNoBackend);
    }
    if kind.is_recorded() && !trace::is_explaining() {
        let entry = FlowEntry {
            backend: owner,
            generation: backend::generation(owner)?,
            service: place.service,
            slot: place.number,
            seen: now,
            flags: 0,
        };
        stats::count_flow(match FLOWS.insert(key, entry, BPF_ANY.into()) {
            Ok(()) if found.is_some() => FlowEvent::Replaced,
            Ok(()) => FlowEvent::Recorded,
            Err(_) => FlowEvent::Failed,
        });
    }
    Ok(owner)
}

/// Index of the backend that an ICMP error about a flow of a tracked slot goes to: its flow's, if that is known and still
/// there, else the slot's old owner, which is the likely sender of what the error quotes. Nothing is remembered: it takes
/// no more than a guess to send an error.
#[inline(always)]
pub fn owner_of_error(flow: &Flow, place: &Place) -> Result<u32, Verdict> {
    let found = FLOWS.get_ptr(key(flow));
    trace::entry(found, None);
    if let Some(entry) = found {
        // SAFETY: as in `follow`.
        let known = unsafe { entry.read_volatile() };
        if known.service == place.service && backend::keeps_flows(known.backend, known.generation) {
            stats::count_flow(FlowEvent::Hit);
            return Ok(known.backend);
        }
    }
    match place.slot.old_owner() {
        0 => Err(Verdict::DropNoBackend),
        owner => Ok(owner),
    }
}

#[inline(always)]
fn key(flow: &Flow) -> FlowKey {
    FlowKey::new(flow.source, flow.destination, flow.ports, flow.protocol)
}

/// The backend of an entry, if the entry counts for such a packet; then it is marked as seen.
#[inline(always)]
fn follow(entry: *mut FlowEntry, kind: PacketKind, service: u32, now: u32) -> Option<u32> {
    // SAFETY: an element of an LRU map stays memory of the map while the program runs. The kernel may give it to another
    // flow meanwhile; then one packet in a great many goes, or one mark lands, where it does not belong. Other CPUs and
    // the daemon see each word as it was or as it will be.
    unsafe {
        let known = entry.read_volatile();
        if known.service != service || !backend::keeps_flows(known.backend, known.generation) {
            return None;
        }
        if kind == PacketKind::TcpSyn && (known.is_closing() || known.idle(now) > SYN_REUSE_SECONDS)
        {
            return None;
        }
        if trace::is_explaining() {
            return Some(known.backend);
        }
        if known.seen != now {
            (&raw mut (*entry).seen).write_volatile(now);
        }
        if kind == PacketKind::TcpEnd && !known.is_closing() {
            (&raw mut (*entry).flags).write_volatile(known.flags | FlowEntry::CLOSING);
        }
        Some(known.backend)
    }
}
