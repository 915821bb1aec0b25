//! Mode `gue`: verdict, every byte, every counter; what an independent decoder makes of it; and the way back.

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, SlicedPacket, TransportSlice, UdpHeader};
use lb_common::{
    backend::{BackendEntry, Mode},
    verdict::Verdict,
};
use lb_tests::{
    fixture::{
        NEXT_HOP, assert_forwarded, assert_refused, assert_too_big, backend, balancer, flow_hash,
        ip, v4, v6,
    },
    packet::{
        BALANCER_MAC, ETHERNET, Packet, Protocol, SERVICE_VLAN, VLAN, encapsulated, ethernet,
    },
    prog_run::{Decapsulator, XdpAction},
    require,
};
use std::collections::BTreeSet;

const PORT: u16 = 6_080;
/// The tunnels' ends: (outer source, outer destination) of each family, the bytes put before a packet, and those reserved
/// for the name of a second owner.
const TUNNELS: [(&str, &str, usize, usize); 2] = [
    ("10.0.0.2", "10.0.1.7", 32, 8),
    ("fd00::2", "fd00:1::7", 52, 20),
];

fn tunnel(source: &str, address: &str, port: u16) -> BackendEntry {
    BackendEntry {
        port: port.to_be(),
        ..backend(Mode::Gue, source, address)
    }
}

fn packets() -> impl Iterator<Item = Packet> {
    Protocol::ALL
        .into_iter()
        .flat_map(|protocol| [v4(protocol), v6(protocol)])
}

/// What `packet` should look like: as in IP in IP, but with UDP as the protocol of the outer header and twelve more bytes.
fn expected(packet: &Packet, source: &str, address: &str, port: u16) -> Result<Vec<u8>> {
    const HEADERS: u16 = 8 + 4;
    let hash = flow_hash(packet);
    let label = (hash >> 44) as u32;
    let frame = encapsulated(packet, ip(source), ip(address), NEXT_HOP, label);
    let (link, packet_in_ip) = frame.split_at(packet.l3_offset());
    let mut out = link.to_vec();
    let (inner, length, protocol) = if ip(source).is_ipv4() {
        let (mut header, inner) = Ipv4Header::from_slice(packet_in_ip)?;
        let (length, protocol) = (header.total_len - 20, header.protocol);
        header.total_len += HEADERS;
        header.protocol = IpNumber::UDP;
        header.header_checksum = header.calc_header_checksum();
        out.extend_from_slice(&header.to_bytes());
        (inner, length, protocol)
    } else {
        let (mut header, inner) = Ipv6Header::from_slice(packet_in_ip)?;
        let (length, protocol) = (header.payload_length, header.next_header);
        header.payload_length += HEADERS;
        header.next_header = IpNumber::UDP;
        out.extend_from_slice(&header.to_bytes());
        (inner, length, protocol)
    };
    let udp = UdpHeader {
        source_port: 0xc000 | ((hash >> 32) as u16 & 0x3fff),
        destination_port: port,
        length: HEADERS + length,
        checksum: 0,
    };
    out.extend_from_slice(&udp.to_bytes());
    out.extend_from_slice(&[0, protocol.0, 0, 0]);
    out.extend_from_slice(inner);
    Ok(out)
}

fn assert_encapsulated(packet: &Packet, source: &str, address: &str) -> Result<()> {
    let balancer = balancer(packet, &tunnel(source, address, PORT))?;
    assert_forwarded(&balancer, packet, &expected(packet, source, address, PORT)?);
    Ok(())
}

#[test]
fn all_four_pairs_of_families_byte_for_byte() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let tagged = |tags: &[(u16, u16)]| Packet {
            tags: tags.to_vec(),
            ..packet.clone()
        };
        let one = tagged(&[(VLAN, 0x2042)]);
        let two = tagged(&[(SERVICE_VLAN, 7), (VLAN, 8)]);
        for packet in [packet.clone(), one, two] {
            for (source, address, ..) in TUNNELS {
                assert_encapsulated(&packet, source, address)?;
            }
        }
    }
    Ok(())
}

#[test]
fn dscp_ecn_and_the_rules_of_fragmentation_are_the_inner_packets() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        for (traffic_class, dont_fragment, id) in
            [(0xb9, true, 5), (0x03, false, 0), (0xff, false, 0xffff)]
        {
            let packet = Packet {
                traffic_class,
                dont_fragment,
                id,
                ..packet.clone()
            };
            for (source, address, ..) in TUNNELS {
                assert_encapsulated(&packet, source, address)?;
            }
        }
    }
    Ok(())
}

#[test]
fn odd_sizes_padding_and_options() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (payload, padding, words) in [(0, 18, 0), (1, 17, 10), (333, 0, 3), (1_001, 3, 1)] {
        let packet = Packet {
            payload: vec![0x5a; payload],
            options: vec![1; 4 * words],
            padding,
            ..v4(Protocol::Udp)
        };
        for (source, address, ..) in TUNNELS {
            assert_encapsulated(&packet, source, address)?;
        }
    }
    Ok(())
}

