//! The flow table: which backend a flow of a tracked slot goes to, whoever owns the slot by now.
//!
//! **Invariants.** Packets of steady slots never come here: no look-up, no clock and no flags on their path. Whatever goes
//! wrong with the table, a packet goes to an owner of its slot.
//!
//! A packet of a flow that this node has not seen begin may be for either owner of its slot. It names the one that it
//! does not go to as its second owner, where the mode can say that, and so do the flow's later packets: the entry
//! remembers both.

use crate::{backend, flow_set, parse::Flow, stats, trace};
use lb_common::{
    flow_set::{Head, KEY_WORDS, Worth, entry_of, entry_words},
    flow_table::{FlowEntry, FlowEvent, PacketKind, SYN_REUSE_SECONDS},
    slot::Slot,
    verdict::Verdict,
};
use lb_ebpf::{clock, verifier};

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
    let home = flow_set::find(key);
    let found = known(home);
    trace::entry(found.map(|(_, entry)| entry), Some(kind));
    if let Some((head, entry)) = found
        && let Some((first, second)) = follow(&entry, kind, place.service, now)
    {
        mark(home, head, kind, now);
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
        let claimed = flow_set::claim(home);
        let event = if !claimed.is_there() {
            FlowEvent::Failed
        } else {
            claimed.write(key, entry_words(&entry), now);
            if home.is_there() {
                FlowEvent::Replaced
            } else {
                FlowEvent::Recorded
            }
        };
        stats::count_flow(event);
    }
    Ok(owners)
}

/// The backend that an ICMP error about a flow of a tracked slot goes to: its flow's, if that is known and still
/// there, else the slot's old owner, which is the likely sender of what the error quotes. Nothing is remembered: it takes
/// no more than a guess to send an error.
#[inline(always)]
pub fn owners_of_error(flow: &Flow, place: &Place) -> Result<Owners, Verdict> {
    let found = known(flow_set::find(key(flow))).map(|(_, entry)| entry);
    trace::entry(found, None);
    if let Some(known) = found
        && known.service == place.service
        && backend::keeps_flows(known.backend, known.generation)
    {
        stats::count_flow(FlowEvent::Hit);
        return Ok(Owners::new(known.backend, known.second()));
    }
    match place.slot.old_owner() {
        0 => Err(Verdict::DropNoBackend),
        owner => Ok(Owners::new(owner, PacketKind::Tcp.second_owner(place.slot))),
    }
}

#[inline(always)]
fn key(flow: &Flow) -> [u64; KEY_WORDS] {
    let ([a, b], [c, d]) = (flow.source.halves(), flow.destination.halves());
    let ports = u64::from(flow.ports.source) | u64::from(flow.ports.destination) << 16;
    [a, b, c, d, ports | u64::from(flow.protocol) << 32]
}

/// What is known of a flow whose place was found.
#[inline(always)]
fn known(place: flow_set::Place) -> Option<(Head, FlowEntry)> {
    if !place.is_there() {
        return None;
    }
    let (head, words) = place.read()?;
    Some((head, entry_of(words, head)))
}

/// The backend of an entry and its second owner, if the entry counts for such a packet.
#[inline(always)]
fn follow(known: &FlowEntry, kind: PacketKind, service: u32, now: u32) -> Option<(u32, u32)> {
    if known.service != service || !backend::keeps_flows(known.backend, known.generation) {
        return None;
    }
    match kind {
        PacketKind::TcpSyn if known.is_closing() || known.idle(now) > SYN_REUSE_SECONDS => None,
        PacketKind::TcpSyn => Some((known.backend, 0)),
        _ => Some((known.backend, known.second())),
    }
}

/// Remembers that the flow has had a packet.
#[inline(always)]
fn mark(place: flow_set::Place, head: Head, kind: PacketKind, now: u32) {
    if trace::is_explaining() {
        return;
    }
    let worth = match kind {
        _ if head.is_closing() => Worth::Closing as u64,
        PacketKind::TcpEnd => Worth::Closing as u64,
        PacketKind::TcpSyn => head.worth(),
        PacketKind::Tcp | PacketKind::Udp => Worth::Followed as u64,
    };
    let new = head.marked(worth, now);
    if new != head {
        place.mark(head, new);
    }
}
