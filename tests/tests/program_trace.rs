//! The program that looks on: it does with every packet what the plain one does, says what each stage found, and when
//! it explains leaves no other mark.

use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode},
    flow_table::{FlowEntry, FlowEvent, PacketKind},
    slot::Slot,
    trace::{EXPLAIN, Event, Filter, OFF, Record, SNAP, TRACE},
    verdict::Verdict,
};
use lb_tests::{
    fixture::{
        BACKEND, SERVICE, backend, flow_hash, flow_key, ip, key, slot_number, tunnel, v4, v6,
    },
    packet::{Packet, Protocol, flag},
    prog_run::{Balancer, INTERFACE, XdpAction},
    require,
};

/// Owner of old flows.
const OLD: u32 = BACKEND + 1;

const ALL: Filter = Filter {
    source: Address([0; 4]),
    mask: Address([0; 4]),
    verdicts: u64::MAX,
    service: Filter::ANY_SERVICE,
    sample: 1,
    limit: 1_000,
    zero: 0,
};

/// A balancer of this form: the packets' services are moved from [`OLD`] to [`BACKEND`], or steady.
fn balancer(form: u32, is_moved: bool) -> Result<Balancer> {
    let mut balancer = Balancer::looking(form)?;
    balancer.set_filter(&ALL)?;
    balancer.set_backend(BACKEND, &tunnel())?;
    let old = BackendEntry {
        address: Address::from(ip("10.0.1.8")),
        ..tunnel()
    };
    balancer.set_backend(OLD, &old)?;
    let slot = if is_moved {
        Slot::moved(BACKEND, OLD, false)
    } else {
        Slot::steady(BACKEND)
    };
    let packets = Protocol::ALL
        .map(|protocol| [v4(protocol), v6(protocol)])
        .concat();
    for (index, packet) in (SERVICE..).zip(&packets) {
        balancer.add_service_of_slots(key(packet, 443), index, |_| slot)?;
    }
    Ok(balancer)
}

fn syn() -> Packet {
    let mut packet = v4(Protocol::Tcp);
    // A flow of its own: one that another packet has had recorded would go where that one went.
    packet.from.set_port(40_001);
    Packet {
        flags: flag::SYN,
        ..packet
    }
}

/// Frames with many different verdicts, each with what it is.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let other = Packet::new(Protocol::Tcp, "198.51.100.9:40000", "203.0.113.1:80", 10);
    let large = Packet {
        payload: vec![7; 1_470],
        ..v4(Protocol::Udp)
    };
    let fragment = Packet {
        fragment_offset: 10,
        ..v4(Protocol::Udp)
    };
    let ping = Packet {
        icmp: Some(vec![8, 0, 0, 0, 0, 1, 0, 1]),
        ..v4(Protocol::Tcp)
    };
    let mut arp = v4(Protocol::Tcp).frame();
    arp[12..14].copy_from_slice(&[8, 6]);
    vec![
        ("TCP over IPv4", v4(Protocol::Tcp).frame()),
        ("a SYN", syn().frame()),
        ("UDP over IPv6", v6(Protocol::Udp).frame()),
        ("no service", other.frame()),
        ("too large", large.frame()),
        ("a later fragment alone", fragment.frame()),
        ("a ping", ping.frame()),
        ("ARP", arp),
        ("14 bytes", v4(Protocol::Tcp).frame()[..14].to_vec()),
    ]
}

fn one(balancer: &mut Balancer, frame: &[u8]) -> Result<Event> {
    balancer.run(frame)?;
    let [event] = balancer.events()?[..] else {
        panic!("not one event");
    };
    Ok(event)
}

