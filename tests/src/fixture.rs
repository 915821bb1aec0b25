//! The balancer that most program tests want: one service, one backend, and the packets that go there.

use crate::{
    counters::Counters,
    packet::{Packet, Protocol, encapsulated},
    prog_run::{Balancer, INTERFACE, SEED, XdpAction},
};
use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    flow::{Client, FlowV4, FlowV6, slot_of, with_slot_of},
    flow_table::FlowKey,
    header::Ports,
    service::{ServiceEntry, ServiceKey},
    verdict::{Action, Verdict},
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

/// Runs `packet` and demands exactly `expected`, and exactly the counters of one packet forwarded to [`BACKEND`].
#[track_caller]
pub fn assert_forwarded(balancer: &Balancer, packet: &Packet, expected: &[u8]) {
    let frame = packet.frame();
    let (outcome, counters) = balancer.run_counted(&frame).expect("it runs");
    assert_eq!(outcome.action, XdpAction::Tx, "{counters:?}: {packet:?}");
    assert_eq!(outcome.frame, expected, "{packet:?}");
    let expected = Counters::of_forwarded(SERVICE, BACKEND, frame.len());
    assert_eq!(counters, expected, "{packet:?}");
}

/// Demands that `packet` is forwarded right by a backend in mode `l2` and by tunnels of both families; an outer IPv6
/// header has the high 20 bits of `hash` as its flow label.
#[track_caller]
pub fn assert_forwarded_in_all_modes(service: &Packet, packet: &Packet, hash: u64) {
    let load = |entry| balancer(service, &entry).expect("it loads");
    let l2 = load(backend(Mode::L2, "0.0.0.0", "10.0.1.7"));
    assert_forwarded(&l2, packet, &packet.readdressed(NEXT_HOP));
    for (source, address) in [("10.0.0.2", "10.0.1.7"), ("fd00::2", "fd00:1::7")] {
        let tunnel = load(backend(Mode::Ipip, source, address));
        let label = (hash >> 44) as u32;
        let expected = encapsulated(packet, ip(source), ip(address), NEXT_HOP, label);
        assert_forwarded(&tunnel, packet, &expected);
    }
}

/// Demands that a frame is sent back as `expected` under a verdict that answers, and that nothing else is counted.
#[track_caller]
pub fn assert_answered(
    balancer: &Balancer,
    what: &str,
    frame: &[u8],
    expected: &[u8],
    verdict: Verdict,
) {
    let (outcome, counters) = balancer.run_counted(frame).expect("it runs");
    assert_eq!(counters, Counters::of_verdict(verdict), "{what}");
    assert_eq!(outcome.action, XdpAction::Tx, "{what}: {verdict:?}");
    assert_eq!(outcome.frame, expected, "{what}");
}

/// Demands that the sender of a frame is told that it is too large. What it is told: fixtures `too-big`.
#[track_caller]
pub fn assert_too_big(balancer: &Balancer, what: &str, frame: &[u8]) {
    let (outcome, counters) = balancer.run_counted(frame).expect("it runs");
    let expected = Counters::of_verdict(Verdict::AnsweredTooBig);
    assert_eq!(counters, expected, "{what}");
    assert_eq!(outcome.action, XdpAction::Tx, "{what}");
    assert_eq!(outcome.frame[..6], frame[6..12], "{what}: to another");
}

/// Demands that a frame is passed or dropped unaltered under this verdict, and that nothing else is counted.
#[track_caller]
pub fn assert_refused(balancer: &Balancer, what: &str, frame: &[u8], verdict: Verdict) {
    let action = match verdict.action() {
        Action::Pass => XdpAction::Pass,
        Action::Drop => XdpAction::Drop,
        Action::Forward | Action::Answer => panic!("{verdict:?} refuses nothing"),
    };
    let (outcome, counters) = balancer.run_counted(frame).expect("it runs");
    assert_eq!(counters, Counters::of_verdict(verdict), "{what}");
    assert_eq!(outcome.action, action, "{what}: {verdict:?}");
    assert_eq!(outcome.frame, frame, "{what}: altered");
}

/// The flow hash of a packet, computed in user space.
pub fn flow_hash(packet: &Packet) -> u64 {
    flow_hash_by(0, packet)
}

/// The flow hash of a packet for a service with these flags.
pub fn flow_hash_by(flags: u32, packet: &Packet) -> u64 {
    let (from, to) = (
        Address::from(packet.from.ip()),
        Address::from(packet.to.ip()),
    );
    let (ports, protocol) = (ports(packet), packet.protocol.number().0);
    let hash = if packet.from.is_ipv4() {
        FlowV4::new(from.v4_word(), to.v4_word(), ports, protocol).hash(SEED)
    } else {
        FlowV6::new(from, to, ports, protocol).hash(SEED)
    };
    if flags & ServiceEntry::HASH == 0 {
        return hash;
    }
    with_slot_of(hash, Client::of(from, ports.source, flags).hash(SEED))
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
