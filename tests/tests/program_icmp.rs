//! ICMP errors about what backends have sent go to the backend of the flow that they quote; all other ICMP passes.

use anyhow::Result;
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowEvent},
    slot::Slot,
    verdict::Verdict,
};
use lb_tests::{
    counters::Counters,
    fixture::{
        BACKEND, NEXT_HOP, SERVICE, assert_forwarded, assert_forwarded_in_all_modes,
        assert_refused, balancer, flow_hash, flow_key, ip, key, tunnel, v4, v6,
    },
    packet::{ETHERNET, Packet, Protocol, VLAN, encapsulated},
    prog_run::{Balancer, XdpAction},
    require,
};
use std::net::SocketAddr;

/// Types of the errors that quote a packet, by family.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
const ERRORS_V6: [u8; 4] = [1, 2, 3, 4];

/// A client's packets, over both families and protocols.
fn packets() -> impl Iterator<Item = Packet> {
    Protocol::ALL
        .into_iter()
        .flat_map(|protocol| [v4(protocol), v6(protocol)])
}

fn errors(packet: &Packet) -> &'static [u8] {
    if packet.from.is_ipv4() {
        &ERRORS_V4
    } else {
        &ERRORS_V6
    }
}

/// An error type of the packet's family.
fn unreachable(packet: &Packet) -> u8 {
    errors(packet)[0]
}

/// What a backend answers to a client's packet.
fn reply(packet: &Packet) -> Packet {
    Packet {
        from: packet.to,
        to: packet.from,
        ..packet.clone()
    }
}

/// An ICMP message of this type from a router on the way to the client, about what a backend `sent`, of which it quotes
/// the IP header and so many bytes more.
fn about(sent: &Packet, kind: u8, l4_bytes: usize) -> Packet {
    let header = if sent.from.is_ipv4() {
        20 + sent.options.len()
    } else {
        40
    };
    let quote = &sent.frame()[sent.l3_offset()..][..header + l4_bytes];
    let router = if sent.from.is_ipv4() {
        ip("192.0.2.254")
    } else {
        ip("2001:db8:e::1")
    };
    let mut message = vec![kind, 4, 0xbe, 0xef, 0, 0, 0x05, 0x14];
    message.extend_from_slice(quote);
    Packet {
        from: SocketAddr::new(router, 0),
        to: sent.from,
        icmp: Some(message),
        dont_fragment: false,
        ..Packet::new(Protocol::Tcp, "0.0.0.0:0", "0.0.0.0:0", 0)
    }
}

/// An error about the reply to a client's packet that quotes 8 bytes of its L4 header.
fn error(packet: &Packet) -> Packet {
    about(&reply(packet), unreachable(packet), 8)
}

#[test]
fn an_error_goes_to_the_backend_of_the_flow_that_it_quotes() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        for kind in errors(&packet) {
            for l4_bytes in [4, 8, 100] {
                let error = about(&reply(&packet), *kind, l4_bytes);
                assert_forwarded_in_all_modes(&packet, &error, flow_hash(&packet));
            }
        }
    }
    Ok(())
}

