//! What is not for a service passes byte for byte, under the verdict that says why, whatever it looks like.

use anyhow::Result;
use etherparse::{EtherType, PacketBuilder};
use lb_common::verdict::{Action, Verdict};
use lb_tests::{
    counters::Counters,
    fixture::{balancer, tunnel, v4, v6},
    packet::{BALANCER_MAC, ETHERNET, Packet, Protocol, ROUTER_MAC, SERVICE_VLAN, VLAN},
    prog_run::{Balancer, XdpAction},
    require,
};

/// A balancer with an IPv4 service, which the packets of this file almost reach.
fn near_miss() -> Result<Balancer> {
    balancer(&v4(Protocol::Tcp), &tunnel())
}

fn assert_passed(balancer: &Balancer, what: &str, frame: &[u8], verdict: Verdict) -> Result<()> {
    assert_eq!(
        verdict.action(),
        Action::Pass,
        "{what}: {verdict:?} is not a reason to pass"
    );
    let (outcome, counters) = balancer.run_counted(frame)?;
    assert_eq!(outcome.action, XdpAction::Pass, "{what}");
    assert_eq!(outcome.frame, frame, "{what}: altered");
    assert_eq!(counters, Counters::of_verdict(verdict), "{what}");
    Ok(())
}

fn icmp_to_the_vip() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(ROUTER_MAC, BALANCER_MAC)
        .ipv4([198, 51, 100, 9], [203, 0, 113, 1], 57)
        .icmpv4_echo_request(1, 2);
    let mut frame = Vec::new();
    builder
        .write(&mut frame, b"ping")
        .expect("a Vec takes every write");
    frame
}

fn with_ethertype(mut frame: Vec<u8>, ethertype: u16) -> Vec<u8> {
    frame[12..ETHERNET].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

/// The frame with one byte of its IP packet changed.
fn with_ip_byte(mut frame: Vec<u8>, offset: usize, value: u8) -> Vec<u8> {
    frame[ETHERNET + offset] = value;
    frame
}

#[test]
fn other_destinations() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = near_miss()?;
    for (what, protocol, to) in [
        ("another port", Protocol::Tcp, "203.0.113.1:444"),
        (
            "the port with its bytes swapped",
            Protocol::Tcp,
            "203.0.113.1:47873",
        ),
        ("another protocol", Protocol::Udp, "203.0.113.1:443"),
        ("another host", Protocol::Tcp, "203.0.113.2:443"),
        (
            "the address with its bytes swapped",
            Protocol::Tcp,
            "1.113.0.203:443",
        ),
    ] {
        let packet = Packet::new(protocol, "198.51.100.9:40000", to, 10);
        assert_passed(&balancer, what, &packet.frame(), Verdict::PassNoService)?;
    }
    let reply = Packet::new(Protocol::Tcp, "203.0.113.1:443", "198.51.100.9:40000", 10);
    assert_passed(
        &balancer,
        "the service's own replies",
        &reply.frame(),
        Verdict::PassNoService,
    )?;
    let mapped = Packet::new(
        Protocol::Tcp,
        "[::ffff:1.2.3.4]:40000",
        "[::ffff:203.0.113.1]:444",
        10,
    );
    assert_passed(
        &balancer,
        "IPv4-mapped, another port",
        &mapped.frame(),
        Verdict::PassNoService,
    )?;
    assert_passed(
        &balancer,
        "the other family",
        &v6(Protocol::Tcp).frame(),
        Verdict::PassNoService,
    )
}

/// An IPv6 packet to `::ffff:a.b.c.d` must not find the service of a.b.c.d, whose key looks the same: such addresses
/// do not belong on a wire (RFC 4291, section 2.5.5.2; RFC 6890).
#[test]
fn ipv4_mapped_destinations_in_ipv6_are_not_the_ipv4_service() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let mapped = Packet::new(
        Protocol::Tcp,
        "[2001:db8::9]:40000",
        "[::ffff:203.0.113.1]:443",
        10,
    );
    assert_passed(
        &near_miss()?,
        "IPv4-mapped",
        &mapped.frame(),
        Verdict::PassNoService,
    )
}

#[test]
fn what_is_not_ip_tcp_or_udp() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = near_miss()?;
    let tcp = v4(Protocol::Tcp).frame();
    for ethertype in [
        EtherType::ARP.0,
        // Tags that are none of 802.1Q and 802.1ad: MACsec, old double tags.
        0x88e5,
        0x9100,
        0x88cc,
        0x0000,
        0x05dc,
        0xffff,
    ] {
        let what = format!("EtherType {ethertype:#06x}");
        assert_passed(
            &balancer,
            &what,
            &with_ethertype(tcp.clone(), ethertype),
            Verdict::PassNotIp,
        )?;
    }
    assert_passed(
        &balancer,
        "ICMP",
        &icmp_to_the_vip(),
        Verdict::PassNotTcpUdp,
    )?;
    for protocol in (0..=255).filter(|protocol| ![6, 17].contains(protocol)) {
        let what = format!("protocol {protocol}");
        let v4 = with_ip_byte(tcp.clone(), 9, protocol);
        assert_passed(&balancer, &what, &v4, Verdict::PassNotTcpUdp)?;
        // Extension headers have a file of their own.
        if ![0, 43, 44, 51, 60].contains(&protocol) {
            let v6 = with_ip_byte(v6(Protocol::Tcp).frame(), 6, protocol);
            assert_passed(&balancer, &what, &v6, Verdict::PassNotTcpUdp)?;
        }
    }
    Ok(())
}

