//! VLAN-tagged packets: those of services keep their tags, all others pass as they came.

use anyhow::Result;
use lb_common::{backend::Mode, verdict::Verdict};
use lb_tests::{
    fixture::{
        NEXT_HOP, assert_forwarded, assert_forwarded_in_all_modes, assert_refused, assert_too_big,
        backend, balancer, flow_hash, ip, tunnel, v4, v6,
    },
    packet::{ETHERNET, Packet, Protocol, SERVICE_VLAN, VLAN, encapsulated},
    prog_run::XdpAction,
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

#[test]
fn tags_are_kept_in_all_modes_and_pairs_of_families() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in tagged() {
        assert_forwarded_in_all_modes(&packet, &packet, flow_hash(&packet));
    }
    Ok(())
}

/// Options move the ports, padding follows the packet: offsets count from the tags.
#[test]
fn options_and_padding() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = balancer(&v4(Protocol::Udp), &tunnel())?;
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
            assert_forwarded(&balancer, &packet, &expected);
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
            assert_too_big(&balancer, "tagged", &packet.frame());
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
        assert_refused(&balancer, "tagged", &packet.frame(), Verdict::PassNotIp);
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
        assert_refused(&balancer, "tagged", &other.frame(), Verdict::PassNoService);
        let packet = Packet {
            tags,
            ..v4(Protocol::Tcp)
        };
        let at = packet.l3_offset();
        let mut arp = packet.frame();
        arp[at - 2..at].copy_from_slice(&0x0806_u16.to_be_bytes());
        assert_refused(&balancer, "tagged", &arp, Verdict::PassNotIp);
        // A length that is right only if the tags are counted.
        let mut lying = packet.frame();
        let length = (lying.len() - at + 1) as u16;
        lying[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
        assert_refused(&balancer, "tagged", &lying, Verdict::PassMalformed);
        let fragment = Packet {
            dont_fragment: false,
            fragment_offset: 3,
            ..packet
        };
        assert_refused(
            &balancer,
            "tagged",
            &fragment.frame(),
            Verdict::DropFragment,
        );
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
                assert_refused(&balancer, "tagged", &frame[..length], verdict);
            }
            assert_eq!(balancer.run(&frame)?.action, XdpAction::Tx);
        }
    }
    Ok(())
}
