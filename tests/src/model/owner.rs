//! Which backend a packet goes to: the owner of its slot or, while the slot is tracked, the backend of its flow.

use super::{
    Flow, Model,
    bytes::byte,
    parse::{self, Ip},
};
use lb_common::{
    flow_table::{FlowEntry, FlowEvent},
    verdict::Verdict,
};

/// A slot's word, taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    new: u32,
    old: u32,
    tracked: bool,
    settled: bool,
}

impl Slot {
    /// Owner for new flows, owner for old flows (24 bits each), tracked, settled.
    pub fn of(word: u64) -> Self {
        Self {
            new: (word & 0xff_ffff) as u32,
            old: (word >> 24 & 0xff_ffff) as u32,
            tracked: word >> 63 == 1,
            settled: word >> 62 & 1 == 1,
        }
    }
}

/// Where a flow is at home.
pub struct Place {
    pub service: u32,
    pub number: u32,
    pub slot: Slot,
}

/// What a packet is for its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Opens,
    Goes,
    Ends,
    Datagram,
    Error,
}

impl Kind {
    /// The kind of a TCP or UDP packet.
    pub fn of(frame: &[u8], ip: &Ip) -> Self {
        if ip.protocol == parse::UDP {
            return Self::Datagram;
        }
        let flags = byte(ip.payload(frame), 13).unwrap_or(0);
        let (fin, syn, rst, ack) = (flags & 1, flags & 2, flags & 4, flags & 16);
        if fin != 0 || rst != 0 {
            Self::Ends
        } else if syn != 0 && ack == 0 {
            Self::Opens
        } else {
            Self::Goes
        }
    }
}

/// A flow's new connection may have the ports of one that has been silent for so many seconds.
const REUSE: u32 = 60;

impl Model {
    /// The backend of a packet, the second owner that it names (0: none), and what is counted of the flow table.
    pub(super) fn owner(
        &mut self,
        flow: &Flow,
        kind: Kind,
        place: &Place,
        now: u32,
    ) -> (Result<(u32, u32), Verdict>, Option<FlowEvent>) {
        let slot = place.slot;
        if !slot.tracked {
            return (owned(slot.new, 0), None);
        }
        if let Some(known) = self.followed(flow, kind, place.service, now) {
            let guessed = if kind == Kind::Opens { 0 } else { known.1 };
            let both = (known.0, self.nameable(known.0, guessed));
            return (Ok(both), Some(FlowEvent::Hit));
        }
        let owner = match kind {
            Kind::Opens => slot.new,
            Kind::Datagram if slot.settled => slot.new,
            Kind::Datagram | Kind::Goes | Kind::Ends | Kind::Error => slot.old,
        };
        let other = if owner == slot.old {
            slot.new
        } else {
            slot.old
        };
        let second = if kind == Kind::Opens || other == owner {
            0
        } else {
            self.nameable(owner, other)
        };
        if owner == 0 || kind == Kind::Ends || kind == Kind::Error {
            return (owned(owner, second), None);
        }
        match self
            .backends
            .get(&owner)
            .map(|backend| backend.generation())
        {
            Some(Ok(generation)) => {
                let entry = FlowEntry {
                    backend: owner,
                    generation,
                    service: place.service,
                    slot: place.number,
                    seen: now,
                    flags: second * 256,
                };
                let event = match self.flows.insert(*flow, entry) {
                    Some(_) => FlowEvent::Replaced,
                    None => FlowEvent::Recorded,
                };
                (Ok((owner, second)), Some(event))
            }
            None | Some(Err(_)) => (Err(Verdict::DropBadState), None),
        }
    }

    /// `second`, if packets for `first` can name it; else 0.
    fn nameable(&self, first: u32, second: u32) -> u32 {
        match (self.backends.get(&first), self.backends.get(&second)) {
            (Some(first), Some(other)) if other.is_nameable_beside(first) => second,
            _ => 0,
        }
    }

    /// The backend of a flow's entry and the one that the flow may be at home at instead, if the entry counts for a packet of
    /// this kind.
    fn followed(&mut self, flow: &Flow, kind: Kind, service: u32, now: u32) -> Option<(u32, u32)> {
        let entry = self.flows.get_mut(flow)?;
        let backend = self.backends.get(&entry.backend)?;
        if entry.service != service || !backend.keeps_flows_of(entry.generation) {
            return None;
        }
        let known = (entry.backend, entry.flags / 256);
        if kind == Kind::Error {
            return Some(known);
        }
        let reused = entry.flags & 1 != 0 || entry.seen + REUSE < now;
        if kind == Kind::Opens && reused {
            return None;
        }
        entry.seen = now;
        if kind == Kind::Ends {
            entry.flags |= 1;
        }
        Some(known)
    }
}

fn owned(owner: u32, second: u32) -> Result<(u32, u32), Verdict> {
    if owner == 0 {
        Err(Verdict::DropNoBackend)
    } else {
        Ok((owner, second))
    }
}
