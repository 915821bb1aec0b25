//! What the program recorded, in the words of the desired state.

use super::core::Core;
use crate::{
    api::path::{
        BackendHit, ConnectionIdView, Explanation, FlowTableView, FlowView, FrameView, SecondHit,
        ServiceHit, SizeView, SlotView, VerdictView,
    },
    dataplane::{DataPlane, Explained},
    explain::{advice::advice, decode, hex},
    plan::select::select,
    spec::{Service, mode_name},
};
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode},
    flow::slot_of,
    flow_table::{FlowEvent, PacketKind, SYN_REUSE_SECONDS},
    gue,
    header::{PROTOCOL_TCP, PROTOCOL_UDP},
    mtu,
    service::ServiceEntry,
    slot::Slot,
    trace::Record,
    verdict::{Action, Verdict},
};
use std::net::{IpAddr, SocketAddr};

impl<P: DataPlane> Core<P> {
    /// What became of a frame that came in on an interface.
    pub fn explanation(&self, interface: &str, frame: &[u8], explained: &Explained) -> Explanation {
        let record = &explained.event.record;
        let verdict = Verdict::from_number(record.verdict);
        let entry = record
            .reached(Record::BACKEND)
            .then(|| self.mirror.backends.get(&record.backend))
            .flatten();
        let port = entry.map_or(gue::DEFAULT_PORT, |entry| match u16::from_be(entry.port) {
            0 => gue::DEFAULT_PORT,
            port => port,
        });
        let sent = matches!(verdict.action(), Action::Forward | Action::Answer);
        Explanation {
            interface: interface.into(),
            verdict: verdict_view(verdict),
            flow: flow_view(record),
            service: record
                .reached(Record::SERVICE)
                .then(|| self.service_hit(record)),
            connection_id: record
                .reached(Record::QUIC)
                .then(|| self.connection_id_view(record)),
            slot: record.reached(Record::SLOT).then(|| self.slot_view(record)),
            flow_table: record
                .reached(Record::LOOKED_UP)
                .then(|| self.flow_table_view(record)),
            backend: record
                .reached(Record::BACKEND)
                .then(|| self.backend_hit(record.backend)),
            second: (record.reached(Record::BACKEND) && record.second != 0)
                .then(|| self.second_hit(record.second)),
            size: entry.and_then(|entry| size_view(record, entry)),
            input: frame_view(frame, port),
            output: sent.then(|| frame_view(&explained.frame, port)),
        }
    }

    fn service_hit(&self, record: &Record) -> ServiceHit {
        let service = self.service_of(record.service);
        let text = |of: fn(&Service) -> String| service.map(of).unwrap_or_default();
        ServiceHit {
            name: text(|service| service.name.to_string()),
            index: record.service,
            hash: format!("{:016x}", record.hash),
            hashed: text(|service| service.hash.as_str().into()),
        }
    }

    fn connection_id_view(&self, record: &Record) -> ConnectionIdView {
        let event = FlowEvent::ALL
            .into_iter()
            .find(|event| *event as u8 + 1 == record.quic_event);
        let meaning = match event {
            Some(FlowEvent::QuicRouted) => {
                "the packet goes to the backend that the connection ID names"
            }
            Some(FlowEvent::QuicOtherConfig) => {
                "the connection ID is of another config rotation: the flow decides"
            }
            Some(FlowEvent::QuicUnknown) => {
                "no backend has this server ID, as when the client has chosen the connection ID: the flow decides"
            }
            Some(FlowEvent::QuicGone) => {
                "the flows of the backend that has this server ID are given up: the flow decides"
            }
            _ => "the packet or its connection ID ends before a server ID does: the flow decides",
        };
        let services = self.mirror.services.values();
        let service = services
            .into_iter()
            .find(|entry| entry.index == record.service);
        let length = service.map_or(8, |entry| {
            ServiceEntry::quic_config(entry.flags).server_id_length
        });
        let digits = 2 * usize::from(length);
        ConnectionIdView {
            routed: event == Some(FlowEvent::QuicRouted),
            server_id: matches!(
                event,
                Some(FlowEvent::QuicRouted | FlowEvent::QuicUnknown | FlowEvent::QuicGone)
            )
            .then(|| format!("{:0digits$x}", record.server_id)),
            meaning: meaning.into(),
        }
    }

    fn slot_view(&self, record: &Record) -> SlotView {
        let slot = Slot(record.slot);
        let owner = |index| (index != 0).then(|| self.backend_name(index));
        let (new, old) = (slot.new_owner(), slot.old_owner());
        let (state, meaning) = match (slot.is_tracked(), new == old) {
            (false, _) if new == 0 => ("empty", "no backend is available for this slot"),
            (false, _) => (
                "steady",
                "every flow of the slot goes to its owner; the flow table is not asked",
            ),
            (true, true) => (
                "tracked",
                "its owner is settled, but flows in the flow table go where their entry says",
            ),
            (true, false) if slot.is_settled() => (
                "moved",
                "known flows go where their entry says; new TCP and all unknown UDP flows go to the new owner, old TCP ones \
                 to the old owner",
            ),
            (true, false) => (
                "moved",
                "known flows go where their entry says; new TCP flows go to the new owner, old TCP and unknown UDP ones \
                 to the old owner",
            ),
        };
        SlotView {
            number: slot_of(record.hash),
            word: format!("{:016x}", record.slot),
            state: state.into(),
            meaning: meaning.into(),
            new_owner: owner(new),
            old_owner: owner(old),
        }
    }

