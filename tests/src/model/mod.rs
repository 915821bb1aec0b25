//! A plain model of the data plane, to hold the program against: what must become of a frame, given what is in the maps.
//!
//! **Invariants.** It is written for reading, over byte slices and whole copies, and shares with the program no code that
//! parses, hashes, decides or builds: of `lb-common` it uses names of verdicts and events, and reads fields. What it does
//! not model: want of headroom, maps that are full, and how fast answers may be given: there is always one left, or none.

mod answer;
mod backend;
mod bytes;
mod flow;
mod forward;
mod fragment;
mod icmp;
mod owner;
mod parse;
mod quic;

use crate::{
    counters::Counters,
    prog_run::{INTERFACE, XdpAction},
    world::{Service, World},
};
use bytes::Address;
use flow::{Flow, flow};
use fragment::Fragments;
use lb_common::{
    flow_table::{FlowEntry, FlowEvent},
    service::ServiceKey,
    verdict::Verdict,
};
use parse::{Ip, Part};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What must become of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Why.
    pub verdict: Verdict,
    /// What XDP must answer.
    pub action: XdpAction,
    /// The frame as it leaves, or as it came.
    pub frame: Vec<u8>,
    /// Service and backend that it is counted for.
    pub counted_for: Option<(u32, u32)>,
    /// What is counted of the flow table and of connection IDs.
    pub events: Vec<FlowEvent>,
}

impl Expected {
    /// Adds what is counted for a frame of `bytes` as received.
    pub fn count(&self, bytes: usize, counters: &mut Counters) {
        *counters.verdicts.entry(self.verdict).or_default() += 1;
        if let Some((service, backend)) = self.counted_for {
            let both = [
                counters.services.entry(service).or_default(),
                counters.backends.entry(backend).or_default(),
            ];
            for (packets, sum) in both {
                *packets += 1;
                *sum += bytes as u64;
            }
        }
        for event in &self.events {
            *counters.flows.entry(*event).or_default() += 1;
        }
    }
}

/// Where a packet goes.
struct Way {
    service: u32,
    owner: u32,
    /// Index of the second owner that is named; 0: none.
    second: u32,
    hash: u64,
}

/// What is sent: the packet on its way, or an answer to it.
enum Done {
    Sent(forward::Sent, Way),
    Answered(Verdict, Vec<u8>),
}

/// The data plane.
pub struct Model {
    services: Vec<Service>,
    servers: quic::Servers,
    backends: HashMap<u32, backend::Backend>,
    exits: BTreeMap<u32, [u8; 6]>,
    flows: HashMap<Flow, FlowEntry>,
    /// Addresses and prefixes of services, with the bits that count.
    addresses: Vec<(Address, u8)>,
    /// Those of them that answer pings.
    pingable: HashSet<(Address, u8)>,
    fragments: Fragments,
    silent: bool,
}

impl Model {
    /// A data plane with this in its maps.
    pub fn new(world: &World) -> Self {
        let backends = world.backends.iter();
        let mut model = Self {
            services: world.services.clone(),
            servers: quic::servers(&world.servers),
            backends: backends
                .map(|(index, entry)| (*index, entry.into()))
                .collect(),
            exits: world.exits.clone(),
            flows: HashMap::new(),
            addresses: world.addresses().iter().map(place).collect(),
            pingable: world.pingable.iter().map(place).collect(),
            fragments: HashMap::new(),
            silent: world.silent,
        };
        model.set_flows(&world.flows);
        model.set_fragments(&world.fragments);
        model
    }

    /// Says whether all answers have been given.
    pub fn set_silent(&mut self, silent: bool) {
        self.silent = silent;
    }

    /// What must become of a frame that comes in on [`INTERFACE`] at `now`, in seconds of CLOCK_MONOTONIC.
    pub fn packet(&mut self, frame: &[u8], now: u32) -> Expected {
        let mut events = Vec::new();
        let done = self.balance(frame, now, &mut events);
        let came = frame.to_vec();
        let (action, frame, counted_for) = match &done {
            Ok(Done::Sent(sent, way)) => {
                let action = if sent.across {
                    XdpAction::Redirect
                } else {
                    XdpAction::Tx
                };
                (action, &sent.frame, Some((way.service, way.owner)))
            }
            Ok(Done::Answered(_, answer)) => (XdpAction::Tx, answer, None),
            Err(verdict) if verdict.name().starts_with("pass_") => (XdpAction::Pass, &came, None),
            Err(_) => (XdpAction::Drop, &came, None),
        };
        Expected {
            verdict: match &done {
                Ok(Done::Sent(..)) => Verdict::Forwarded,
                Ok(Done::Answered(verdict, _)) => *verdict,
                Err(verdict) => *verdict,
            },
            action,
            frame: frame.clone(),
            counted_for,
            events,
        }
    }

