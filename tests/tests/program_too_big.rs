//! What is too large once encapsulated is answered with the size that fits, from the address that it was sent to.

use anyhow::Result;
use lb_common::{
    backend::{BackendEntry, Mode},
    rate::ANSWERS_AT_ONCE,
    verdict::Verdict,
};
use lb_tests::{
    counters::Counters,
    fixture::{assert_answered, assert_refused, backend, balancer, tunnel, v4, v6},
    fixtures::answer::{self, of_length},
    packet::{Packet, Protocol, VLAN},
    prog_run::XdpAction,
    require,
};

/// A client's packets, over both families and protocols, with IP packets of this many bytes.
fn packets(length: usize) -> impl Iterator<Item = Packet> {
    Protocol::ALL.into_iter().flat_map(move |protocol| {
        [v4(protocol), v6(protocol)].map(|packet| of_length(&packet, length))
    })
}

#[track_caller]
fn assert_told(entry: &BackendEntry, packet: &Packet, mtu: u16) {
    let balancer = balancer(packet, entry).expect("it loads");
    let (frame, expected) = (packet.frame(), answer::too_big(packet, mtu));
    let what = format!("{} to {}, {} bytes", packet.from, packet.to, frame.len());
    let verdict = Verdict::AnsweredTooBig;
    assert_answered(&balancer, &what, &frame, &expected, verdict);
}

#[test]
fn the_sender_is_told_the_size_that_fits_every_mode() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (mode, source, address, mtu) in [
        (Mode::L2, "0.0.0.0", "10.0.1.7", 1_500),
        (Mode::Ipip, "10.0.0.2", "10.0.1.7", 1_480),
        (Mode::Ipip, "fd00::2", "fd00:1::7", 1_460),
    ] {
        let entry = backend(mode, source, address);
        for packet in packets(usize::from(mtu) + 1) {
            assert_told(&entry, &packet, mtu);
        }
        // What it says is true.
        for packet in packets(mtu.into()) {
            let balancer = balancer(&packet, &entry)?;
            assert_eq!(balancer.run(&packet.frame())?.action, XdpAction::Tx);
            let forwarded = balancer.counters()?.verdicts;
            assert_eq!(forwarded, [(Verdict::Forwarded, 1)].into());
        }
    }
    Ok(())
}

#[test]
fn tags_options_extension_headers_and_padding() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets(1_481) {
        for tags in 0..=2 {
            let packet = Packet {
                tags: vec![(VLAN, 9), (VLAN, 0xe00a)][..tags].to_vec(),
                options: vec![1; 12 * tags],
                extensions: vec![(60, vec![0, 0, 1, 4, 0, 0, 0, 0]); tags],
                padding: tags,
                traffic_class: 0xb9,
                ..packet.clone()
            };
            assert_told(&tunnel(), &of_length(&packet, 1_481), 1_480);
        }
    }
    Ok(())
}

#[test]
fn quotes_have_what_there_is_in_whole_steps() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (v4_length, v6_length) in [
        (500, 500),
        (501, 1_001),
        (547, 1_231),
        (548, 1_232),
        (549, 1_233),
        (1_481, 1_481),
        (3_000, 3_000),
    ] {
        let packet4 = of_length(&v4(Protocol::Udp), v4_length);
        let packet6 = of_length(&v6(Protocol::Udp), v6_length);
        for (packet, mtu) in [(packet4, 400), (packet6, 400)] {
            let entry = BackendEntry {
                mtu: mtu + 20,
                ..tunnel()
            };
            assert_told(&entry, &packet, mtu);
        }
    }
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
        let expected = answer::too_big(&packet, 1_480);
        let verdict = Verdict::AnsweredTooBig;
        assert_answered(&balancer, "UDP", &packet.frame(), &expected, verdict);
        // The rest is of no use to anybody.
        assert!(balancer.fragments()?.is_empty());
    }
    Ok(())
}

#[test]
fn what_must_not_be_answered_is_dropped() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let four = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ];
    let six = ["::", "::1", "ff02::1", "::ffff:192.0.2.1"];
    for (packet, sources) in [
        (v4(Protocol::Tcp), &four[..]),
        (v6(Protocol::Udp), &six[..]),
    ] {
        let packet = of_length(&packet, 1_481);
        let balancer = balancer(&packet, &tunnel())?;
        for source in sources {
            let mut packet = packet.clone();
            packet.from.set_ip(source.parse()?);
            let frame = packet.frame();
            assert_refused(&balancer, source, &frame, Verdict::DropTooBig);
        }
        let mut frame = packet.frame();
        for group in [[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1]] {
            frame[..6].copy_from_slice(&group);
            assert_refused(&balancer, "to a group", &frame, Verdict::DropTooBig);
        }
    }
    // A later fragment, of a datagram whose first one was small enough.
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
    assert_refused(
        &balancer,
        "a later fragment",
        &later.frame(),
        Verdict::DropTooBig,
    );
    Ok(())
}

/// Each CPU has a bucket of answers that fills slowly.
#[test]
fn answers_are_bounded() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = of_length(&v4(Protocol::Udp), 1_481);
    let balancer = balancer(&packet, &tunnel())?;
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
        verdicts: [
            (Verdict::AnsweredTooBig, answered),
            (Verdict::DropTooBig, 1),
        ]
        .into(),
        ..Counters::default()
    };
    assert_eq!(balancer.counters()?, expected);
    Ok(())
}
