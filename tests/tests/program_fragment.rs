//! Fragments: the first goes where a whole packet would, the later ones of its datagram follow it, and nothing else does.

use anyhow::Result;
use lb_common::{
    backend::{BackendEntry, Mode, NextHop},
    flow_table::FlowEvent,
    fragment::{FragmentEntry, FragmentKey},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
    verdict::Verdict,
};
use lb_tests::{
    counters::Counters,
    fixture::{
        BACKEND, NEXT_HOP, SERVICE, assert_forwarded, assert_refused, backend, balancer, flow_hash,
        ip, key, slot_number, tunnel, v4, v6,
    },
    packet::{ETHERNET, Packet, Protocol, VLAN, encapsulated},
    prog_run::{Balancer, XdpAction},
    require,
};
use lb_userspace::dataplane::clock;

/// Protocol numbers of IPv6 extension headers.
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Identification of the datagrams, in network byte order as it lies in the packet.
const ID: [u8; 4] = [0xab, 0xcd, 0x12, 0x34];

/// A client's datagrams and segments, over both families.
fn packets() -> impl Iterator<Item = Packet> {
    Protocol::ALL
        .into_iter()
        .flat_map(|protocol| [v4(protocol), v6(protocol)])
}

/// A fragment of `packet` at this offset, in units of 8 bytes. What a later one holds is not what was cut: no balancer looks
/// at it, and it would show if one took it for ports.
fn fragment(packet: &Packet, offset: u16, more: bool) -> Packet {
    let mut fragment = packet.clone();
    if offset > 0 {
        fragment.from.set_port(9);
        fragment.to.set_port(9);
    }
    if packet.from.is_ipv4() {
        fragment.dont_fragment = false;
        (fragment.more_fragments, fragment.fragment_offset) = (more, offset);
        fragment.id = u16::from_be_bytes([ID[2], ID[3]]);
    } else {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        let header = [&[0, 0xff, high, low], &ID[..]].concat();
        fragment.extensions.insert(0, (FRAGMENT, header));
    }
    fragment
}

fn first(packet: &Packet) -> Packet {
    fragment(packet, 0, true)
}

fn later(packet: &Packet) -> Packet {
    fragment(packet, 13, true)
}

fn last(packet: &Packet) -> Packet {
    fragment(packet, 0x1fff, false)
}

/// The key of a packet's fragments.
fn fragment_key(packet: &Packet) -> FragmentKey {
    let is_v4 = packet.from.is_ipv4();
    let id = if is_v4 {
        u32::from(u16::from_ne_bytes([ID[2], ID[3]]))
    } else {
        u32::from_ne_bytes(ID)
    };
    FragmentKey {
        source: packet.from.ip().into(),
        destination: packet.to.ip().into(),
        id,
        protocol: if is_v4 {
            packet.protocol.number().0.into()
        } else {
            0
        },
    }
}

/// CLOCK_MONOTONIC in seconds.
fn now() -> u32 {
    clock::seconds(clock::monotonic())
}

/// Demands that the fragments of `packet` are forwarded through an IPv4 tunnel to the backend that [`tunnel`] is.
#[track_caller]
fn assert_tunnelled(balancer: &Balancer, fragment: &Packet) {
    let expected = encapsulated(fragment, ip("10.0.0.2"), ip("10.0.1.7"), NEXT_HOP, 0);
    assert_forwarded(balancer, fragment, &expected);
}

#[track_caller]
fn assert_lost(balancer: &Balancer, what: &str, packet: &Packet) {
    for fragment in [later(packet), last(packet)] {
        assert_refused(balancer, what, &fragment.frame(), Verdict::DropFragment);
    }
}

#[track_caller]
fn assert_passed(balancer: &Balancer, what: &str, packet: &Packet) {
    for fragment in [later(packet), last(packet)] {
        assert_refused(balancer, what, &fragment.frame(), Verdict::PassFragment);
    }
}

