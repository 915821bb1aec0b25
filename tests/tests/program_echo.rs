//! Pings to a service's address are answered if a service wants it, and pass as they came if not.

use anyhow::Result;
use lb_common::{
    rate::ANSWERS_AT_ONCE,
    service::{ServiceEntry, ServiceKey},
    verdict::Verdict,
};
use lb_tests::{
    counters::Counters,
    fixture::{assert_answered, assert_refused, balancer, tunnel, v4, v6},
    fixtures::answer::{ping, reply},
    packet::{Packet, Protocol, VLAN},
    prog_run::{Balancer, XdpAction},
    require,
};

/// A balancer with the packet's service, whose address is to be answered for.
fn answering(packet: &Packet) -> Result<Balancer> {
    let mut balancer = balancer(packet, &tunnel())?;
    let address = ServiceKey::of_address(packet.to.ip().into());
    let entry = ServiceEntry {
        flags: ServiceEntry::ECHO,
        ..ServiceEntry::default()
    };
    balancer.put_service(address, entry)?;
    Ok(balancer)
}

fn packets() -> [Packet; 2] {
    [v4(Protocol::Tcp), v6(Protocol::Udp)]
}

#[test]
fn pings_are_answered_byte_for_byte() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let balancer = answering(&packet)?;
        for length in [0, 1, 2, 56, 57, 1_400, 1_452] {
            for tags in 0..=2 {
                let payload: Vec<u8> = (0..length).map(|i| (i * 11) as u8).collect();
                let packet = Packet {
                    tags: vec![(VLAN, 0xe009); tags],
                    traffic_class: 0xb9,
                    dont_fragment: tags == 0,
                    padding: tags,
                    ..packet.clone()
                };
                let (frame, expected) = (ping(&packet, &payload).frame(), reply(&packet, &payload));
                let what = format!("{length} bytes, {tags} tags");
                assert_answered(&balancer, &what, &frame, &expected, Verdict::AnsweredEcho);
            }
        }
    }
    Ok(())
}

/// The sender finds out, not we.
#[test]
fn a_damaged_ping_is_answered_as_damaged() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let balancer = answering(&packet)?;
        let (mut frame, mut expected) = (ping(&packet, b"ping").frame(), reply(&packet, b"ping"));
        for frame in [&mut frame, &mut expected] {
            let last = frame.len() - 1;
            frame[last] ^= 0x40;
        }
        assert_answered(
            &balancer,
            "damaged",
            &frame,
            &expected,
            Verdict::AnsweredEcho,
        );
    }
    Ok(())
}

#[test]
fn pings_that_are_not_to_be_answered_pass() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let pass = Verdict::PassNotTcpUdp;
    for packet in packets() {
        let is_v4 = packet.from.is_ipv4();
        let frame = ping(&packet, b"ping").frame();
        assert_refused(&balancer(&packet, &tunnel())?, "not wanted", &frame, pass);
        let answering = answering(&packet)?;
        let mut elsewhere = packet.clone();
        elsewhere.to.set_ip(if is_v4 {
            "203.0.113.2".parse()?
        } else {
            "2001:db8:f::2".parse()?
        });
        let frame = ping(&elsewhere, b"ping").frame();
        assert_refused(&answering, "another address", &frame, pass);
        let with = |change: fn(&mut Packet)| {
            let mut ping = ping(&packet, b"ping");
            change(&mut ping);
            ping.frame()
        };
        for (what, frame) in [
            (
                "a code",
                with(|ping| ping.icmp.as_mut().expect("ICMP")[1] = 1),
            ),
            (
                "the other family's type",
                with(|ping| {
                    let is_v4 = ping.from.is_ipv4();
                    ping.icmp.as_mut().expect("ICMP")[0] = if is_v4 { 128 } else { 8 };
                }),
            ),
            (
                "a reply",
                with(|ping| {
                    let is_v4 = ping.from.is_ipv4();
                    ping.icmp.as_mut().expect("ICMP")[0] = if is_v4 { 0 } else { 129 };
                }),
            ),
            (
                "options",
                with(|ping| {
                    (ping.options, ping.extensions) =
                        (vec![1; 4], vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0])]);
                }),
            ),
            (
                "from a group",
                with(|ping| {
                    let is_v4 = ping.from.is_ipv4();
                    ping.from.set_ip(if is_v4 {
                        [224, 0, 0, 1].into()
                    } else {
                        [0xff02, 0, 0, 0, 0, 0, 0, 1].into()
                    });
                }),
            ),
        ] {
            assert_refused(&answering, what, &frame, pass);
        }
        let mut frame = ping(&packet, b"ping").frame();
        frame[0] |= 1;
        assert_refused(&answering, "to a group", &frame, pass);
        let more = Packet {
            more_fragments: true,
            dont_fragment: false,
            ..ping(&v4(Protocol::Tcp), b"ping")
        };
        if is_v4 {
            assert_refused(&answering, "a fragment", &more.frame(), pass);
        }
    }
    Ok(())
}

#[test]
fn pings_cut_off_within_their_header_pass() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let balancer = answering(&packet)?;
        let whole = ping(&packet, b"");
        let message = whole.icmp.clone().expect("ICMP");
        for length in 0..message.len() {
            for padding in [0, 60] {
                let cut = Packet {
                    icmp: Some(message[..length].to_vec()),
                    padding,
                    ..whole.clone()
                };
                let what = format!("{length} bytes");
                assert_refused(&balancer, &what, &cut.frame(), Verdict::PassTruncated);
            }
        }
    }
    Ok(())
}

#[test]
fn replies_are_bounded() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v6(Protocol::Tcp);
    let balancer = answering(&packet)?;
    let frame = ping(&packet, b"ping").frame();
    let mut answered = 0;
    let unanswered = loop {
        let outcome = balancer.run(&frame)?;
        if outcome.action == XdpAction::Drop {
            break outcome;
        }
        answered += 1;
        assert!(answered < 1_000 * ANSWERS_AT_ONCE, "no end of replies");
    };
    assert_eq!(unanswered.frame, frame);
    assert!(answered >= ANSWERS_AT_ONCE, "{answered}");
    let expected = Counters {
        verdicts: [(Verdict::AnsweredEcho, answered), (Verdict::DropEcho, 1)].into(),
        ..Counters::default()
    };
    assert_eq!(balancer.counters()?, expected);
    Ok(())
}
