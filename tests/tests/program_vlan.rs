//! VLAN-tagged packets: those of services keep their tags, all others pass as they came.

use anyhow::Result;
use lb_common::{
    backend::{BackendEntry, Mode},
    verdict::{Action, Verdict},
};
use lb_tests::{
    counters::Counters,
    fixture::{BACKEND, NEXT_HOP, SERVICE, backend, balancer, flow_hash, ip, tunnel, v4, v6},
    packet::{ETHERNET, Packet, Protocol, SERVICE_VLAN, VLAN, encapsulated},
    prog_run::{Balancer, XdpAction},
    require,
};

/// Every combination of one and two tags: priorities, drop eligibility and VLANs, 0 (priority alone) among them.
fn all_tags() -> Vec<Vec<(u16, u16)>> {
    vec![
        vec![(VLAN, 0x0064)],
        vec![(VLAN, 0x0000)],
        vec![(SERVICE_VLAN, 0xffff)],
        vec![(VLAN, 0x0064), (VLAN, 0xb00c)],
        vec![(VLAN, 0x0064), (SERVICE_VLAN, 0x2fff)],
        vec![(SERVICE_VLAN, 0x1064), (VLAN, 0x0800)],
        vec![(SERVICE_VLAN, 0x1064), (SERVICE_VLAN, 0x0800)],
    ]
}

fn tagged() -> impl Iterator<Item = Packet> {
    all_tags().into_iter().flat_map(|tags| {
        Protocol::ALL
            .into_iter()
            .flat_map(|protocol| [v4(protocol), v6(protocol)])
            .map(move |packet| Packet {
                tags: tags.clone(),
                ..packet
            })
    })
}

fn assert_forwarded(packet: &Packet, entry: &BackendEntry, expected: &[u8]) -> Result<()> {
    let frame = packet.frame();
    let (outcome, counters) = balancer(packet, entry)?.run_counted(&frame)?;
    assert_eq!(outcome.action, XdpAction::Tx, "{packet:?}");
    assert_eq!(outcome.frame, expected, "{packet:?}");
    let expected = Counters::of_forwarded(SERVICE, BACKEND, frame.len());
    assert_eq!(counters, expected, "{packet:?}");
    Ok(())
}

fn assert_not_forwarded(balancer: &Balancer, frame: &[u8], verdict: Verdict) -> Result<()> {
    let (outcome, counters) = balancer.run_counted(frame)?;
    let action = match verdict.action() {
        Action::Pass => XdpAction::Pass,
        Action::Drop => XdpAction::Drop,
        Action::Forward => XdpAction::Tx,
    };
    assert_eq!(outcome.action, action, "{verdict:?}");
    assert_eq!(outcome.frame, frame, "{verdict:?}: altered");
    assert_eq!(counters, Counters::of_verdict(verdict));
    Ok(())
}

#[test]
fn ipip_keeps_the_tags_in_all_pairs_of_families() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in tagged() {
        for (source, address) in [("10.0.0.2", "10.0.1.7"), ("fd00::2", "fd00:1::7")] {
            let label = (flow_hash(&packet) >> 44) as u32;
            let expected = encapsulated(&packet, ip(source), ip(address), NEXT_HOP, label);
            assert_forwarded(&packet, &backend(Mode::Ipip, source, address), &expected)?;
        }
    }
    Ok(())
}

#[test]
fn l2_keeps_the_tags() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in tagged() {
        let entry = backend(Mode::L2, "0.0.0.0", "10.0.1.7");
        assert_forwarded(&packet, &entry, &packet.readdressed(NEXT_HOP))?;
    }
    Ok(())
}

/// Options move the ports, padding follows the packet: offsets count from the tags.
#[test]
fn options_and_padding() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for tags in all_tags() {
        for (words, padding) in [(1, 0), (10, 6)] {
            let packet = Packet {
                tags: tags.clone(),
                options: vec![1; words * 4],
                padding,
                payload: vec![0x5a; 3],
                ..v4(Protocol::Udp)
            };
            let expected = encapsulated(&packet, ip("10.0.0.2"), ip("10.0.1.7"), NEXT_HOP, 0);
            assert_forwarded(&packet, &tunnel(), &expected)?;
        }
    }
    Ok(())
}

#[test]
fn tags_do_not_count_for_the_mtu() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    // 28 bytes of IPv4 and UDP headers, 20 of the outer header.
    for (mode, fits) in [(Mode::L2, 1_500 - 28), (Mode::Ipip, 1_500 - 28 - 20)] {
        let entry = backend(mode, "10.0.0.2", "10.0.1.7");
        for tags in all_tags() {
            let packet = Packet {
                tags,
                payload: vec![0; fits],
                ..v4(Protocol::Udp)
            };
            let balancer = balancer(&packet, &entry)?;
            assert_eq!(balancer.run(&packet.frame())?.action, XdpAction::Tx);
            let packet = Packet {
                payload: vec![0; fits + 1],
                ..packet
            };
            assert_not_forwarded(&balancer, &packet.frame(), Verdict::DropTooBig)?;
        }
    }
    Ok(())
}

#[test]
fn three_tags_are_not_ip() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = balancer(&v4(Protocol::Tcp), &tunnel())?;
    for third in [VLAN, SERVICE_VLAN] {
        let packet = Packet {
            tags: vec![(SERVICE_VLAN, 1), (VLAN, 2), (third, 3)],
            ..v4(Protocol::Tcp)
        };
        assert_not_forwarded(&balancer, &packet.frame(), Verdict::PassNotIp)?;
    }
    Ok(())
}

#[test]
fn tagged_packets_of_no_service_pass() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = balancer(&v4(Protocol::Tcp), &tunnel())?;
    for tags in all_tags() {
        let other = Packet {
            tags: tags.clone(),
            ..Packet::new(Protocol::Tcp, "198.51.100.9:40000", "203.0.113.2:443", 9)
        };
        assert_not_forwarded(&balancer, &other.frame(), Verdict::PassNoService)?;
        let packet = Packet {
            tags,
            ..v4(Protocol::Tcp)
        };
        let at = packet.l3_offset();
        let mut arp = packet.frame();
        arp[at - 2..at].copy_from_slice(&0x0806_u16.to_be_bytes());
        assert_not_forwarded(&balancer, &arp, Verdict::PassNotIp)?;
        // A length that is right only if the tags are counted.
        let mut lying = packet.frame();
        let length = (lying.len() - at + 1) as u16;
        lying[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
        assert_not_forwarded(&balancer, &lying, Verdict::PassMalformed)?;
        let fragment = Packet {
            dont_fragment: false,
            more_fragments: true,
            ..packet
        };
        assert_not_forwarded(&balancer, &fragment.frame(), Verdict::DropFragment)?;
    }
    Ok(())
}

#[test]
fn tagged_packets_cut_off_at_every_byte() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for tags in all_tags() {
        for (packet, header) in [(v4(Protocol::Tcp), 20), (v6(Protocol::Udp), 40)] {
            let packet = Packet {
                tags: tags.clone(),
                ..packet
            };
            let balancer = balancer(&packet, &tunnel())?;
            let frame = packet.frame();
            for length in ETHERNET..frame.len() {
                let verdict = if length < packet.l3_offset() + header {
                    Verdict::PassTruncated
                } else {
                    Verdict::PassMalformed
                };
                assert_not_forwarded(&balancer, &frame[..length], verdict)?;
            }
            assert_eq!(balancer.run(&frame)?.action, XdpAction::Tx);
        }
    }
    Ok(())
}