#[test]
fn later_fragments_go_where_the_first_went_in_every_mode() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        for tags in 0..=2 {
            let packet = Packet {
                tags: vec![(VLAN, 9); tags],
                traffic_class: 0xb9,
                ..packet.clone()
            };
            let l2 = balancer(&packet, &backend(Mode::L2, "0.0.0.0", "10.0.1.7"))?;
            for fragment in [first(&packet), later(&packet), last(&packet)] {
                assert_forwarded(&l2, &fragment, &fragment.readdressed(NEXT_HOP));
            }
            for (source, address) in [("10.0.0.2", "10.0.1.7"), ("fd00::2", "fd00:1::7")] {
                let tunnel = balancer(&packet, &backend(Mode::Ipip, source, address))?;
                // All have the same flow label, so that none overtakes another.
                let label = (flow_hash(&packet) >> 44) as u32;
                for fragment in [first(&packet), later(&packet), last(&packet)] {
                    let (source, address) = (ip(source), ip(address));
                    let expected = encapsulated(&fragment, source, address, NEXT_HOP, label);
                    assert_forwarded(&tunnel, &fragment, &expected);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_first_fragment_leaves_one_entry_and_nothing_else_does() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let entry = BackendEntry {
            generation: 77,
            ..tunnel()
        };
        let balancer = balancer(&packet, &entry)?;
        assert_tunnelled(&balancer, &packet);
        assert!(balancer.fragments()?.is_empty(), "a whole packet");
        assert_lost(&balancer, "no first fragment", &packet);
        assert!(balancer.fragments()?.is_empty(), "a later fragment");

        let before = now();
        assert_tunnelled(&balancer, &first(&packet));
        let fragments = balancer.fragments()?;
        let (key, entry) = fragments.iter().next().expect("an entry");
        let expected = FragmentEntry {
            hash: flow_hash(&packet),
            backend: BACKEND,
            generation: 77,
            service: SERVICE,
            seen: entry.seen,
        };
        assert_eq!((key, entry), (&fragment_key(&packet), &expected));
        // The program's clock is a tick behind.
        assert!((before - 1..=now()).contains(&entry.seen), "{before}");
        assert_tunnelled(&balancer, &last(&packet));
        assert_eq!(balancer.fragments()?, fragments);
    }
    Ok(())
}

#[test]
fn everything_that_tells_datagrams_apart_does() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let mut balancer = balancer(&packet, &tunnel())?;
        let other_vip = Packet {
            to: if packet.from.is_ipv4() {
                "203.0.113.2:443".parse()?
            } else {
                "[2001:db8:f::2]:443".parse()?
            },
            ..packet.clone()
        };
        balancer.add_service(key(&other_vip, 443), SERVICE + 1, |_| BACKEND)?;
        assert_tunnelled(&balancer, &first(&packet));
        assert_lost(&balancer, "another destination", &other_vip);
        let mut other_source = packet.clone();
        other_source.from.set_ip(if packet.from.is_ipv4() {
            ip("198.51.100.8")
        } else {
            ip("2001:db8:c::8")
        });
        assert_lost(&balancer, "another source", &other_source);
        let mut other_id = later(&packet);
        other_id.id ^= 1;
        for byte in 4..8 {
            let mut other_id = other_id.clone();
            if let Some((_, header)) = other_id.extensions.first_mut() {
                header[byte] ^= 1;
            }
            let frame = other_id.frame();
            assert_refused(&balancer, "another id", &frame, Verdict::DropFragment);
        }
        let other_protocol = Packet {
            protocol: match packet.protocol {
                Protocol::Tcp => Protocol::Udp,
                Protocol::Udp => Protocol::Tcp,
            },
            ..packet.clone()
        };
        if packet.from.is_ipv4() {
            assert_lost(&balancer, "another protocol", &other_protocol);
        } else {
            // RFC 8200 does not ask for it.
            assert_tunnelled(&balancer, &later(&other_protocol));
        }
        assert_tunnelled(&balancer, &later(&packet));
    }
    Ok(())
}

/// Only the first of an IPv6 datagram shows what is behind extension headers that are cut up with it.
#[test]
fn extension_headers_in_the_fragmented_part() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v6(Protocol::Udp);
    let balancer = balancer(&packet, &tunnel())?;
    let options = (DESTINATION_OPTIONS, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let with_options = |mut fragment: Packet| {
        fragment.extensions.push(options.clone());
        fragment
    };
    let frame = with_options(later(&packet)).frame();
    assert_refused(&balancer, "no first", &frame, Verdict::DropFragment);
    assert_tunnelled(&balancer, &with_options(first(&packet)));
    assert_tunnelled(&balancer, &with_options(later(&packet)));
    assert_tunnelled(&balancer, &with_options(last(&packet)));
    let mut elsewhere = with_options(later(&packet));
    elsewhere.to = "[2001:db8:f::2]:9".parse()?;
    let frame = elsewhere.frame();
    assert_refused(&balancer, "elsewhere", &frame, Verdict::PassFragment);
    Ok(())
}

