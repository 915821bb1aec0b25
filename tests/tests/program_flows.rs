//! Tracked slots: which backend a packet goes to while its slot moves, what is remembered of its flow, and what is counted.

use anyhow::Result;
use lb_common::{
    backend::{BackendEntry, NextHop},
    flow_table::{FlowEntry, FlowEvent, SYN_REUSE_SECONDS},
    slot::Slot,
    verdict::Verdict,
};
use lb_tests::{
    counters::Counters,
    fixture::{NEXT_HOP, SERVICE, flow_key, ip, key, slot_number, tunnel, v4, v6},
    packet::{
        ETHERNET, Packet, Protocol, encapsulated,
        flag::{ACK, FIN, PSH, RST, SYN},
    },
    prog_run::{Balancer, XdpAction},
    require,
};
use lb_userspace::dataplane::clock;

/// Owner for old flows.
const OLD: u32 = 7;
/// Owner for new flows.
const NEW: u32 = 8;
/// A third backend.
const THIRD: u32 = 9;

const GENERATION: u32 = 40;

/// The backend with this index: its address ends in the index.
fn backend(index: u32) -> BackendEntry {
    BackendEntry {
        address: ip(&format!("10.0.1.{index}")).into(),
        generation: GENERATION + index,
        ..tunnel()
    }
}

/// A balancer with three backends and the packet's service, in which every slot is `slot`.
fn balancer(packet: &Packet, slot: Slot) -> Result<Balancer> {
    let mut balancer = Balancer::load()?;
    for index in [OLD, NEW, THIRD] {
        balancer.set_backend(index, &backend(index))?;
    }
    balancer.add_service_of_slots(key(packet, packet.to.port()), SERVICE, |_| slot)?;
    Ok(balancer)
}

/// A packet's slot on its way from [`OLD`] to [`NEW`].
fn moving(packet: &Packet) -> Result<Balancer> {
    balancer(packet, Slot::moved(NEW, OLD, false))
}

fn set_slot(balancer: &mut Balancer, packet: &Packet, slot: Slot) -> Result<()> {
    balancer.set_slot(SERVICE, slot_number(packet), slot)
}

fn tcp(flags: u8) -> Packet {
    Packet {
        flags,
        ..v4(Protocol::Tcp)
    }
}

fn with_flags(packet: &Packet, flags: u8) -> Packet {
    Packet {
        flags,
        ..packet.clone()
    }
}

/// Demands that the packet goes to this backend, byte by byte, and that these counters move and no others.
#[track_caller]
fn assert_goes(balancer: &Balancer, packet: &Packet, backend: u32, event: Option<FlowEvent>) {
    assert_goes_from(balancer, SERVICE, packet, backend, event);
}

#[track_caller]
fn assert_goes_from(
    balancer: &Balancer,
    service: u32,
    packet: &Packet,
    backend: u32,
    event: Option<FlowEvent>,
) {
    let frame = packet.frame();
    let (outcome, counters) = balancer.run_counted(&frame).unwrap();
    assert_eq!(outcome.action, XdpAction::Tx, "{packet:?}");
    let address = ip(&format!("10.0.1.{backend}"));
    let expected = encapsulated(packet, ip("10.0.0.2"), address, NEXT_HOP, 0);
    assert_eq!(outcome.frame, expected, "not to {backend}: {packet:?}");
    let forwarded = Counters::of_forwarded(service, backend, frame.len());
    let expected = match event {
        Some(event) => forwarded.with_flow(event),
        None => forwarded,
    };
    assert_eq!(counters, expected, "{packet:?}");
}

/// Demands that the packet is dropped unaltered, and that these counters move and no others.
#[track_caller]
fn assert_dropped(balancer: &Balancer, packet: &Packet, counted: Counters) {
    let frame = packet.frame();
    let (outcome, counters) = balancer.run_counted(&frame).unwrap();
    assert_eq!(outcome.action, XdpAction::Drop, "{packet:?}");
    assert_eq!(outcome.frame, frame, "altered: {packet:?}");
    assert_eq!(counters, counted, "{packet:?}");
}

/// What is known of a packet's flow.
#[track_caller]
fn entry(balancer: &Balancer, packet: &Packet) -> FlowEntry {
    balancer
        .flow(&flow_key(packet))
        .unwrap()
        .expect("the flow is known")
}

/// Changes what is known of a packet's flow.
fn spoil(balancer: &mut Balancer, packet: &Packet, spoil: impl Fn(&mut FlowEntry)) -> Result<()> {
    let mut entry = entry(balancer, packet);
    spoil(&mut entry);
    balancer.set_flow(&flow_key(packet), &entry)
}

