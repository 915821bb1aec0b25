//! The balancer's own answers beyond what the fixtures have: how many there are, and what becomes of fragments.

use anyhow::Result;
use lb_common::{
    rate::ANSWERS_AT_ONCE,
    service::{ServiceEntry, ServiceKey},
    verdict::Verdict,
};
use lb_tests::{
    counters::Counters,
    fixture::{assert_answered, assert_refused, balancer, tunnel, v4, v6},
    fixtures::answer::{of_length, ping, too_big},
    packet::{Packet, Protocol},
    prog_run::{Balancer, XdpAction},
    require,
};

/// Each CPU has a bucket of answers of each kind that fills slowly.
#[test]
fn answers_are_bounded() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = of_length(&v4(Protocol::Udp), 1_481);
    let too_big = balancer(&packet, &tunnel())?;
    assert_bounded(
        &too_big,
        &packet,
        Verdict::AnsweredTooBig,
        Verdict::DropTooBig,
    )?;
    let packet = v6(Protocol::Tcp);
    let mut pinged = balancer(&packet, &tunnel())?;
    let entry = ServiceEntry {
        flags: ServiceEntry::ECHO,
        ..ServiceEntry::default()
    };
    pinged.put_service(ServiceKey::of_address(packet.to.ip().into()), entry)?;
    let packet = ping(&packet, b"ping");
    assert_bounded(&pinged, &packet, Verdict::AnsweredEcho, Verdict::DropEcho)
}

/// Sends the packet until it is no longer answered.
fn assert_bounded(
    balancer: &Balancer,
    packet: &Packet,
    answer: Verdict,
    drop: Verdict,
) -> Result<()> {
    let frame = packet.frame();
    // Runs may move from one CPU to another, and the buckets fill meanwhile.
    let mut answered = 0;
    let unanswered = loop {
        let outcome = balancer.run(&frame)?;
        if outcome.action == XdpAction::Drop {
            break outcome;
        }
        answered += 1;
        assert!(answered < 1_000 * ANSWERS_AT_ONCE, "no end of answers");
    };
    assert_eq!(unanswered.frame, frame);
    assert!(answered >= ANSWERS_AT_ONCE, "{answered}");
    let expected = Counters {
        verdicts: [(answer, answered), (drop, 1)].into(),
        ..Counters::default()
    };
    assert_eq!(balancer.counters()?, expected);
    Ok(())
}

/// RFC 2003 would let an encapsulator fragment these; whoever learns the size does it better.
#[test]
fn packets_that_may_be_fragmented_and_first_fragments_are_answered_too() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = of_length(&v4(Protocol::Udp), 1_484);
    for more_fragments in [false, true] {
        let packet = Packet {
            dont_fragment: false,
            more_fragments,
            ..packet.clone()
        };
        let balancer = balancer(&packet, &tunnel())?;
        let (frame, expected) = (packet.frame(), too_big(&packet, 1_480));
        assert_answered(&balancer, "UDP", &frame, &expected, Verdict::AnsweredTooBig);
        // The rest is of no use to anybody.
        assert!(balancer.fragments()?.is_empty());
    }
    Ok(())
}

/// Of a datagram whose first fragment was small enough.
#[test]
fn a_later_fragment_that_is_too_large_is_dropped() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = Packet {
        dont_fragment: false,
        more_fragments: true,
        ..v4(Protocol::Udp)
    };
    let balancer = balancer(&packet, &tunnel())?;
    assert_eq!(balancer.run(&packet.frame())?.action, XdpAction::Tx);
    let later = Packet {
        fragment_offset: 3,
        ..of_length(&packet, 1_481)
    };
    let (what, frame) = ("a later fragment", later.frame());
    assert_refused(&balancer, what, &frame, Verdict::DropTooBig);
    Ok(())
}