#[test]
fn later_fragments_without_the_first_are_dropped_for_a_services_address_only() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        for port in [443, 0] {
            let mut balancer = Balancer::load()?;
            balancer.set_backend(BACKEND, &tunnel())?;
            balancer.add_service(key(&packet, port), SERVICE, |_| BACKEND)?;
            assert_lost(&balancer, "a service's address", &packet);
            let mut other = packet.clone();
            other.to.set_ip(if packet.from.is_ipv4() {
                ip("203.0.113.2")
            } else {
                ip("2001:db8:f::2")
            });
            assert_passed(&balancer, "another address", &other);
            let frame = first(&other).frame();
            assert_refused(&balancer, "a first one", &frame, Verdict::PassFragment);
            assert!(balancer.fragments()?.is_empty());

            // An address that is no service's any more is none of our business, whatever is known.
            assert_tunnelled(&balancer, &first(&packet));
            balancer.remove_service(key(&packet, port))?;
            assert_tunnelled(&balancer, &later(&packet));
            balancer.remove_service(ServiceKey::of_address(packet.to.ip().into()))?;
            assert_passed(&balancer, "a removed service", &packet);
        }
    }
    Ok(())
}

/// Another program on this host may use the other ports of the address.
#[test]
fn datagrams_for_ports_of_no_service_pass_whole() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let balancer = balancer(&packet, &tunnel())?;
        let mut other = packet.clone();
        other.to.set_port(444);
        let frame = first(&other).frame();
        assert_refused(&balancer, "another port", &frame, Verdict::PassFragment);
        assert_passed(&balancer, "another port", &other);
        let nobody: Vec<_> = balancer.fragments()?.into_values().collect();
        let expected = FragmentEntry {
            seen: nobody[0].seen,
            ..FragmentEntry::default()
        };
        assert_eq!(nobody, [expected]);
        // The same identification again, for the service.
        assert_tunnelled(&balancer, &first(&packet));
        assert_tunnelled(&balancer, &later(&packet));
    }
    Ok(())
}

#[test]
fn entries_count_for_thirty_seconds() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let mut balancer = balancer(&packet, &tunnel())?;
        for (age, known) in [(0, true), (28, true), (32, false), (100_000, false)] {
            let entry = FragmentEntry {
                backend: BACKEND,
                service: SERVICE,
                seen: now().saturating_sub(age),
                ..FragmentEntry::default()
            };
            balancer.set_fragment(&fragment_key(&packet), &entry)?;
            if known {
                assert_tunnelled(&balancer, &later(&packet));
            } else {
                assert_lost(&balancer, &format!("{age} s"), &packet);
            }
        }
        // The identification is used again.
        assert_tunnelled(&balancer, &first(&packet));
        assert_tunnelled(&balancer, &later(&packet));
    }
    Ok(())
}

#[test]
fn fragments_follow_into_no_other_use_of_an_index() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Udp);
    let mut balancer = balancer(&packet, &tunnel())?;
    let set = |balancer: &mut Balancer, entry: BackendEntry| {
        balancer.set_backend(BACKEND, &entry).expect("it is set");
    };
    assert_tunnelled(&balancer, &first(&packet));
    let next = BackendEntry {
        generation: 1,
        ..tunnel()
    };
    for (what, entry) in [("another", next), ("unused", BackendEntry::default())] {
        set(&mut balancer, entry);
        assert_lost(&balancer, what, &packet);
    }
    // Its flows are given up, but this datagram can become whole nowhere else.
    let lost = BackendEntry {
        flags: BackendEntry::LOST,
        ..tunnel()
    };
    set(&mut balancer, lost);
    assert_tunnelled(&balancer, &later(&packet));
    let unresolved = BackendEntry {
        next_hop: NextHop::default(),
        ..tunnel()
    };
    set(&mut balancer, unresolved);
    let frame = later(&packet).frame();
    assert_refused(&balancer, "unresolved", &frame, Verdict::DropNoNextHop);
    set(&mut balancer, tunnel());
    for nobody in [BACKEND + 1, 0xff_ffff, u32::MAX] {
        let entry = FragmentEntry {
            backend: nobody,
            seen: now(),
            ..FragmentEntry::default()
        };
        balancer.set_fragment(&fragment_key(&packet), &entry)?;
        assert_lost(&balancer, "nobody", &packet);
    }
    Ok(())
}