/// Makes a packet's flow silent for so many seconds.
fn age(balancer: &mut Balancer, packet: &Packet, idle: u32) -> Result<()> {
    let now = clock::seconds(clock::monotonic());
    spoil(balancer, packet, |entry| {
        entry.seen = now.saturating_sub(idle)
    })
}

#[test]
fn a_steady_slot_uses_no_flow_table() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [v4(Protocol::Tcp), v6(Protocol::Tcp)] {
        let balancer = balancer(&packet, Slot::steady(OLD))?;
        for flags in [SYN, ACK, PSH | ACK, FIN | ACK, RST, 0] {
            let frame = with_flags(&packet, flags).frame();
            let (outcome, counters) = balancer.run_counted(&frame)?;
            assert_eq!(outcome.action, XdpAction::Tx);
            assert_eq!(counters, Counters::of_forwarded(SERVICE, OLD, frame.len()));
        }
        assert!(balancer.flows()?.is_empty());
    }
    let balancer = balancer(&v4(Protocol::Udp), Slot::steady(OLD))?;
    assert_goes(&balancer, &v4(Protocol::Udp), OLD, None);
    assert!(balancer.flows()?.is_empty());
    Ok(())
}

#[test]
fn a_syn_goes_to_the_new_owner_and_the_rest_of_its_connection_follows() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = tcp(SYN);
    let mut balancer = moving(&packet)?;
    let before = clock::seconds(clock::monotonic());
    assert_goes(&balancer, &packet, NEW, Some(FlowEvent::Recorded));
    let known = entry(&balancer, &packet);
    let expected = FlowEntry {
        backend: NEW,
        generation: GENERATION + NEW,
        service: SERVICE,
        slot: slot_number(&packet),
        seen: known.seen,
        flags: 0,
    };
    assert_eq!(known, expected);
    let after = clock::seconds(clock::monotonic());
    // The program's clock is up to a tick behind.
    assert!((before - 1..=after).contains(&known.seen), "{known:?}");

    for slot in [
        Slot::moved(NEW, OLD, false),
        Slot::moved(THIRD, OLD, true),
        Slot::tracked(THIRD),
        Slot::moved(0, 0, false),
    ] {
        set_slot(&mut balancer, &packet, slot)?;
        for flags in [ACK, PSH | ACK, SYN, SYN | ACK, 0] {
            let packet = with_flags(&packet, flags);
            assert_goes(&balancer, &packet, NEW, Some(FlowEvent::Hit));
        }
    }
    assert_eq!(balancer.flows()?.len(), 1);
    // A slot that is steady again asks nobody.
    set_slot(&mut balancer, &packet, Slot::steady(THIRD))?;
    assert_goes(&balancer, &tcp(ACK), THIRD, None);
    Ok(())
}

#[test]
fn an_established_connection_stays_with_the_old_owner_and_is_remembered() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for flags in [ACK, PSH | ACK, SYN | ACK, 0] {
        let packet = tcp(flags);
        let mut balancer = moving(&packet)?;
        assert_goes(&balancer, &packet, OLD, Some(FlowEvent::Recorded));
        assert_eq!(entry(&balancer, &packet).backend, OLD);
        // The slot is retired, and then moves on.
        for slot in [Slot::tracked(NEW), Slot::moved(THIRD, NEW, false)] {
            set_slot(&mut balancer, &packet, slot)?;
            assert_goes(&balancer, &packet, OLD, Some(FlowEvent::Hit));
        }
    }
    Ok(())
}

#[test]
fn the_end_of_an_unknown_connection_goes_to_the_old_owner_and_is_forgotten() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for flags in [FIN, FIN | ACK, RST, RST | ACK, SYN | FIN, SYN | RST] {
        let balancer = moving(&tcp(flags))?;
        assert_goes(&balancer, &tcp(flags), OLD, None);
        assert!(balancer.flows()?.is_empty(), "{flags:#x}");
    }
    Ok(())
}

