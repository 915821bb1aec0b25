//! Packets for services: verdict, every byte that leaves, every counter.

use anyhow::Result;
use lb_common::backend::Mode;
use lb_tests::{
    counters::Counters,
    fixture::{BACKEND, NEXT_HOP, SERVICE, backend, balancer, flow_hash, ip, key, v4, v6},
    packet::{Packet, Protocol, encapsulated},
    prog_run::{Balancer, XdpAction},
    require,
};

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
    // The outer flow label is the high 20 bits of the flow hash.
    let flow_label = (flow_hash(packet) >> 44) as u32;
    let expected = encapsulated(packet, ip(source), ip(address), NEXT_HOP, flow_label);
    assert_forwarded(&balancer, packet, &expected)
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
            assert_forwarded(&balancer, &packet, &packet.readdressed(NEXT_HOP))?;
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
    assert_forwarded(&balancer, &packet, &packet.readdressed(NEXT_HOP))
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