#[test]
fn options_tags_extension_headers_and_padding() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for words in 0..=10 {
        let packet = v4(Protocol::Tcp);
        let sent = Packet {
            options: vec![1; words * 4],
            traffic_class: 0xb8,
            ..reply(&packet)
        };
        let error = Packet {
            options: vec![1; (10 - words) * 4],
            tags: vec![(VLAN, 9); words % 3],
            traffic_class: 0xc0,
            padding: words,
            ..about(&sent, 3, 8)
        };
        let expected = encapsulated(&error, ip("10.0.0.2"), ip("10.0.1.7"), NEXT_HOP, 0);
        assert_forwarded(&balancer(&packet, &tunnel())?, &error, &expected);
    }
    for tags in 0..=2 {
        let packet = v6(Protocol::Udp);
        let error = Packet {
            extensions: vec![(60, vec![0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
            tags: vec![(VLAN, 9); tags],
            ..error(&packet)
        };
        assert_forwarded_in_all_modes(&packet, &error, flow_hash(&packet));
    }
    Ok(())
}

/// Many flows of slots with many owners, exact and any ports: the error goes where the flow's own packets go.
#[test]
fn errors_follow_the_packets_of_their_flows() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let address = |index: u32| ip(&format!("10.1.0.{index}"));
    let mut balancer = Balancer::load()?;
    for index in 1..=97 {
        let entry = BackendEntry {
            address: address(index).into(),
            ..tunnel()
        };
        balancer.set_backend(index, &entry)?;
    }
    for (index, packet) in packets().enumerate() {
        let port = if index % 2 == 0 { 443 } else { 0 };
        balancer.add_service(key(&packet, port), index as u32, |slot| {
            1 + slot.wrapping_mul(31) % 97
        })?;
    }
    for round in 0..500 {
        for (index, mut packet) in packets().enumerate() {
            packet.from.set_port(random.u16(..));
            if index % 2 != 0 {
                packet.to.set_port(random.u16(..));
            }
            let (_, counters) = balancer.run_counted(&packet.frame())?;
            let error = error(&packet);
            let (outcome, of_error) = balancer.run_counted(&error.frame())?;
            let owner = *counters.backends.keys().next().expect("it was forwarded");
            let expected = encapsulated(&error, ip("10.0.0.2"), address(owner), NEXT_HOP, 0);
            assert_eq!(outcome.frame, expected, "seed {seed}, round {round}");
            let bytes = error.frame().len();
            let expected = Counters::of_forwarded(index as u32, owner, bytes);
            assert_eq!(of_error, expected, "seed {seed}, round {round}");
        }
    }
    Ok(())
}

#[test]
fn errors_about_no_service_pass() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let elsewhere = |to: &str| -> Packet {
        let to = to.parse().expect("an address");
        Packet {
            to,
            ..v4(Protocol::Tcp)
        }
    };
    let balancer = balancer(&v4(Protocol::Tcp), &tunnel())?;
    for (what, packet) in [
        ("another port", elsewhere("203.0.113.1:444")),
        ("another address", elsewhere("203.0.113.2:443")),
        ("another protocol", v4(Protocol::Udp)),
        ("another family", v6(Protocol::Tcp)),
        // Its quote is the client's packet, which no backend has sent.
        ("the client's own packet", reply(&v4(Protocol::Tcp))),
    ] {
        let frame = error(&packet).frame();
        assert_refused(&balancer, what, &frame, Verdict::PassNoService);
    }
    // Nor does a quote make an address a VIP.
    let stray = Packet {
        to: "203.0.113.2:0".parse()?,
        ..error(&v4(Protocol::Tcp))
    };
    assert_refused(&balancer, "stray", &stray.frame(), Verdict::PassNoService);
    let mapped = Packet::new(
        Protocol::Tcp,
        "[2001:db8:c::9]:40000",
        "[::ffff:203.0.113.1]:443",
        9,
    );
    let frame = error(&mapped).frame();
    assert_refused(&balancer, "mapped", &frame, Verdict::PassNoService);
    Ok(())
}

#[test]
fn icmp_that_is_no_error_passes() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [v4(Protocol::Tcp), v6(Protocol::Tcp)] {
        let balancer = balancer(&packet, &tunnel())?;
        for kind in (0..=255).filter(|kind| !errors(&packet).contains(kind)) {
            let frame = about(&reply(&packet), kind, 8).frame();
            let what = format!("type {kind}");
            assert_refused(&balancer, &what, &frame, Verdict::PassNotTcpUdp);
        }
    }
    Ok(())
}

/// The error for a packet, with one byte of the quote changed.
fn with_quoted_byte(packet: &Packet, offset: usize, value: u8) -> Vec<u8> {
    let mut error = error(packet);
    if let Some(message) = &mut error.icmp {
        message[8 + offset] = value;
    }
    error.frame()
}

