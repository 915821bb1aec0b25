//! Packets for services: verdict, every byte that leaves, every counter.

use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    flow::{FlowV4, FlowV6},
    header::Ports,
    service::ServiceKey,
};
use lb_tests::{
    counters::Counters,
    packet::{BALANCER_MAC, Packet, Protocol, encapsulated, ethernet},
    prog_run::{Balancer, INTERFACE, SEED, XdpAction},
    require,
};
use std::net::IpAddr;

const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const BACKEND: u32 = 7;
const SERVICE: u32 = 3;

fn backend(mode: Mode, source: &str, address: &str) -> BackendEntry {
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

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

fn key(packet: &Packet, port: u16) -> ServiceKey {
    ServiceKey::new(
        Address::from(packet.to.ip()),
        packet.protocol.number().0,
        port,
    )
}

/// A balancer with one service, the packet's, and one backend.
fn balancer(packet: &Packet, entry: &BackendEntry) -> Result<Balancer> {
    let mut balancer = Balancer::load()?;
    balancer.set_backend(BACKEND, entry)?;
    balancer.add_service(key(packet, packet.to.port()), SERVICE, |_| BACKEND)?;
    Ok(balancer)
}

/// The outer flow label that user space expects: the high bits of the flow hash.
fn flow_label(packet: &Packet) -> u32 {
    let (from, to) = (
        Address::from(packet.from.ip()),
        Address::from(packet.to.ip()),
    );
    let ports = Ports {
        source: packet.from.port().to_be(),
        destination: packet.to.port().to_be(),
    };
    let protocol = packet.protocol.number().0;
    let hash = match packet.from.is_ipv4() {
        true => FlowV4::new(from.v4_word(), to.v4_word(), ports, protocol).hash(SEED),
        false => FlowV6::new(from, to, ports, protocol).hash(SEED),
    };
    (hash >> 44) as u32
}

fn v4(protocol: Protocol) -> Packet {
    Packet::new(protocol, "198.51.100.9:40000", "203.0.113.1:443", 100)
}

fn v6(protocol: Protocol) -> Packet {
    Packet::new(
        protocol,
        "[2001:db8:c::9]:40000",
        "[2001:db8:f::1]:443",
        100,
    )
}

/// Runs `packet` and demands exactly `expected`, and exactly the counters of one forwarded packet.
fn assert_forwarded(balancer: &Balancer, packet: &Packet, expected: &[u8]) -> Result<()> {
    let frame = packet.frame();
    let (outcome, counters) = balancer.run_counted(&frame)?;
    assert_eq!(outcome.action, XdpAction::Tx, "{packet:?}");
    assert_eq!(outcome.frame, expected, "{packet:?}");
    assert_eq!(
        counters,
        Counters::of_forwarded(SERVICE, BACKEND, frame.len()),
        "{packet:?}"
    );
    Ok(())
}

fn assert_encapsulated(packet: &Packet, source: &str, address: &str) -> Result<()> {
    let balancer = balancer(packet, &backend(Mode::Ipip, source, address))?;
    let expected = encapsulated(
        packet,
        ip(source),
        ip(address),
        NEXT_HOP,
        flow_label(packet),
    );
    assert_forwarded(&balancer, packet, &expected)
}

/// What `packet` should look like when it is sent on at layer 2.
fn readdressed(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..14].copy_from_slice(&ethernet(BALANCER_MAC, NEXT_HOP, packet.from.is_ipv4()));
    frame
}

#[test]
fn ipip_in_all_four_pairs_of_families() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for protocol in Protocol::ALL {
        for packet in [v4(protocol), v6(protocol)] {
            assert_encapsulated(&packet, "10.0.0.2", "10.0.1.7")?;
            assert_encapsulated(&packet, "fd00::2", "fd00:1::7")?;
        }
    }
    Ok(())
}

#[test]
fn l2_changes_the_addresses_of_the_frame_and_nothing_else() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for protocol in Protocol::ALL {
        for packet in [v4(protocol), v6(protocol)] {
            let balancer = balancer(&packet, &backend(Mode::L2, "0.0.0.0", "10.0.1.7"))?;
            assert_forwarded(&balancer, &packet, &readdressed(&packet))?;
        }
    }
    Ok(())
}