    /// What is sent, or why nothing is.
    fn balance(
        &mut self,
        frame: &[u8],
        now: u32,
        events: &mut Vec<FlowEvent>,
    ) -> Result<Done, Verdict> {
        let ip = parse::ip(frame)?;
        let way = match ip.part {
            Part::Later => self.way_of_later(&ip, now)?,
            Part::First => match self.way(frame, &ip, now, events) {
                Err(verdict) => return Err(self.first_without_way(&ip, verdict, now)),
                Ok(way) => way,
            },
            Part::Whole => match self.way(frame, &ip, now, events) {
                Err(Verdict::PassNotTcpUdp) => return self.echo(frame, &ip),
                way => way?,
            },
        };
        let backend = self.backends.get(&way.owner);
        let backend = backend.ok_or(Verdict::DropBadState)?;
        let exit = match backend.interface {
            INTERFACE => None,
            other => Some(self.exits.get(&other)),
        };
        let second = self.backends.get(&way.second);
        let sent = match forward::send(frame, &ip, way.hash, (backend, second), exit) {
            Err(Verdict::DropTooBig) => return self.too_big(frame, &ip, backend),
            sent => sent?,
        };
        if ip.part == Part::First {
            self.record(&ip, &way, now);
        }
        Ok(Done::Sent(sent, way))
    }

    /// The way of a packet that has its ports, or quotes some.
    fn way(
        &mut self,
        frame: &[u8],
        ip: &Ip,
        now: u32,
        events: &mut Vec<FlowEvent>,
    ) -> Result<Way, Verdict> {
        let (flow, is_error) = flow(frame, ip)?;
        let service = self.service(&flow).ok_or(Verdict::PassNoService)?;
        let hash = flow.hash_by(service.flags, ip.four);
        let config = quic::Config::of(service.flags);
        if let Some(config) = config.filter(|_| !is_error) {
            match self.named(service.index, config, ip.payload(frame)) {
                Ok(owner) => {
                    events.push(FlowEvent::QuicRouted);
                    return Ok(Way {
                        service: service.index,
                        owner,
                        second: 0,
                        hash,
                    });
                }
                Err(why) => events.push(why),
            }
        }
        let number = (hash & 0xffff_ffff) % 65_537;
        let place = owner::Place {
            service: service.index,
            number: number as u32,
            slot: owner::Slot::of(
                service
                    .slots
                    .word(number as u32)
                    .ok_or(Verdict::DropBadState)?
                    .0,
            ),
        };
        let kind = if is_error {
            owner::Kind::Error
        } else {
            owner::Kind::of(frame, ip)
        };
        let (owner, counted) = self.owner(&flow, kind, &place, now);
        events.extend(counted);
        let (owner, second) = owner?;
        Ok(Way {
            service: service.index,
            owner,
            // Those behind a first fragment would not find the way.
            second: if ip.part == Part::Whole { second } else { 0 },
            hash,
        })
    }

    /// The most specific service: of more bits of the address, and of those with as many the one that names the port. But
    /// one of the whole address for any port comes before all prefixes, as it has more bits than they.
    fn service(&self, flow: &Flow) -> Option<Service> {
        let fits = |service: &&Service| {
            let port = u16::from_be(service.key.port);
            let (start, bits) = place(&service.key);
            service.key.protocol == flow.protocol
                && (port == 0 || port == flow.destination_port)
                && agree(&start, &flow.destination, bits)
        };
        let rank = |service: &&Service| (place(&service.key).1, service.key.port != 0);
        self.services.iter().filter(fits).max_by_key(rank).copied()
    }

    /// The most specific address or prefix of a service that an address is in.
    fn address(&self, address: &Address) -> Option<(Address, u8)> {
        let mut found = None;
        for (start, bits) in &self.addresses {
            let longer = found.is_none_or(|(_, longest)| *bits > longest);
            if longer && agree(start, address, *bits) {
                found = Some((*start, *bits));
            }
        }
        found
    }
}

/// Where a service is: an address, and how many bits of it count.
fn place(key: &ServiceKey) -> (Address, u8) {
    let bits = if key.prefix == 0 { 128 } else { key.prefix };
    (bytes::address(&key.address), bits)
}

/// Whether two addresses have the same first bits.
fn agree(a: &Address, b: &Address, bits: u8) -> bool {
    (0..usize::from(bits)).all(|bit| (a[bit / 8] ^ b[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}