#[test]
fn quotes_that_name_no_flow_pass() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let (packet, packet6) = (v4(Protocol::Tcp), v6(Protocol::Tcp));
    let (four, six) = (
        balancer(&packet, &tunnel())?,
        balancer(&packet6, &tunnel())?,
    );
    for protocol in (0..=255).filter(|protocol| ![6, 17].contains(protocol)) {
        let what = format!("protocol {protocol}");
        let frame = with_quoted_byte(&packet, 9, protocol);
        assert_refused(&four, &what, &frame, Verdict::PassNotTcpUdp);
        let frame = with_quoted_byte(&packet6, 6, protocol);
        assert_refused(&six, &what, &frame, Verdict::PassNotTcpUdp);
    }
    for value in [0x00, 0x44, 0x40, 0x55, 0x65, 0xf5] {
        let frame = with_quoted_byte(&packet, 0, value);
        assert_refused(&four, "version, IHL", &frame, Verdict::PassMalformed);
    }
    for value in [0x00, 0x45, 0x50, 0x70, 0xf0] {
        let frame = with_quoted_byte(&packet6, 0, value);
        assert_refused(&six, "version", &frame, Verdict::PassMalformed);
    }
    for later in [0x01, 0xff] {
        let frame = with_quoted_byte(&packet, 7, later);
        assert_refused(&four, "a later fragment", &frame, Verdict::PassFragment);
    }
    // A first fragment has the ports.
    let first = Packet {
        dont_fragment: false,
        more_fragments: true,
        ..reply(&packet)
    };
    assert_forwarded_in_all_modes(&packet, &about(&first, 11, 8), flow_hash(&packet));
    Ok(())
}

#[test]
fn fragments_of_icmp_pass() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Tcp);
    let mut any_port = Balancer::load()?;
    any_port.add_service(key(&packet, 0), SERVICE, |_| BACKEND)?;
    for (more_fragments, fragment_offset) in [(true, 0), (true, 3), (false, 3)] {
        let fragment = Packet {
            more_fragments,
            fragment_offset,
            ..error(&packet)
        };
        let frame = fragment.frame();
        assert_refused(&any_port, "v4", &frame, Verdict::PassNotTcpUdp);
    }
    let packet = v6(Protocol::Tcp);
    let six = balancer(&packet, &tunnel())?;
    for flags in [1, 8, 9] {
        let fragment = Packet {
            extensions: vec![(44, vec![0, 0, 0, flags, 0, 0, 0, 7])],
            ..error(&packet)
        };
        assert_refused(&six, "v6", &fragment.frame(), Verdict::PassNotTcpUdp);
    }
    Ok(())
}

/// The message ends anywhere before the end of the quoted ports, with and without bytes behind it.
#[test]
fn errors_cut_off_at_every_byte() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [
        v4(Protocol::Tcp),
        v6(Protocol::Udp),
        Packet {
            options: vec![1; 24],
            ..v4(Protocol::Tcp)
        },
    ] {
        let balancer = balancer(&packet, &tunnel())?;
        let whole = error(&packet);
        let message = whole.icmp.clone().expect("an error");
        // 8 bytes of L4 are quoted, 4 of them are needed.
        for length in 0..message.len() - 4 {
            for padding in [0, 60] {
                let cut = Packet {
                    icmp: Some(message[..length].to_vec()),
                    padding,
                    ..whole.clone()
                };
                let what = format!("{length} of {} bytes", message.len());
                assert_refused(&balancer, &what, &cut.frame(), Verdict::PassTruncated);
            }
        }
        let frame = whole.frame();
        let ip_header = if packet.from.is_ipv4() { 20 } else { 40 };
        for length in ETHERNET + ip_header..frame.len() {
            assert_refused(&balancer, "cut", &frame[..length], Verdict::PassMalformed);
        }
        assert_eq!(balancer.run(&frame)?.action, XdpAction::Tx);
    }
    Ok(())
}