#[test]
fn a_retransmitted_syn_follows_until_its_flow_has_been_silent_for_long() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = tcp(SYN);
    let mut balancer = moving(&packet)?;
    assert_goes(&balancer, &packet, NEW, Some(FlowEvent::Recorded));
    let known = entry(&balancer, &packet);
    set_slot(&mut balancer, &packet, Slot::moved(THIRD, OLD, false))?;
    let mut tests = vec![
        (0, NEW),
        (SYN_REUSE_SECONDS, NEW),
        (SYN_REUSE_SECONDS + 1, THIRD),
        (1_000, THIRD),
    ];
    while let Some((idle, backend)) = tests.pop() {
        let now = clock::seconds(clock::monotonic());
        let Some(seen) = now.checked_sub(idle) else {
            // A guest has not been up for that long.
            continue;
        };
        balancer.set_flow(&flow_key(&packet), &FlowEntry { seen, ..known })?;
        let before = balancer.counters()?;
        balancer.run(&packet.frame())?;
        let after = entry(&balancer, &packet);
        if after.seen != now {
            // A second has begun meanwhile, and it was another pause.
            tests.push((idle, backend));
            continue;
        }
        assert_eq!(
            (after.backend, after.flags),
            (backend, 0),
            "idle for {idle} s"
        );
        let event = if backend == NEW {
            FlowEvent::Hit
        } else {
            FlowEvent::Replaced
        };
        let counted = balancer.counters()?.since(&before).flows;
        assert_eq!(counted, [(event, 1)].into(), "idle for {idle} s");
    }
    // Only a SYN begins anew: a segment follows however long the pause was.
    let mut balancer = moving(&tcp(ACK))?;
    assert_goes(&balancer, &tcp(ACK), OLD, Some(FlowEvent::Recorded));
    set_slot(&mut balancer, &tcp(ACK), Slot::tracked(NEW))?;
    age(&mut balancer, &tcp(ACK), 1_000)?;
    assert_goes(&balancer, &tcp(ACK), OLD, Some(FlowEvent::Hit));
    Ok(())
}

#[test]
fn a_connection_that_has_ended_is_followed_until_its_ports_are_used_again() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for end in [FIN | ACK, RST, RST | ACK] {
        let balancer = moving(&tcp(SYN))?;
        assert_goes(&balancer, &tcp(ACK), OLD, Some(FlowEvent::Recorded));
        assert!(!entry(&balancer, &tcp(ACK)).is_closing());
        for flags in [end, ACK, end] {
            assert_goes(&balancer, &tcp(flags), OLD, Some(FlowEvent::Hit));
            assert!(entry(&balancer, &tcp(flags)).is_closing());
        }
        assert_goes(&balancer, &tcp(SYN), NEW, Some(FlowEvent::Replaced));
        let known = entry(&balancer, &tcp(SYN));
        assert_eq!((known.backend, known.flags), (NEW, 0));
        assert_goes(&balancer, &tcp(ACK), NEW, Some(FlowEvent::Hit));
    }
    Ok(())
}

#[test]
fn udp_stays_until_the_slot_is_settled() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [v4(Protocol::Udp), v6(Protocol::Udp)] {
        for (settled, owner) in [(false, OLD), (true, NEW)] {
            let mut balancer = balancer(&packet, Slot::moved(NEW, OLD, settled))?;
            let to = |backend: u32, event| -> Result<()> {
                // The IPv6 inner packet's outer header is IPv4: no flow label to expect.
                let frame = packet.frame();
                let (outcome, counters) = balancer.run_counted(&frame)?;
                let address = ip(&format!("10.0.1.{backend}"));
                let expected = encapsulated(&packet, ip("10.0.0.2"), address, NEXT_HOP, 0);
                assert_eq!(outcome.frame, expected);
                let forwarded = Counters::of_forwarded(SERVICE, backend, frame.len());
                assert_eq!(counters, forwarded.with_flow(event));
                Ok(())
            };
            to(owner, FlowEvent::Recorded)?;
            set_slot(&mut balancer, &packet, Slot::moved(NEW, OLD, !settled))?;
            assert_goes(&balancer, &packet, owner, Some(FlowEvent::Hit));
            set_slot(&mut balancer, &packet, Slot::tracked(THIRD))?;
            age(&mut balancer, &packet, 1_000)?;
            assert_goes(&balancer, &packet, owner, Some(FlowEvent::Hit));
        }
    }
    Ok(())
}

#[test]
fn tcp_does_not_care_whether_the_slot_is_settled() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (flags, owner) in [(SYN, NEW), (ACK, OLD)] {
        let balancer = balancer(&tcp(flags), Slot::moved(NEW, OLD, true))?;
        assert_goes(&balancer, &tcp(flags), owner, Some(FlowEvent::Recorded));
    }
    Ok(())
}