#[test]
fn impossible_headers() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = near_miss()?;
    let (tcp, tcp6) = (v4(Protocol::Tcp).frame(), v6(Protocol::Tcp).frame());
    for version in (0..16).filter(|version| *version != 4) {
        let frame = with_ip_byte(tcp.clone(), 0, version << 4 | 5);
        assert_passed(&balancer, "a wrong version", &frame, Verdict::PassMalformed)?;
    }
    for version in (0..16).filter(|version| *version != 6) {
        let frame = with_ip_byte(tcp6.clone(), 0, version << 4);
        assert_passed(&balancer, "a wrong version", &frame, Verdict::PassMalformed)?;
    }
    for ihl in 0..5 {
        let frame = with_ip_byte(tcp.clone(), 0, 0x40 | ihl);
        assert_passed(
            &balancer,
            "a header of less than 20 bytes",
            &frame,
            Verdict::PassMalformed,
        )?;
    }
    let length = tcp.len() - ETHERNET;
    for total in [0, 19, length + 1, 0xffff] {
        let mut frame = tcp.clone();
        frame[ETHERNET + 2..][..2].copy_from_slice(&(total as u16).to_be_bytes());
        assert_passed(
            &balancer,
            "a total length that lies",
            &frame,
            Verdict::PassMalformed,
        )?;
    }
    let mut frame = tcp6.clone();
    frame[ETHERNET + 4..][..2]
        .copy_from_slice(&((tcp6.len() - ETHERNET - 40 + 1) as u16).to_be_bytes());
    assert_passed(
        &balancer,
        "a payload length that lies",
        &frame,
        Verdict::PassMalformed,
    )
}

/// Ports must lie within the IP packet: Ethernet padding after it is not read as ports.
#[test]
fn packets_too_short_for_ports() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = near_miss()?;
    for l4 in 0..4 {
        let mut frame = v4(Protocol::Tcp).frame();
        frame[ETHERNET + 2..][..2].copy_from_slice(&(20 + l4 as u16).to_be_bytes());
        assert_passed(
            &balancer,
            "IPv4 with padding",
            &frame,
            Verdict::PassTruncated,
        )?;
        let mut frame = v6(Protocol::Tcp).frame();
        frame[ETHERNET + 4..][..2].copy_from_slice(&(l4 as u16).to_be_bytes());
        assert_passed(
            &balancer,
            "IPv6 with padding",
            &frame,
            Verdict::PassTruncated,
        )?;
    }
    Ok(())
}

#[test]
fn fragments_of_no_service() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = near_miss()?;
    let other = Packet::new(Protocol::Udp, "198.51.100.9:40000", "203.0.113.2:443", 16);
    for (more_fragments, fragment_offset) in [(true, 0), (true, 2), (false, 2), (false, 0x1fff)] {
        let packet = Packet {
            dont_fragment: false,
            more_fragments,
            fragment_offset,
            ..other.clone()
        };
        assert_passed(
            &balancer,
            "a fragment",
            &packet.frame(),
            Verdict::PassFragment,
        )?;
    }
    Ok(())
}

/// Every prefix of a service's packet. The kernel runs no program on less than an Ethernet header.
#[test]
fn packets_cut_off_at_every_byte() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [
        v4(Protocol::Tcp),
        v6(Protocol::Tcp),
        Packet {
            options: vec![1; 40],
            ..v4(Protocol::Tcp)
        },
    ] {
        let balancer = balancer(&packet, &tunnel())?;
        let frame = packet.frame();
        let header = if packet.from.is_ipv4() { 20 } else { 40 };
        for length in 0..ETHERNET {
            assert!(
                balancer.run(&frame[..length]).is_err(),
                "{length} bytes were run"
            );
        }
        for length in ETHERNET..frame.len() {
            // Before the end of the IP header it cannot be understood; after it the length in it lies.
            let verdict = if length < ETHERNET + header {
                Verdict::PassTruncated
            } else {
                Verdict::PassMalformed
            };
            assert_passed(
                &balancer,
                &format!("cut at {length}"),
                &frame[..length],
                verdict,
            )?;
        }
        assert_eq!(balancer.run(&frame)?.action, XdpAction::Tx);
    }
    Ok(())
}

/// Random bytes, with and without a plausible start. No service has an address of theirs, so all must pass.
#[test]
fn random_bytes() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let balancer = near_miss()?;
    for round in 0..20_000 {
        let mut frame: Vec<u8> = (0..random.usize(ETHERNET..200))
            .map(|_| random.u8(..))
            .collect();
        match round % 3 {
            0 => frame[12..ETHERNET].copy_from_slice(&0x0800_u16.to_be_bytes()),
            1 => frame[12..ETHERNET].copy_from_slice(&0x86dd_u16.to_be_bytes()),
            2 if round % 2 == 0 => {
                let tag = [VLAN, SERVICE_VLAN][random.usize(..2)];
                frame[12..ETHERNET].copy_from_slice(&tag.to_be_bytes());
                if let Some(inner) = frame.get_mut(ETHERNET + 2..ETHERNET + 4) {
                    inner.copy_from_slice(&[0x08, 0x00]);
                }
            }
            _ => {}
        }
        if let Some(version) = frame.get_mut(ETHERNET) {
            *version = [0x45, 0x60, 0x4f, *version][random.usize(..4)];
        }
        let outcome = balancer.run(&frame)?;
        assert_eq!(
            outcome.action,
            XdpAction::Pass,
            "seed {seed}, round {round}: {frame:02x?}"
        );
        assert_eq!(outcome.frame, frame, "seed {seed}, round {round}: altered");
    }
    Ok(())
}