#[test]
fn an_error_that_is_too_big_is_dropped() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = Packet {
        payload: vec![0; 1_440],
        ..v4(Protocol::Udp)
    };
    let balancer = balancer(&packet, &tunnel())?;
    // 20 + 8 + 20 bytes of headers before the quoted L4 header, and 20 of the outer header.
    let fits = 1_500 - 68;
    let error = about(&reply(&packet), 3, fits);
    assert_eq!(balancer.run(&error.frame())?.action, XdpAction::Tx);
    let frame = about(&reply(&packet), 3, fits + 1).frame();
    assert_refused(&balancer, "one byte more", &frame, Verdict::DropTooBig);
    Ok(())
}

/// Demands that the error goes to this backend with these counters, and that it leaves the flow table as it was.
#[track_caller]
fn assert_goes(balancer: &Balancer, packet: &Packet, backend: u32, event: Option<FlowEvent>) {
    let error = error(packet);
    let before = balancer.flows().expect("the flow table can be read");
    let (outcome, counters) = balancer.run_counted(&error.frame()).expect("it runs");
    let address = ip(&format!("10.0.1.{backend}"));
    let expected = encapsulated(&error, ip("10.0.0.2"), address, NEXT_HOP, 0);
    assert_eq!(outcome.frame, expected, "not to {backend}");
    let forwarded = Counters::of_forwarded(SERVICE, backend, error.frame().len());
    let expected = match event {
        Some(event) => forwarded.with_flow(event),
        None => forwarded,
    };
    assert_eq!(counters, expected);
    let after = balancer.flows().expect("the flow table can be read");
    assert_eq!(after, before, "the error left a trace");
}

#[test]
fn on_a_moved_slot_errors_follow_the_flow_or_go_to_the_old_owner() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    const OLD: u32 = 7;
    const NEW: u32 = 8;
    const THIRD: u32 = 9;
    let backend = |index: u32| BackendEntry {
        address: ip(&format!("10.0.1.{index}")).into(),
        generation: 40 + index,
        ..tunnel()
    };
    for packet in packets() {
        let mut balancer = Balancer::load()?;
        for index in [OLD, NEW, THIRD] {
            balancer.set_backend(index, &backend(index))?;
        }
        let key = key(&packet, packet.to.port());
        for settled in [false, true] {
            let moved = Slot::moved(NEW, OLD, settled);
            balancer.add_service_of_slots(key, SERVICE, |_| moved)?;
            assert_goes(&balancer, &packet, OLD, None);
        }
        assert!(balancer.flows()?.is_empty());

        // Seen long ago, and closing: an error changes neither.
        let entry = FlowEntry {
            backend: THIRD,
            generation: 40 + THIRD,
            service: SERVICE,
            slot: 1,
            seen: 1,
            flags: FlowEntry::CLOSING,
        };
        balancer.set_flow(&flow_key(&packet), &entry)?;
        assert_goes(&balancer, &packet, THIRD, Some(FlowEvent::Hit));

        let stale = [
            FlowEntry {
                generation: 1,
                ..entry
            },
            FlowEntry {
                service: SERVICE + 1,
                ..entry
            },
            FlowEntry {
                backend: 11,
                ..entry
            },
        ];
        for stale in stale {
            balancer.set_flow(&flow_key(&packet), &stale)?;
            assert_goes(&balancer, &packet, OLD, None);
        }
        balancer.set_flow(&flow_key(&packet), &entry)?;
        let lost = BackendEntry {
            flags: BackendEntry::LOST,
            ..backend(THIRD)
        };
        balancer.set_backend(THIRD, &lost)?;
        assert_goes(&balancer, &packet, OLD, None);

        balancer.add_service_of_slots(key, SERVICE, |_| Slot::moved(NEW, 0, false))?;
        let frame = error(&packet).frame();
        assert_refused(&balancer, "no owner", &frame, Verdict::DropNoBackend);
        // A steady slot asks nobody.
        balancer.set_backend(THIRD, &backend(THIRD))?;
        balancer.add_service_of_slots(key, SERVICE, |_| Slot::steady(NEW))?;
        assert_goes(&balancer, &packet, NEW, None);
    }
    Ok(())
}