#[test]
fn a_lost_backend_keeps_no_flows_but_is_followed_where_it_owns_the_slot() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = tcp(ACK);
    let mut balancer = moving(&packet)?;
    assert_goes(&balancer, &packet, OLD, Some(FlowEvent::Recorded));
    let lost = BackendEntry {
        flags: BackendEntry::LOST,
        ..backend(OLD)
    };
    balancer.set_backend(OLD, &lost)?;
    assert_goes(&balancer, &packet, OLD, Some(FlowEvent::Replaced));
    set_slot(&mut balancer, &packet, Slot::tracked(NEW))?;
    assert_goes(&balancer, &packet, NEW, Some(FlowEvent::Replaced));
    // What went elsewhere stays there, though the backend may be back.
    balancer.set_backend(OLD, &backend(OLD))?;
    set_slot(&mut balancer, &packet, Slot::moved(THIRD, OLD, false))?;
    assert_goes(&balancer, &packet, NEW, Some(FlowEvent::Hit));
    set_slot(&mut balancer, &packet, Slot::steady(OLD))?;
    balancer.set_backend(OLD, &lost)?;
    assert_goes(&balancer, &packet, OLD, None);
    Ok(())
}

#[test]
fn an_entry_of_another_service_or_another_use_of_an_index_counts_for_nothing() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (what, change) in [
        (
            "service",
            (|entry| entry.service += 1) as fn(&mut FlowEntry),
        ),
        ("generation", |entry| entry.generation += 1),
        ("an unused index", |entry| entry.backend = 11),
        ("nobody", |entry| entry.backend = 0),
        ("beyond the array", |entry| entry.backend = 0xff_ffff),
        ("beyond all arrays", |entry| entry.backend = u32::MAX),
    ] {
        let packet = tcp(SYN);
        let mut balancer = moving(&packet)?;
        assert_goes(&balancer, &packet, NEW, Some(FlowEvent::Recorded));
        let good = entry(&balancer, &packet);
        spoil(&mut balancer, &packet, change)?;
        assert_goes(&balancer, &tcp(ACK), OLD, Some(FlowEvent::Replaced));
        let expected = FlowEntry {
            backend: OLD,
            generation: GENERATION + OLD,
            seen: entry(&balancer, &packet).seen,
            ..good
        };
        assert_eq!(entry(&balancer, &packet), expected, "{what}");
        spoil(&mut balancer, &packet, change)?;
        assert_goes(&balancer, &tcp(SYN), NEW, Some(FlowEvent::Replaced));
        // A last packet leaves a useless entry alone.
        spoil(&mut balancer, &packet, change)?;
        let useless = entry(&balancer, &packet);
        assert_goes(&balancer, &tcp(FIN | ACK), OLD, None);
        assert_eq!(entry(&balancer, &packet), useless, "{what}");
    }
    Ok(())
}

#[test]
fn a_slot_without_an_owner_drops_only_what_is_unknown() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let nobody = || Counters::of_verdict(Verdict::DropNoBackend);
    for (new, old, packet) in [
        (0, OLD, tcp(SYN)),
        (NEW, 0, tcp(ACK)),
        (NEW, 0, tcp(FIN)),
        (NEW, 0, v4(Protocol::Udp)),
        (0, 0, v6(Protocol::Udp)),
    ] {
        let balancer = balancer(&packet, Slot::moved(new, old, false))?;
        assert_dropped(&balancer, &packet, nobody());
        assert!(balancer.flows()?.is_empty());
    }
    let mut balancer = moving(&tcp(ACK))?;
    assert_goes(&balancer, &tcp(ACK), OLD, Some(FlowEvent::Recorded));
    set_slot(&mut balancer, &tcp(ACK), Slot::tracked(0))?;
    assert_goes(&balancer, &tcp(ACK), OLD, Some(FlowEvent::Hit));
    let other = Packet {
        from: "198.51.100.9:40001".parse()?,
        ..tcp(ACK)
    };
    set_slot(&mut balancer, &other, Slot::tracked(0))?;
    assert_dropped(&balancer, &other, nobody());
    Ok(())
}

#[test]
fn a_followed_backend_is_subject_to_every_other_reason_to_drop() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = tcp(ACK);
    let mut balancer = moving(&packet)?;
    let unresolved = BackendEntry {
        next_hop: NextHop::default(),
        ..backend(OLD)
    };
    balancer.set_backend(OLD, &unresolved)?;
    let dropped = Counters::of_verdict(Verdict::DropNoNextHop);
    assert_dropped(
        &balancer,
        &packet,
        dropped.clone().with_flow(FlowEvent::Recorded),
    );
    assert_dropped(&balancer, &packet, dropped.with_flow(FlowEvent::Hit));
    balancer.set_backend(OLD, &backend(OLD))?;
    assert_goes(&balancer, &packet, OLD, Some(FlowEvent::Hit));

    // Maps that contradict each other: the owner's entry is not in use, or not there.
    for owner in [12, 0xff_ffff] {
        let packet = tcp(SYN);
        let mut balancer = moving(&packet)?;
        set_slot(&mut balancer, &packet, Slot::moved(owner, OLD, false))?;
        let bad = Counters::of_verdict(Verdict::DropBadState);
        assert_dropped(&balancer, &packet, bad);
        assert!(balancer.flows()?.is_empty());
    }
    Ok(())
}