/// The whole stack of headers, as a decoder that knows nothing of the program reads it.
#[test]
fn an_independent_decoder_finds_the_packet() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        for (source, address, overhead, _) in TUNNELS {
            let balancer = balancer(&packet, &tunnel(source, address, 7_777))?;
            let outcome = balancer.run(&packet.frame())?;
            assert_eq!(outcome.action, XdpAction::Tx);
            let sliced = SlicedPacket::from_ethernet(&outcome.frame)?;
            let Some(TransportSlice::Udp(udp)) = sliced.transport else {
                anyhow::bail!("no UDP: {sliced:?}")
            };
            assert_eq!((udp.destination_port(), udp.checksum()), (7_777, 0));
            assert!(udp.source_port() >= 49_152, "{}", udp.source_port());
            let inner = packet.frame().split_off(ETHERNET);
            assert_eq!(usize::from(udp.length()), 12 + inner.len());
            let (gue, carried) = udp.payload().split_at_checked(4).context("no GUE header")?;
            let is_v4 = packet.from.is_ipv4();
            assert_eq!(gue, [0, if is_v4 { 4 } else { 41 }, 0, 0]);
            assert_eq!(carried, inner);
            assert_eq!(outcome.frame.len(), packet.frame().len() + overhead);
        }
    }
    Ok(())
}

#[test]
fn flows_spread_over_source_ports_and_each_keeps_its_own() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Udp);
    let balancer = balancer(&packet, &tunnel("10.0.0.2", "10.0.1.7", PORT))?;
    let source_port = |port: u16| -> Result<u16> {
        let mut packet = packet.clone();
        packet.from.set_port(port);
        let frame = balancer.run(&packet.frame())?.frame;
        Ok(u16::from_be_bytes([
            frame[ETHERNET + 20],
            frame[ETHERNET + 21],
        ]))
    };
    let ports = (1_000..2_000)
        .map(source_port)
        .collect::<Result<BTreeSet<_>>>()?;
    // Of 1,000 random choices among 16,384 some 970 differ.
    ensure!(ports.len() > 900, "{} source ports", ports.len());
    assert_eq!(source_port(1_000)?, source_port(1_000)?);
    Ok(())
}

#[test]
fn the_largest_packet_that_fits_and_one_byte_more() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (packet, headers) in [(v4(Protocol::Udp), 28), (v6(Protocol::Udp), 48)] {
        for (source, address, overhead, reserved) in TUNNELS {
            let of = |payload| Packet {
                payload: vec![0; payload],
                ..packet.clone()
            };
            let most = 1_500 - headers - overhead - reserved;
            assert_encapsulated(&of(most), source, address)?;
            let balancer = balancer(&packet, &tunnel(source, address, PORT))?;
            let frame = of(most + 1).frame();
            assert_too_big(&balancer, "one byte more", &frame);
        }
    }
    Ok(())
}

/// Ends of two families are a defect of the maps.
#[test]
fn a_tunnel_between_two_families_is_refused() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Tcp);
    for (source, address) in [("10.0.0.2", "fd00:1::7"), ("fd00::2", "10.0.1.7")] {
        let balancer = balancer(&packet, &tunnel(source, address, PORT))?;
        assert_refused(&balancer, source, &packet.frame(), Verdict::DropBadState);
    }
    Ok(())
}

#[test]
fn decapsulation_undoes_it() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    for packet in packets() {
        for (source, address, ..) in TUNNELS {
            let tunnelled =
                balancer(&packet, &tunnel(source, address, PORT))?.run(&packet.frame())?;
            let outcome = decapsulator.run(&tunnelled.frame)?;
            let mut expected = packet.frame();
            let is_v4 = packet.from.is_ipv4();
            expected[..ETHERNET].copy_from_slice(&ethernet(BALANCER_MAC, NEXT_HOP, is_v4));
            assert_eq!(outcome.action, XdpAction::Pass);
            assert_eq!(outcome.frame, expected, "{packet:?} through {source}");
        }
    }
    Ok(())
}

/// Another port, another version, a control message, optional fields, flags, another protocol; and cut at every byte.
#[test]
fn what_is_not_plain_gue_passes_the_decapsulator_untouched() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    for (source, address, overhead, _) in TUNNELS {
        let whole = expected(&v4(Protocol::Tcp), source, address, PORT)?;
        let gue = ETHERNET + overhead - 4;
        let mut frames: Vec<Vec<u8>> = [
            (gue - 5, 0xff),
            (gue, 0x40),
            (gue, 0x20),
            (gue, 0x01),
            (gue + 1, 6),
            (gue + 2, 0x80),
            (gue + 3, 1),
        ]
        .into_iter()
        .map(|(offset, value)| {
            let mut frame = whole.clone();
            frame[offset] = value;
            frame
        })
        .collect();
        frames.extend((ETHERNET..ETHERNET + overhead).map(|length| whole[..length].to_vec()));
        for frame in frames {
            let outcome = decapsulator.run(&frame)?;
            assert_eq!(outcome.action, XdpAction::Pass);
            assert_eq!(outcome.frame, frame, "altered");
        }
    }
    Ok(())
}