#[test]
fn dscp_and_ecn_are_copied_to_the_outer_header() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for traffic_class in [0x01, 0x03, 0xb8, 0xbb, 0xff] {
        for packet in [v4(Protocol::Tcp), v6(Protocol::Tcp)] {
            let packet = Packet {
                traffic_class,
                ..packet
            };
            assert_encapsulated(&packet, "10.0.0.2", "10.0.1.7")?;
            assert_encapsulated(&packet, "fd00::2", "fd00:1::7")?;
        }
    }
    Ok(())
}

#[test]
fn a_packet_that_may_be_fragmented_keeps_its_identification() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for id in [0, 1, 0xffff] {
        let packet = Packet {
            dont_fragment: false,
            id,
            ..v4(Protocol::Udp)
        };
        assert_encapsulated(&packet, "10.0.0.2", "10.0.1.7")?;
    }
    Ok(())
}

/// Odd sizes, tiny frames with Ethernet padding, IPv4 options of every length: the outer length counts the IP
/// packet alone, and what follows it stays where it is.
#[test]
fn sizes_padding_and_options() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let entry = backend(Mode::Ipip, "10.0.0.2", "10.0.1.7");
    let balancer = balancer(&v4(Protocol::Udp), &entry)?;
    for (words, payload, padding) in
        (0..=10).flat_map(|w| [(w, 0, 18), (w, 1, 17), (w, 333, 0), (w, 1_001, 3)])
    {
        // Option 1 is "no operation" (RFC 791).
        let options = vec![1; words * 4];
        let packet = Packet {
            options,
            padding,
            ..v4(Protocol::Udp)
        };
        let packet = Packet {
            payload: vec![0x5a; payload],
            ..packet
        };
        let expected = encapsulated(&packet, ip("10.0.0.2"), ip("10.0.1.7"), NEXT_HOP, 0);
        assert_forwarded(&balancer, &packet, &expected)?;
    }
    Ok(())
}

#[test]
fn the_largest_packet_that_fits_is_forwarded() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    // UDP over IPv4: 28 bytes of headers; an outer IPv4 header: 20.
    let packet = Packet {
        payload: vec![0; 1_500 - 28 - 20],
        ..v4(Protocol::Udp)
    };
    assert_encapsulated(&packet, "10.0.0.2", "10.0.1.7")?;
    let packet = Packet {
        payload: vec![0; 1_500 - 28],
        ..v4(Protocol::Udp)
    };
    let balancer = balancer(&packet, &backend(Mode::L2, "0.0.0.0", "10.0.1.7"))?;
    assert_forwarded(&balancer, &packet, &readdressed(&packet))
}

#[test]
fn a_service_for_any_port_takes_what_no_exact_port_takes() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [v4(Protocol::Tcp), v6(Protocol::Udp)] {
        let mut balancer = balancer(&packet, &backend(Mode::Ipip, "10.0.0.2", "10.0.1.7"))?;
        balancer.set_backend(8, &backend(Mode::Ipip, "10.0.0.2", "10.0.1.8"))?;
        balancer.add_service(key(&packet, 0), SERVICE + 1, |_| 8)?;
        for (port, service, backend, address) in [
            (443, SERVICE, BACKEND, "10.0.1.7"),
            (80, SERVICE + 1, 8, "10.0.1.8"),
            (0, SERVICE + 1, 8, "10.0.1.8"),
            (65_535, SERVICE + 1, 8, "10.0.1.8"),
        ] {
            let mut packet = packet.clone();
            packet.to.set_port(port);
            let frame = packet.frame();
            let (outcome, counters) = balancer.run_counted(&frame)?;
            assert_eq!(
                outcome.frame,
                encapsulated(&packet, ip("10.0.0.2"), ip(address), NEXT_HOP, 0)
            );
            assert_eq!(
                counters,
                Counters::of_forwarded(service, backend, frame.len()),
                "port {port}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_verifier_accepts_the_program_with_room_to_spare() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let instructions = Balancer::load()?.verified_instructions()?;
    println!("instructions verified: {instructions:?}");
    // The kernel's limit is a million; a tenth leaves room for older verifiers, which prune less.
    assert!(instructions.is_none_or(|count| count < 100_000));
    Ok(())
}
