//! Flows that come again and again, so that packets of one flow meet in the flow table.

use super::{batch::Start, world::BACKENDS};
use crate::world::World;
use fastrand::Rng;
use lb_common::{
    flow_table::{FlowEntry, FlowKey},
    fragment::{FragmentEntry, FragmentKey},
    header::Ports,
    service::ServiceKey,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

/// Flows of each service.
const FLOWS: usize = 8;
/// Entries in the flow table when a batch begins.
const KNOWN: usize = 48;
/// Identifications of datagrams: so few that fragments often find the first one of theirs.
const DATAGRAMS: u32 = 4;

/// A flow, as its client's packets have it; ports in host order.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    service: u32,
}

impl Flow {
    /// Whether it is one of IPv4.
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// What comes back.
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        }
    }

    /// The key of a datagram of the flow.
    fn fragment_key(&self, random: &mut Rng) -> FragmentKey {
        let id = datagram(random);
        let (id, protocol) = if self.is_v4() {
            (u32::from((id as u16).to_be()), self.protocol.into())
        } else {
            (id.to_be(), 0)
        };
        FragmentKey {
            source: self.source.into(),
            destination: self.destination.into(),
            id,
            protocol,
        }
    }

    fn key(&self) -> FlowKey {
        let ports = Ports {
            source: self.source_port.to_be(),
            destination: self.destination_port.to_be(),
        };
        let (source, destination) = (self.source.into(), self.destination.into());
        FlowKey::new(source, destination, ports, self.protocol)
    }
}

/// Flows to the services of a world, the same in every run.
pub struct Pool {
    flows: Vec<Flow>,
}

impl Pool {
    /// Some flows of each service.
    pub fn new(world: &World) -> Self {
        let mut random = Rng::with_seed(7);
        let mut flows = Vec::new();
        for service in &world.services {
            for _ in 0..FLOWS {
                let destination = inside(&mut random, &service.key);
                let port = match u16::from_be(service.key.port) {
                    0 => random.u16(..),
                    port => port,
                };
                flows.push(Flow {
                    source: address(&mut random, destination.is_ipv4()),
                    destination,
                    source_port: random.u16(..),
                    destination_port: port,
                    protocol: service.key.protocol,
                    service: service.index,
                });
            }
        }
        Self { flows }
    }

    /// One of the flows, or a variation on it that is a flow of its own or of no service.
    pub fn flow(&self, random: &mut Rng) -> Flow {
        let mut flow = self.flows[random.usize(..self.flows.len())];
        match random.u8(..64) {
            0..32 => {}
            32..54 => flow.source_port = random.u16(..),
            54..57 => flow.source = address(random, flow.is_v4()),
            57 => flow.source = no_host(random, flow.is_v4()),
            58 => flow.destination_port = random.u16(..),
            59 => flow.protocol = 6 + 17 - flow.protocol,
            60 if random.bool() => flow.destination = near(random, flow.destination),
            60 => flow.destination = address(random, flow.is_v4()),
            61 => (flow.source, flow.destination) = (flow.destination, flow.source),
            62 => flow.source = flow.destination,
            _ => mapped(&mut flow),
        }
        flow
    }

    /// What a batch begins with; `now` in seconds.
    pub fn start(&self, random: &mut Rng, now: u32) -> Start {
        Start {
            flows: self.known(random, now),
            fragments: self.fragments(random, now),
            silent: random.u8(..8) == 0,
        }
    }

    fn fragments(&self, random: &mut Rng, now: u32) -> BTreeMap<FragmentKey, FragmentEntry> {
        let mut known = BTreeMap::new();
        for _ in 0..KNOWN {
            let flow = self.flows[random.usize(..self.flows.len())];
            let backend = random.u32(0..=BACKENDS + 2);
            let entry = FragmentEntry {
                hash: random.u64(..),
                backend,
                generation: if random.u8(..8) == 0 { 1 } else { 40 + backend },
                service: flow.service,
                // Far from the end of the half minute: the clock goes on while a batch is sent.
                seen: now.saturating_sub([0, 5, 1_000][random.usize(..3)]),
            };
            known.insert(flow.fragment_key(random), entry);
        }
        known
    }

    fn known(&self, random: &mut Rng, now: u32) -> BTreeMap<FlowKey, FlowEntry> {
        let mut known = BTreeMap::new();
        for _ in 0..KNOWN {
            let flow = self.flows[random.usize(..self.flows.len())];
            let backend = random.u32(0..=BACKENDS + 2);
            let generation = if random.u8(..8) == 0 { 1 } else { 40 + backend };
            let service = flow.service + u32::from(random.u8(..8) == 0);
            // Far from the minute after which ports may be used again: the clock goes on while a batch is sent.
            let idle = [0, 5, 1_000][random.usize(..3)];
            let entry = FlowEntry {
                backend,
                generation,
                service,
                slot: random.u32(..65_537),
                seen: now.saturating_sub(idle),
                flags: u32::from(random.u8(..5) == 0) | guess(random) << 8,
            };
            known.insert(flow.key(), entry);
        }
        known
    }
}

/// Index of a second owner: often nobody, often one of those that can be named.
fn guess(random: &mut Rng) -> u32 {
    match random.u8(..4) {
        0 => 0,
        1 => random.u32(0..=BACKENDS + 2),
        _ => [4, 5, 10, 17][random.usize(..4)],
    }
}

/// An identification, which fits in 16 bits.
pub fn datagram(random: &mut Rng) -> u32 {
    0x1d01 + random.u32(..DATAGRAMS)
}

/// An address of a service.
fn inside(random: &mut Rng, key: &ServiceKey) -> IpAddr {
    let start = match IpAddr::from(key.address) {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    if key.prefix == 0 {
        return key.address.into();
    }
    let rest = u128::MAX.checked_shr(key.prefix.into()).unwrap_or(0);
    Ipv6Addr::from(start | random.u128(..) & rest).to_canonical()
}

fn address(random: &mut Rng, is_v4: bool) -> IpAddr {
    if is_v4 {
        random.u32(..).to_be_bytes().into()
    } else {
        random.u128(..).to_be_bytes().into()
    }
}

/// The address but for one bit.
fn near(random: &mut Rng, address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => (v4.to_bits() ^ 1 << random.u8(..32)).to_be_bytes().into(),
        IpAddr::V6(v6) => (v6.to_bits() ^ 1 << random.u8(..128)).to_be_bytes().into(),
    }
}

/// An address that no single host has.
fn no_host(random: &mut Rng, is_v4: bool) -> IpAddr {
    let nth = random.usize(..4);
    if is_v4 {
        [0, 0x7f00_0001, 0xe000_0001, u32::MAX][nth]
            .to_be_bytes()
            .into()
    } else {
        [0, 1, 0xff02 << 112 | 1, u128::MAX][nth]
            .to_be_bytes()
            .into()
    }
}

/// Over IPv6, to or from an address that stands for an IPv4 one.
fn mapped(flow: &mut Flow) {
    let v6 = |address: IpAddr| match address {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        v6 => v6,
    };
    (flow.source, flow.destination) = (v6(flow.source), v6(flow.destination));
}