#[test]
fn every_form_does_the_same_with_every_packet() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for is_moved in [false, true] {
        let plain = balancer(OFF, is_moved)?;
        let mut looking = [balancer(TRACE, is_moved)?, balancer(EXPLAIN, is_moved)?];
        for (what, frame) in frames() {
            let expected = plain.run(&frame)?;
            for balancer in &mut looking {
                assert_eq!(balancer.run(&frame)?, expected, "{what}");
                let [event] = balancer.events()?[..] else {
                    panic!("{what}: not one event");
                };
                let length = frame.len().min(SNAP);
                assert_eq!(event.before[..length], frame[..length], "{what}");
                assert_eq!(event.record.length_in as usize, frame.len(), "{what}");
                if expected.action == XdpAction::Tx {
                    let length = expected.frame.len().min(SNAP);
                    assert_eq!(event.after[..length], expected.frame[..length], "{what}");
                    assert_eq!(event.record.length_out as usize, expected.frame.len());
                } else {
                    assert_eq!(event.record.length_out, 0, "{what}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_plain_form_records_nothing() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let mut plain = balancer(OFF, true)?;
    for (_, frame) in frames() {
        plain.run(&frame)?;
    }
    assert_eq!(plain.events()?, []);
    Ok(())
}

/// The whole record of a packet of a moved slot, and of one that comes to no stage.
#[test]
fn a_record_says_what_each_stage_found() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let mut explaining = balancer(EXPLAIN, true)?;
    let (packet, slot) = (syn(), Slot::moved(BACKEND, OLD, false));
    let record = one(&mut explaining, &packet.frame())?.record;
    let frame = packet.frame().len() as u32;
    let expected = Record {
        time: record.time,
        hash: flow_hash(&packet),
        slot: slot.0,
        source: Address::from(packet.from.ip()),
        destination: Address::from(packet.to.ip()),
        entry: FlowEntry::default(),
        stages: Record::IP
            | Record::FLOW
            | Record::SERVICE
            | Record::SLOT
            | Record::LOOKED_UP
            | Record::BACKEND,
        verdict: Verdict::Forwarded as u32,
        interface: INTERFACE,
        service: SERVICE,
        backend: BACKEND,
        length_in: frame,
        length_out: frame + 20,
        source_port: packet.from.port().to_be(),
        destination_port: packet.to.port().to_be(),
        ip_length: frame as u16 - 14,
        protocol: 6,
        is_error: 0,
        kind: PacketKind::TcpSyn as u8 + 1,
        flow_event: 0,
        zero: 0,
        second: 0,
        zero2: 0,
    };
    assert_eq!(record, expected);
    assert!(record.time > 0);

    let entry = FlowEntry {
        backend: OLD,
        generation: 0,
        service: SERVICE,
        slot: slot_number(&packet),
        seen: (record.time / 1_000_000_000) as u32 - 3,
        flags: 0,
    };
    explaining.set_flow(&flow_key(&packet), &entry)?;
    let known = one(&mut explaining, &packet.frame())?.record;
    let expected = Record {
        time: known.time,
        entry,
        stages: expected.stages | Record::ENTRY,
        backend: OLD,
        flow_event: FlowEvent::Hit as u8 + 1,
        ..expected
    };
    assert_eq!(known, expected);

    let arp = frames()
        .into_iter()
        .find(|(what, _)| *what == "ARP")
        .unwrap()
        .1;
    let record = one(&mut explaining, &arp)?.record;
    let expected = Record {
        time: record.time,
        verdict: Verdict::PassNotIp as u32,
        interface: INTERFACE,
        length_in: arp.len() as u32,
        ..Record::default()
    };
    assert_eq!(record, expected);
    Ok(())
}

/// Whatever the packet and whatever is known of its flow: the flow table stays as it is, to the bit.
#[test]
fn explaining_changes_nothing_in_the_flow_table() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for flags in [flag::SYN, flag::ACK, flag::FIN | flag::ACK, flag::RST] {
        let packet = Packet {
            flags,
            ..v4(Protocol::Tcp)
        };
        let mut explaining = balancer(EXPLAIN, true)?;
        let mut tracing = balancer(TRACE, true)?;
        for balancer in [&mut explaining, &mut tracing] {
            balancer.run(&packet.frame())?;
        }
        assert!(explaining.flows()?.is_empty(), "{flags:#x}");
        let is_recorded = flags & (flag::FIN | flag::RST) == 0;
        assert_eq!(
            tracing.flows()?.len(),
            usize::from(is_recorded),
            "{flags:#x}"
        );
        let entry = FlowEntry {
            backend: OLD,
            service: SERVICE,
            slot: slot_number(&packet),
            seen: 1,
            ..FlowEntry::default()
        };
        for balancer in [&mut explaining, &mut tracing] {
            balancer.set_flow(&flow_key(&packet), &entry)?;
            balancer.run(&packet.frame())?;
        }
        assert_eq!(
            explaining.flow(&flow_key(&packet))?,
            Some(entry),
            "{flags:#x}"
        );
        assert_ne!(tracing.flow(&flow_key(&packet))?, Some(entry), "{flags:#x}");
    }
    Ok(())
}

#[test]
fn a_filter_lets_through_what_it_names() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let drops = Filter {
        verdicts: 1 << Verdict::DropTooBig as u32 | 1 << Verdict::DropFragment as u32,
        ..ALL
    };
    let client = Filter {
        source: Address::from(ip("198.51.100.0")),
        mask: Address([
            u32::MAX,
            u32::MAX,
            u32::MAX,
            u32::from_ne_bytes([255, 255, 255, 0]),
        ]),
        ..ALL
    };
    let nobody = Filter {
        source: Address::from(ip("198.51.101.0")),
        ..client
    };
    let service = Filter {
        service: SERVICE,
        ..ALL
    };
    for (what, filter, expected) in [
        ("all", ALL, vec![0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("drops", drops, vec![5]),
        ("a prefix", client, vec![0, 1, 3, 4, 5, 6]),
        ("another prefix", nobody, vec![]),
        ("a service", service, vec![0, 1]),
        ("no verdict", Filter { verdicts: 0, ..ALL }, vec![]),
    ] {
        let mut balancer = balancer(TRACE, false)?;
        balancer.set_filter(&filter)?;
        let mut seen = Vec::new();
        for (number, (_, frame)) in frames().iter().enumerate() {
            balancer.run(frame)?;
            seen.extend(balancer.events()?.iter().map(|_| number));
        }
        assert_eq!(seen, expected, "{what}");
        assert_eq!(balancer.lost_events()?, 0, "{what}");
    }
    Ok(())
}

/// Sampling takes about one in so many; the limit and a full ring buffer lose the rest, which is counted.
#[test]
fn events_are_sampled_and_limited() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let frame = v4(Protocol::Udp).frame();
    let mut balancer = balancer(TRACE, false)?;
    balancer.set_filter(&Filter {
        sample: 8,
        limit: u32::MAX,
        ..ALL
    })?;
    let mut sampled = 0;
    for _ in 0..4_000 {
        balancer.run(&frame)?;
        sampled += balancer.events()?.len();
    }
    // 500 expected, with a deviation of 21.
    assert!((350..650).contains(&sampled), "{sampled}");
    assert_eq!(balancer.lost_events()?, 0);

    // The ring buffer holds less than 100.
    balancer.set_filter(&Filter {
        limit: u32::MAX,
        ..ALL
    })?;
    for _ in 0..200 {
        balancer.run(&frame)?;
    }
    let held = balancer.events()?.len() as u64;
    assert!((60..120).contains(&held), "{held}");
    assert_eq!(balancer.lost_events()?, 200 - held);

    balancer.set_filter(&Filter { limit: 0, ..ALL })?;
    balancer.run(&frame)?;
    assert_eq!(balancer.events()?, []);
    assert_eq!(balancer.lost_events()?, 200 - held + 1);
    Ok(())
}

/// In mode `l2` the frame keeps its length.
#[test]
fn both_sides_of_a_rewrite_are_recorded() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let mut balancer = balancer(TRACE, false)?;
    balancer.set_backend(BACKEND, &backend(Mode::L2, "0.0.0.0", "10.0.1.7"))?;
    let frame = v4(Protocol::Tcp).frame();
    let event = one(&mut balancer, &frame)?;
    assert_eq!(event.record.length_out as usize, frame.len());
    assert_eq!(event.after[6..12], event.before[..6]);
    assert_eq!(event.after[12..frame.len()], event.before[12..frame.len()]);
    Ok(())
}