    fn flow_table_view(&self, record: &Record) -> FlowTableView {
        let found = record.reached(Record::ENTRY);
        let counts = record.flow_event == FlowEvent::Hit as u8 + 1;
        let now = (record.time / 1_000_000_000) as u32;
        FlowTableView {
            found,
            counts,
            backend: found.then(|| self.backend_name(record.entry.backend)),
            idle_seconds: found.then(|| record.entry.idle(now)),
            closing: found && record.entry.is_closing(),
            second: (found && record.entry.second() != 0)
                .then(|| self.backend_name(record.entry.second())),
            meaning: if counts && record.entry.second() != 0 {
                "the packet goes where the entry says, which is a guess: this node has not seen the flow begin".into()
            } else if counts {
                "the packet goes where the entry says".into()
            } else if found {
                format!("the entry does not count: {}", self.why_stale(record, now))
            } else {
                format!("no entry: the packet goes to {}", owner_for(record.kind))
            },
        }
    }

    /// Why an entry of the flow table does not count.
    fn why_stale(&self, record: &Record, now: u32) -> String {
        let known = &record.entry;
        let is_syn = record.kind == PacketKind::TcpSyn as u8 + 1;
        match self.mirror.backends.get(&known.backend) {
            _ if known.service != record.service => "it is of another service".into(),
            None => "its backend is gone".into(),
            Some(entry) if entry.generation != known.generation => {
                "its backend is gone, and its index is another's".into()
            }
            Some(entry) if entry.flags & BackendEntry::LOST != 0 => {
                "the flows of its backend are given up".into()
            }
            Some(_) if is_syn && known.is_closing() => {
                "the connection was closing, and the SYN opens a new one".into()
            }
            Some(_) if is_syn && known.idle(now) > SYN_REUSE_SECONDS => format!(
                "the connection has been silent for {} s, and the SYN opens a new one",
                known.idle(now)
            ),
            Some(_) => "its backend could not be used".into(),
        }
    }

    /// The other owner that the packet names.
    fn second_hit(&self, index: u32) -> SecondHit {
        let entry = self.mirror.backends.get(&index);
        SecondHit {
            name: self.backend_name(index),
            index,
            address: entry
                .map_or_else(String::new, |entry| IpAddr::from(entry.address).to_string()),
        }
    }

    fn backend_hit(&self, index: u32) -> BackendHit {
        let entry = self
            .mirror
            .backends
            .get(&index)
            .copied()
            .unwrap_or_default();
        let found = self.find_backend(entry.id);
        let state = match found {
            Some((service, backend)) => {
                let view = self.backend(service, backend, &select(service, &self.facts));
                match view.inactive_reason.as_str() {
                    "" => format!("{}, gets new flows", view.health),
                    reason => format!("{}, gets no new flows: {reason}", view.health),
                }
            }
            None => "removed; its old flows stay with it for a while".into(),
        };
        let name = |port: u32| {
            let mut attachments = self.attachments.iter();
            let found = attachments.find(|attachment| attachment.index == port);
            found.map_or_else(|| format!("index {port}"), |found| found.name.clone())
        };
        BackendHit {
            name: self.backend_name(index),
            index,
            address: IpAddr::from(entry.address).to_string(),
            mode: Mode::from_u8(entry.mode)
                .map_or_else(|| "none".into(), |mode| mode_name(mode).into()),
            state,
            next_hop: if entry.next_hop.is_resolved() {
                decode::mac(&entry.next_hop.mac)
            } else {
                String::new()
            },
            interface: name(entry.interface),
        }
    }
}

fn verdict_view(verdict: Verdict) -> VerdictView {
    VerdictView {
        name: verdict.name().into(),
        action: super::views::action(verdict.action()).into(),
        description: verdict.description().into(),
        advice: advice(verdict).into(),
    }
}

fn owner_for(kind: u8) -> &'static str {
    const SYN: u8 = PacketKind::TcpSyn as u8 + 1;
    const UDP: u8 = PacketKind::Udp as u8 + 1;
    match kind {
        SYN => "the owner for new flows, as a SYN opens a connection",
        UDP => "the owner for unknown UDP flows",
        0 => "the owner for old flows, as an ICMP error is about an old one",
        _ => "the owner for old flows, as it is of a connection that is open already",
    }
}

/// The flow of a record, or as much of it as is known.
pub(super) fn flow_view(record: &Record) -> Option<FlowView> {
    if !record.reached(Record::IP) {
        return None;
    }
    let has_ports = record.reached(Record::FLOW);
    let end = |address: Address, port: u16| {
        let address = IpAddr::from(address);
        if has_ports {
            SocketAddr::new(address, u16::from_be(port)).to_string()
        } else {
            address.to_string()
        }
    };
    Some(FlowView {
        protocol: match record.protocol {
            PROTOCOL_TCP => "tcp".into(),
            PROTOCOL_UDP => "udp".into(),
            other => other.to_string(),
        },
        source: end(record.source, record.source_port),
        destination: end(record.destination, record.destination_port),
        is_error: record.is_error != 0,
    })
}

fn size_view(record: &Record, entry: &BackendEntry) -> Option<SizeView> {
    let mode = Mode::from_u8(entry.mode)?;
    let added = mtu::overhead(mode, entry.address.is_v4()).into();
    let (received, mtu) = (record.ip_length.into(), entry.mtu.into());
    Some(SizeView {
        received,
        added,
        mtu,
        fits: received + added <= mtu,
    })
}

fn frame_view(frame: &[u8], gue_port: u16) -> FrameView {
    FrameView {
        length: frame.len() as u32,
        hex: hex::encode(frame),
        headers: decode::headers(frame, gue_port),
    }
}
