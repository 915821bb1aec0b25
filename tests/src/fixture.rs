//! The balancer that most program tests want: one service, one backend, and the packets that go there.

use crate::{
    packet::{Packet, Protocol},
    prog_run::{Balancer, INTERFACE, SEED},
};
use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    flow::{FlowV4, FlowV6, slot_of},
    flow_table::FlowKey,
    header::Ports,
    service::ServiceKey,
};
use std::net::IpAddr;

/// MAC of the way to the backend.
pub const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// Index of the backend.
pub const BACKEND: u32 = 7;
/// Index of the service.
pub const SERVICE: u32 = 3;

/// An address from a literal.
///
/// # Panics
/// If it is none.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// A packet from a client to the service, over IPv4.
pub fn v4(protocol: Protocol) -> Packet {
    Packet::new(protocol, "198.51.100.9:40000", "203.0.113.1:443", 100)
}

/// A packet from a client to the service, over IPv6.
pub fn v6(protocol: Protocol) -> Packet {
    Packet::new(
        protocol,
        "[2001:db8:c::9]:40000",
        "[2001:db8:f::1]:443",
        100,
    )
}

/// A backend that can be sent to, with an MTU of 1500.
pub fn backend(mode: Mode, source: &str, address: &str) -> BackendEntry {
    BackendEntry {
        next_hop: NextHop::new(NEXT_HOP),
        address: Address::from(ip(address)),
        outer_source: Address::from(ip(source)),
        interface: INTERFACE,
        mtu: 1_500,
        mode: mode as u8,
        ..BackendEntry::default()
    }
}

/// A backend reached through IPv4 in mode `ipip`.
pub fn tunnel() -> BackendEntry {
    backend(Mode::Ipip, "10.0.0.2", "10.0.1.7")
}

/// The key of the packet's service on `port` (host order).
pub fn key(packet: &Packet, port: u16) -> ServiceKey {
    ServiceKey::new(
        Address::from(packet.to.ip()),
        packet.protocol.number().0,
        port,
    )
}

/// A balancer with one service, the packet's, and one backend that owns every slot.
pub fn balancer(packet: &Packet, entry: &BackendEntry) -> Result<Balancer> {
    let mut balancer = Balancer::load()?;
    balancer.set_backend(BACKEND, entry)?;
    balancer.add_service(key(packet, packet.to.port()), SERVICE, |_| BACKEND)?;
    Ok(balancer)
}

/// The flow hash of a packet, computed in user space.
pub fn flow_hash(packet: &Packet) -> u64 {
    let (from, to) = (
        Address::from(packet.from.ip()),
        Address::from(packet.to.ip()),
    );
    let (ports, protocol) = (ports(packet), packet.protocol.number().0);
    if packet.from.is_ipv4() {
        FlowV4::new(from.v4_word(), to.v4_word(), ports, protocol).hash(SEED)
    } else {
        FlowV6::new(from, to, ports, protocol).hash(SEED)
    }
}

/// The number of a packet's slot.
pub fn slot_number(packet: &Packet) -> u32 {
    slot_of(flow_hash(packet))
}

/// The key under which a packet's flow is in the flow table.
pub fn flow_key(packet: &Packet) -> FlowKey {
    FlowKey::new(
        Address::from(packet.from.ip()),
        Address::from(packet.to.ip()),
        ports(packet),
        packet.protocol.number().0,
    )
}

fn ports(packet: &Packet) -> Ports {
    Ports {
        source: packet.from.port().to_be(),
        destination: packet.to.port().to_be(),
    }
}
