//! The flow table: which backend a flow of a tracked slot goes to, whoever owns the slot by now.
//!
//! **Invariants.** Packets of steady slots never come here: no look-up, no clock and no flags on their path. Whatever goes
//! wrong with the table, a packet goes to an owner of its slot.
//!
//! A packet of a flow that this node has not seen begin may be for either owner of its slot. It names the one that it
//! does not go to as its second owner, where the mode can say that, and so do the flow's later packets: the entry
//! remembers both.

use crate::{backend, parse::Flow, stats, trace};
use aya_ebpf::{bindings::BPF_ANY, btf_maps::LruHashMap, macros::btf_map};
use lb_common::{
    flow_table::{FlowEntry, FlowEvent, FlowKey, PacketKind, SYN_REUSE_SECONDS},
    limits::DEFAULT_FLOWS,
    slot::Slot,
    verdict::Verdict,
};
use lb_ebpf::clock;
use lb_ebpf::verifier;

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

/// Indexes of the backends that a packet may be for: the one that it goes to and, above it, the one that it names (0: none).
/// One word, which takes one place on the stack while the packet is sent, and of which the verifier knows nothing: whether there
/// is a second one is no reason to go through the rest of the program once more.
#[derive(Clone, Copy)]
pub struct Owners(u64);

impl Owners {
    /// The one and, if it can be named, the other.
    #[inline(always)]
    fn new(first: u32, second: u32) -> Self {
        Self(verifier::forget_wide(
            u64::from(first) | u64::from(backend::second(first, second)) << 32,
        ))
    }

    /// The one alone.
    #[inline(always)]
    pub fn alone(first: u32) -> Self {
        Self(verifier::forget_wide(first.into()))
    }

    /// The one that the packet goes to.
    #[inline(always)]
    pub fn first(self) -> u32 {
        self.0 as u32
    }

    /// The one that it names; 0: none.
    #[inline(always)]
    pub fn second(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The same, of which the compiler does not know that it has seen its parts before, and keeps none of them.
    #[inline(always)]
    pub fn again(self) -> Self {
        Self(verifier::forget_wide(self.0))
    }
}

/// The backend that a packet of a tracked slot goes to: its flow's, if that is known and still there, else the
/// slot's owner for packets of this kind, which is remembered. A SYN is for nobody else.
#[inline(always)]
pub fn owners(flow: &Flow, kind: PacketKind, place: &Place) -> Result<Owners, Verdict> {
    let key = key(flow);
    let now = clock::seconds();
    let found = FLOWS.get_ptr_mut(key);
    trace::entry(found.map(<*mut _>::cast_const), Some(kind));
    if let Some(entry) = found
        && let Some((first, second)) = follow(entry, kind, place.service, now)
    {
        stats::count_flow(FlowEvent::Hit);
        return Ok(Owners::new(first, second));
    }
    let owner = kind.owner(place.slot);
    if owner == 0 {
        return Err(Verdict::DropNoBackend);
    }
    let owners = Owners::new(owner, kind.second_owner(place.slot));
    if kind.is_recorded() && !trace::is_explaining() {
        let entry = FlowEntry {
            backend: owner,
            generation: backend::generation(owner)?,
            service: place.service,
            slot: place.number,
            seen: now,
            flags: FlowEntry::flags_of(owners.second()),
        };
        stats::count_flow(match FLOWS.insert(key, entry, BPF_ANY.into()) {
            Ok(()) if found.is_some() => FlowEvent::Replaced,
            Ok(()) => FlowEvent::Recorded,
            Err(_) => FlowEvent::Failed,
        });
    }
    Ok(owners)
}

/// The backend that an ICMP error about a flow of a tracked slot goes to: its flow's, if that is known and still
/// there, else the slot's old owner, which is the likely sender of what the error quotes. Nothing is remembered: it takes
/// no more than a guess to send an error.
#[inline(always)]
pub fn owners_of_error(flow: &Flow, place: &Place) -> Result<Owners, Verdict> {
    let found = FLOWS.get_ptr(key(flow));
    trace::entry(found, None);
    if let Some(entry) = found {
        // SAFETY: as in `follow`.
        let known = unsafe { entry.read_volatile() };
        if known.service == place.service && backend::keeps_flows(known.backend, known.generation) {
            stats::count_flow(FlowEvent::Hit);
            return Ok(Owners::new(known.backend, known.second()));
        }
    }
    match place.slot.old_owner() {
        0 => Err(Verdict::DropNoBackend),
        owner => Ok(Owners::new(owner, PacketKind::Tcp.second_owner(place.slot))),
    }
}

#[inline(always)]
fn key(flow: &Flow) -> FlowKey {
    FlowKey::new(flow.source, flow.destination, flow.ports, flow.protocol)
}

/// The backend of an entry and its second owner, if the entry counts for such a packet; then it is marked as seen.
#[inline(always)]
fn follow(entry: *mut FlowEntry, kind: PacketKind, service: u32, now: u32) -> Option<(u32, u32)> {
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
        let owners = match kind {
            PacketKind::TcpSyn => (known.backend, 0),
            _ => (known.backend, known.second()),
        };
        if trace::is_explaining() {
            return Some(owners);
        }
        if known.seen != now {
            (&raw mut (*entry).seen).write_volatile(now);
        }
        if kind == PacketKind::TcpEnd && !known.is_closing() {
            (&raw mut (*entry).flags).write_volatile(known.flags | FlowEntry::CLOSING);
        }
        Some(owners)
    }
}