#[test]
fn first_fragments_that_are_not_forwarded_leave_no_entry() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let unresolved = BackendEntry {
            next_hop: NextHop::default(),
            ..tunnel()
        };
        let mut balancer = balancer(&packet, &unresolved)?;
        let frame = first(&packet).frame();
        assert_refused(&balancer, "unresolved", &frame, Verdict::DropNoNextHop);
        balancer.add_service(key(&packet, 443), SERVICE, |_| 0)?;
        assert_refused(&balancer, "nobody", &frame, Verdict::DropNoBackend);
        assert!(balancer.fragments()?.is_empty());
        assert_lost(&balancer, "after a drop", &packet);
    }
    Ok(())
}

#[test]
fn first_fragments_without_their_ports() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in packets() {
        let balancer = balancer(&packet, &tunnel())?;
        let mut other = packet.clone();
        other.to.set_ip(if packet.from.is_ipv4() {
            ip("203.0.113.2")
        } else {
            ip("2001:db8:f::2")
        });
        for (packet, verdict) in [
            (&packet, Verdict::DropShortFragment),
            (&other, Verdict::PassFragment),
        ] {
            for bytes in 0..4_u16 {
                let mut frame = first(packet).frame();
                let (field, header) = if packet.from.is_ipv4() {
                    (2, 20)
                } else {
                    (4, 8)
                };
                frame[ETHERNET + field..][..2].copy_from_slice(&(header + bytes).to_be_bytes());
                let what = format!("{bytes} bytes");
                // What follows the IP packet is padding, there or not.
                assert_refused(&balancer, &what, &frame, verdict);
                let l4 = if packet.from.is_ipv4() { 20 } else { 48 };
                frame.truncate(ETHERNET + l4 + usize::from(bytes));
                assert_refused(&balancer, &what, &frame, verdict);
            }
        }
        assert!(balancer.fragments()?.is_empty());
    }
    Ok(())
}

#[test]
fn a_datagram_stays_together_while_its_slot_moves() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Udp);
    let mut balancer = balancer(&packet, &tunnel())?;
    let other = BackendEntry {
        address: ip("10.0.1.8").into(),
        ..tunnel()
    };
    balancer.set_backend(BACKEND + 1, &other)?;
    let slot = Slot::tracked(BACKEND);
    balancer.add_service_of_slots(key(&packet, 443), SERVICE, |_| slot)?;
    // The first is a packet of its flow like any other.
    let frame = first(&packet).frame();
    let (outcome, counters) = balancer.run_counted(&frame)?;
    assert_eq!(outcome.action, XdpAction::Tx);
    let forwarded = Counters::of_forwarded(SERVICE, BACKEND, frame.len());
    assert_eq!(counters, forwarded.with_flow(FlowEvent::Recorded));
    let steady = Slot::steady(BACKEND + 1);
    balancer.set_slot(SERVICE, slot_number(&packet), steady)?;
    let flows = balancer.flows()?;
    assert_tunnelled(&balancer, &later(&packet));
    assert_tunnelled(&balancer, &last(&packet));
    assert_eq!(balancer.flows()?, flows);
    let next = first(&packet);
    let expected = encapsulated(&next, ip("10.0.0.2"), ip("10.0.1.8"), NEXT_HOP, 0);
    assert_eq!(balancer.run(&next.frame())?.frame, expected);
    Ok(())
}

/// More datagrams than there are entries: the newest are known.
#[test]
fn a_flood_of_first_fragments_forgets_the_oldest() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Udp);
    let balancer = balancer(&packet, &tunnel())?;
    for id in 0..20_000_u16 {
        let fragment = Packet {
            id,
            ..first(&packet)
        };
        assert_eq!(balancer.run(&fragment.frame())?.action, XdpAction::Tx);
    }
    let newest = Packet {
        id: 19_999,
        ..later(&packet)
    };
    assert_tunnelled(&balancer, &newest);
    Ok(())
}

/// The entry of an address is no service, whatever a packet says.
#[test]
fn the_entry_of_an_address_is_no_service() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let mut balancer = Balancer::load()?;
    for packet in packets() {
        let address = ServiceKey::of_address(packet.to.ip().into());
        balancer.put_service(address, ServiceEntry::default())?;
        for port in [0, 443] {
            let mut packet = packet.clone();
            packet.to.set_port(port);
            let frame = packet.frame();
            assert_refused(&balancer, "an address", &frame, Verdict::PassNoService);
        }
    }
    Ok(())
}