#[test]
fn ipv6_and_any_port_services_are_tracked_likewise() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [v4(Protocol::Tcp), v6(Protocol::Tcp)] {
        let mut balancer = moving(&packet)?;
        let any = SERVICE + 1;
        let moved = Slot::moved(THIRD, NEW, false);
        balancer.add_service_of_slots(key(&packet, 0), any, |_| moved)?;
        // The exact port's service and the other are told apart, and so are two ports of the same service.
        for (port, service, owner) in [(443, SERVICE, OLD), (80, any, NEW), (81, any, NEW)] {
            let mut packet = packet.clone();
            packet.to.set_port(port);
            let recorded = Some(FlowEvent::Recorded);
            assert_goes_from(&balancer, service, &packet, owner, recorded);
            let known = entry(&balancer, &packet);
            assert_eq!(
                (known.service, known.slot, known.backend),
                (service, slot_number(&packet), owner)
            );
        }
        assert_eq!(balancer.flows()?.len(), 3);
        for slot in [Slot::tracked(THIRD), Slot::tracked(OLD)] {
            let mut packet = packet.clone();
            packet.to.set_port(81);
            balancer.set_slot(any, slot_number(&packet), slot)?;
            assert_goes_from(&balancer, any, &packet, NEW, Some(FlowEvent::Hit));
        }
        // A service that is taken out of the any-port one's range takes its flows for its own.
        let mut packet = packet.clone();
        packet.to.set_port(80);
        balancer.add_service_of_slots(key(&packet, 80), SERVICE + 2, |_| Slot::tracked(OLD))?;
        let replaced = Some(FlowEvent::Replaced);
        assert_goes_from(&balancer, SERVICE + 2, &packet, OLD, replaced);
    }
    Ok(())
}

#[test]
fn every_part_of_the_tuple_tells_flows_apart() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = tcp(ACK);
    let mut balancer = Balancer::load()?;
    balancer.set_backend(OLD, &backend(OLD))?;
    let mut seen = 0;
    for (service, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp)] {
        for to in ["203.0.113.1:443", "203.0.113.2:443", "203.0.113.1:444"] {
            for from in ["198.51.100.9:40000", "198.51.100.8:40000", "198.51.100.9:1"] {
                let packet = Packet {
                    protocol,
                    from: from.parse()?,
                    to: to.parse()?,
                    ..packet.clone()
                };
                let key = key(&packet, packet.to.port());
                balancer.add_service_of_slots(key, service, |_| Slot::tracked(OLD))?;
                let recorded = Some(FlowEvent::Recorded);
                assert_goes_from(&balancer, service, &packet, OLD, recorded);
                seen += 1;
                assert_eq!(balancer.flows()?.len(), seen);
                assert!(balancer.flow(&flow_key(&packet))?.is_some());
            }
        }
    }
    Ok(())
}

/// TCP cut off before its flags, with or without padding that looks like a SYN, counts as a segment.
#[test]
fn tcp_without_flags_is_like_a_segment() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (length, padded) in [(4, false), (12, true), (13, true), (13, false)] {
        let balancer = moving(&tcp(SYN))?;
        let mut frame = tcp(SYN).frame();
        frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&(20 + length as u16).to_be_bytes());
        if !padded {
            frame.truncate(ETHERNET + 20 + length);
        }
        let (outcome, counters) = balancer.run_counted(&frame)?;
        assert_eq!(outcome.action, XdpAction::Tx);
        let forwarded = Counters::of_forwarded(SERVICE, OLD, frame.len());
        assert_eq!(
            counters,
            forwarded.with_flow(FlowEvent::Recorded),
            "{length}"
        );
    }
    // One byte more and the flags are there.
    let balancer = moving(&tcp(SYN))?;
    let mut frame = tcp(SYN).frame();
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&34_u16.to_be_bytes());
    let (_, counters) = balancer.run_counted(&frame)?;
    assert_eq!(
        counters,
        Counters::of_forwarded(SERVICE, NEW, frame.len()).with_flow(FlowEvent::Recorded)
    );
    Ok(())
}
