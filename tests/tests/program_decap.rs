//! The decapsulator: undoes what the balancer does, and touches nothing else.

use anyhow::Result;
use lb_common::{backend::Mode, decap::Reason};
use lb_tests::{
    fixture::{NEXT_HOP, backend, balancer, ip, v4, v6},
    packet::{BALANCER_MAC, ETHERNET, Packet, Protocol, encapsulated, ethernet},
    prog_run::{DecapRules, Decapsulator, XdpAction},
    require,
};

/// Answers of a program in traffic control: values of the kernel's pkt_cls.h.
const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// The tunnels' ends: (outer source, outer destination) of each family.
const TUNNELS: [(&str, &str); 2] = [("10.0.0.2", "10.0.1.7"), ("fd00::2", "fd00:1::7")];

fn packets() -> impl Iterator<Item = Packet> {
    Protocol::ALL
        .into_iter()
        .flat_map(|protocol| [v4(protocol), v6(protocol)])
}

#[test]
fn decapsulation_undoes_encapsulation() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    for packet in packets() {
        for (source, address) in TUNNELS {
            let balancer = balancer(&packet, &backend(Mode::Ipip, source, address))?;
            for (payload, padding) in [(0, 20), (1, 0), (1_000, 0), (1_001, 7)] {
                let packet = Packet {
                    payload: vec![0xa5; payload],
                    padding,
                    ..packet.clone()
                };
                let tunnelled = balancer.run(&packet.frame())?;
                assert_eq!(tunnelled.action, XdpAction::Tx);
                let outcome = decapsulator.run(&tunnelled.frame)?;
                let mut expected = packet.frame();
                let is_v4 = packet.from.is_ipv4();
                expected[..ETHERNET].copy_from_slice(&ethernet(BALANCER_MAC, NEXT_HOP, is_v4));
                assert_eq!(outcome.action, XdpAction::Pass);
                assert_eq!(outcome.frame, expected, "{packet:?} through {source}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_a_tunnels_passes_untouched() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    let mut frames: Vec<Vec<u8>> = packets().map(|packet| packet.frame()).collect();
    let tunnelled = encapsulated(
        &v4(Protocol::Tcp),
        ip("10.0.0.2"),
        ip("10.0.1.7"),
        NEXT_HOP,
        0,
    );
    // An outer header with options, a first and a later fragment, ARP, and a tunnel cut off at every byte.
    for (offset, value) in [
        (ETHERNET, 0x46),
        (ETHERNET + 6, 0x20),
        (ETHERNET + 7, 1),
        (13, 0x06),
    ] {
        let mut frame = tunnelled.clone();
        frame[offset] = value;
        frames.push(frame);
    }
    frames.extend((ETHERNET..ETHERNET + 20).map(|length| tunnelled[..length].to_vec()));
    for frame in frames {
        let outcome = decapsulator.run(&frame)?;
        assert_eq!(outcome.action, XdpAction::Pass);
        assert_eq!(outcome.frame, frame, "altered");
    }
    Ok(())
}

/// A packet out of a tunnel from `source` to `address`, in IP in IP.
fn ipip(packet: &Packet, (source, address): (&str, &str)) -> Vec<u8> {
    encapsulated(packet, ip(source), ip(address), NEXT_HOP, 0)
}

/// The same in GUE: UDP to port 6080 and four bytes between the IP headers.
fn gue(packet: &Packet, tunnel: (&str, &str)) -> Vec<u8> {
    let mut frame = ipip(packet, tunnel);
    let (outer, protocol, length) = if ip(tunnel.0).is_ipv4() {
        (20, ETHERNET + 9, ETHERNET + 2)
    } else {
        (40, ETHERNET + 6, ETHERNET + 4)
    };
    let inside = (frame.len() - packet.padding - ETHERNET - outer + 12) as u16;
    let inner = if packet.from.is_ipv4() { 4 } else { 41 };
    let mut headers = vec![0xc0, 0x01, 0x17, 0xc0];
    headers.extend_from_slice(&inside.to_be_bytes());
    headers.extend_from_slice(&[0, 0, 0, inner, 0, 0]);
    frame[protocol] = 17;
    let total = u16::from_be_bytes([frame[length], frame[length + 1]]) + 12;
    frame[length..length + 2].copy_from_slice(&total.to_be_bytes());
    let start = ETHERNET + outer;
    frame.splice(start..start, headers);
    frame
}

/// What the stack gets of a packet.
fn delivered(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..ETHERNET].copy_from_slice(&ethernet(BALANCER_MAC, NEXT_HOP, packet.from.is_ipv4()));
    frame
}

/// Runs a frame through both programs and demands that each leaves it alone and counts it under `reason`.
#[track_caller]
fn assert_passed(decapsulator: &Decapsulator, frame: &[u8], reason: Reason) {
    let (outcome, counted) = decapsulator.run_counted(frame).expect("it runs");
    assert_eq!((outcome.action, counted), (XdpAction::Pass, vec![reason]));
    assert_eq!(outcome.frame, frame, "altered");
    let (answer, out, counted) = decapsulator.run_tc(frame).expect("it runs");
    assert_eq!((answer, counted), (TC_ACT_OK, vec![reason]));
    assert_eq!(out, frame, "altered");
}

#[test]
fn every_pair_of_families_is_decapsulated_by_both_programs() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    for packet in packets() {
        for (payload, padding) in [(0, 0), (0, 20), (1, 0), (1_001, 7)] {
            let packet = Packet {
                payload: vec![0xa5; payload],
                padding,
                ..packet.clone()
            };
            for tunnel in TUNNELS {
                for (frame, reason) in [
                    (ipip(&packet, tunnel), Reason::Ipip),
                    (gue(&packet, tunnel), Reason::Gue),
                ] {
                    let expected = delivered(&packet);
                    let (outcome, counted) = decapsulator.run_counted(&frame)?;
                    assert_eq!((outcome.action, counted), (XdpAction::Pass, vec![reason]));
                    assert_eq!(outcome.frame, expected, "{packet:?} through {tunnel:?}");

                    let (answer, out, counted) = decapsulator.run_tc(&frame)?;
                    let same = packet.from.is_ipv4() == ip(tunnel.0).is_ipv4();
                    let wanted = if same { TC_ACT_OK } else { TC_ACT_REDIRECT };
                    assert_eq!((answer, counted), (wanted, vec![reason]));
                    // Where the kernel asks for more bytes than the packet has, zeros follow it.
                    assert_eq!(out[..expected.len()], expected, "{packet:?} by tc");
                    assert!(out[expected.len()..].iter().all(|byte| *byte == 0));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn only_what_the_rules_name_is_decapsulated() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [v4(Protocol::Tcp), v6(Protocol::Udp)] {
        for tunnel in TUNNELS {
            let (source, host) = (ip(tunnel.0), ip(tunnel.1));
            let prefix = |text: &str| {
                text.parse::<lb_userspace::prefix::Prefix>()
                    .unwrap()
                    .mapped()
            };
            let own = if source.is_ipv4() {
                "10.0.0.0/29"
            } else {
                "fd00::/64"
            };
            let ours = DecapRules {
                hosts: vec![ip("192.0.2.77"), host],
                sources: vec![prefix("192.0.2.0/24"), prefix(own)],
                vips: vec![ip("192.0.2.78"), packet.to.ip()],
                second_chance: false,
            };
            let decapsulator = Decapsulator::with_rules(&ours)?;
            for (frame, reason) in [
                (ipip(&packet, tunnel), Reason::Ipip),
                (gue(&packet, tunnel), Reason::Gue),
            ] {
                let (outcome, counted) = decapsulator.run_counted(&frame)?;
                assert_eq!((outcome.frame, counted), (delivered(&packet), vec![reason]));
                for (rules, reason) in [
                    (
                        DecapRules {
                            hosts: vec![packet.to.ip()],
                            ..ours.clone()
                        },
                        Reason::OtherHost,
                    ),
                    (
                        DecapRules {
                            sources: vec![prefix("10.0.0.8/29"), prefix("fd00:1::/64")],
                            ..ours.clone()
                        },
                        Reason::OtherSource,
                    ),
                    (
                        DecapRules {
                            vips: vec![host],
                            ..ours.clone()
                        },
                        Reason::NotVip,
                    ),
                ] {
                    assert_passed(&Decapsulator::with_rules(&rules)?, &frame, reason);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn congestion_on_the_way_is_told() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    for packet in [v4(Protocol::Tcp), v6(Protocol::Tcp)] {
        for tunnel in TUNNELS {
            for (outer, inner, expected) in [
                (0, 2, Some(2)),
                (2, 2, Some(2)),
                (1, 2, Some(1)),
                (3, 2, Some(3)),
                (3, 1, Some(3)),
                (1, 0, Some(0)),
                (3, 0, None),
            ] {
                let class = 0xb8;
                let packet = Packet {
                    traffic_class: class | inner,
                    ..packet.clone()
                };
                let mut frame = ipip(&packet, tunnel);
                if ip(tunnel.0).is_ipv4() {
                    frame[ETHERNET + 1] = class | outer;
                } else {
                    frame[ETHERNET + 1] = frame[ETHERNET + 1] & 0x0f | (class | outer) << 4;
                }
                let (outcome, counted) = decapsulator.run_counted(&frame)?;
                let (answer, out, counted_tc) = decapsulator.run_tc(&frame)?;
                assert_eq!(counted, counted_tc);
                let Some(ecn) = expected else {
                    assert_eq!((outcome.action, answer), (XdpAction::Drop, TC_ACT_SHOT));
                    assert_eq!((outcome.frame, counted), (frame, vec![Reason::Congested]));
                    continue;
                };
                // Built anew, checksum and all.
                let marked = delivered(&Packet {
                    traffic_class: class | ecn,
                    ..packet.clone()
                });
                assert_eq!(
                    (outcome.frame, counted),
                    (marked.clone(), vec![Reason::Ipip])
                );
                assert_eq!(out, marked, "outer {outer} inner {inner} by tc");
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_whole_passes_untouched() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    let packet = v4(Protocol::Tcp);
    let [over_v4, over_v6] = TUNNELS;
    let changed = |frame: Vec<u8>, offset: usize, value: u8| {
        let mut frame = frame;
        frame[offset] = value;
        frame
    };
    let (plain, udp) = (ipip(&packet, over_v4), gue(&packet, over_v4));
    let gue_header = ETHERNET + 20 + 8;
    for (what, frame, reason) in [
        (
            "outer options",
            changed(plain.clone(), ETHERNET, 0x46),
            Reason::Malformed,
        ),
        (
            "a first fragment",
            changed(plain.clone(), ETHERNET + 6, 0x20),
            Reason::Malformed,
        ),
        (
            "a later fragment",
            changed(plain.clone(), ETHERNET + 7, 1),
            Reason::Malformed,
        ),
        (
            "an outer length that lies",
            changed(plain.clone(), ETHERNET + 3, 25),
            Reason::Malformed,
        ),
        (
            "no room for a header",
            changed(changed(plain.clone(), ETHERNET + 2, 0), ETHERNET + 3, 8),
            Reason::Malformed,
        ),
        (
            "an inner length that lies",
            changed(plain.clone(), ETHERNET + 20 + 2, 0xff),
            Reason::Malformed,
        ),
        (
            "another inner version",
            changed(plain.clone(), ETHERNET + 20, 0x65),
            Reason::Malformed,
        ),
        (
            "IPv6 that is IPv4",
            changed(ipip(&packet, over_v6), ETHERNET + 6, 41),
            Reason::Malformed,
        ),
        (
            "GUE of version 1",
            changed(udp.clone(), gue_header, 0x40),
            Reason::Malformed,
        ),
        (
            "a GUE control message",
            changed(udp.clone(), gue_header, 0x20),
            Reason::Malformed,
        ),
        (
            "GUE with extensions",
            changed(udp.clone(), gue_header, 1),
            Reason::Malformed,
        ),
        (
            "GUE with flags",
            changed(udp.clone(), gue_header + 3, 1),
            Reason::Malformed,
        ),
        (
            "GUE with TCP in it",
            changed(udp.clone(), gue_header + 1, 6),
            Reason::Malformed,
        ),
        (
            "UDP to another port",
            changed(udp.clone(), ETHERNET + 20 + 3, 0xc1),
            Reason::NotTunnelled,
        ),
        (
            "ESP",
            changed(plain.clone(), ETHERNET + 9, 50),
            Reason::NotTunnelled,
        ),
        ("ARP", changed(plain.clone(), 13, 6), Reason::NotTunnelled),
    ] {
        println!("{what}");
        assert_passed(&decapsulator, &frame, reason);
    }
    Ok(())
}

#[test]
fn a_tunnel_that_is_cut_off_at_any_byte_passes_untouched() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    let packet = Packet {
        payload: vec![],
        ..v6(Protocol::Udp)
    };
    for tunnel in TUNNELS {
        for frame in [ipip(&packet, tunnel), gue(&packet, tunnel)] {
            let inner = frame.len() - 48;
            for length in ETHERNET..inner + 40 {
                let cut = &frame[..length];
                let outcome = decapsulator.run(cut)?;
                assert_eq!(outcome.action, XdpAction::Pass);
                assert_eq!(outcome.frame, cut, "altered at {length}");
            }
        }
    }
    Ok(())
}
