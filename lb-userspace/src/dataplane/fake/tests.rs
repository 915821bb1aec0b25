//! The model itself: what a packet of a tracked slot does.

use super::*;
use lb_common::{address::Address, backend::NextHop, header::Ports};
use std::net::IpAddr;

const SLOT: u32 = 7;
const NOW: u32 = 1_000;

fn address(last: u8) -> Address {
    IpAddr::from([10, 0, 0, last]).into()
}

fn key() -> ServiceKey {
    ServiceKey::new(address(1), 6, 80)
}

fn flow(number: u16) -> FlowKey {
    let ports = Ports {
        source: number,
        destination: 80_u16.to_be(),
    };
    FlowKey::new(address(200), address(1), ports, 6)
}

fn backend(last: u8) -> BackendEntry {
    BackendEntry {
        next_hop: NextHop::new([2, 0, 0, 0, 0, last]),
        address: address(last),
        mode: Mode::L2 as u8,
        generation: 5,
        ..BackendEntry::default()
    }
}

/// One service with backends 1 to 3, `slot` as its slot 7.
fn plane(slot: Slot) -> FakeDataPlane {
    let mut plane = FakeDataPlane::new(4, 8);
    for index in 1..=3 {
        plane.write_backend(index.into(), &backend(index)).unwrap();
    }
    plane.create_tables(&[2]).unwrap();
    plane.store_slots(2, &[(SLOT, slot)]).unwrap();
    plane
        .put_service(
            &ServiceKey::of_address(key().address),
            &ServiceEntry::default(),
        )
        .unwrap();
    plane
        .put_service(&key(), &ServiceEntry { index: 2, flags: 0 })
        .unwrap();
    plane
}

fn send(plane: &mut FakeDataPlane, number: u16, kind: PacketKind, now: u32) -> Option<u32> {
    plane.packet(&key(), &flow(number), SLOT, kind, now)
}

/// (hits, recorded, replaced, failed).
fn events(plane: &mut FakeDataPlane) -> [u64; 4] {
    plane.flow_events().unwrap()[..4].try_into().unwrap()
}

#[test]
fn steady_slots_leave_no_trace() {
    let mut plane = plane(Slot::steady(1));
    for kind in [PacketKind::TcpSyn, PacketKind::Tcp, PacketKind::TcpEnd] {
        assert_eq!(send(&mut plane, 1, kind, NOW), Some(1));
    }
    assert_eq!((plane.flows.len(), events(&mut plane)), (0, [0; 4]));
}

#[test]
fn flows_stay_where_they_began_while_the_slot_moves_on() {
    let mut plane = plane(Slot::moved(2, 1, false));
    assert_eq!(send(&mut plane, 1, PacketKind::Tcp, NOW), Some(1));
    assert_eq!(send(&mut plane, 2, PacketKind::TcpSyn, NOW), Some(2));
    assert_eq!(send(&mut plane, 3, PacketKind::TcpEnd, NOW), Some(1));
    assert_eq!((plane.flows.len(), events(&mut plane)), (2, [0, 2, 0, 0]));
    plane.store_slots(2, &[(SLOT, Slot::tracked(3))]).unwrap();
    assert_eq!(send(&mut plane, 1, PacketKind::Tcp, NOW + 9), Some(1));
    assert_eq!(send(&mut plane, 2, PacketKind::TcpEnd, NOW + 9), Some(2));
    assert_eq!(send(&mut plane, 4, PacketKind::Tcp, NOW + 9), Some(3));
    assert_eq!(events(&mut plane), [2, 3, 0, 0]);
    let (first, second) = (plane.flows[&flow(1)], plane.flows[&flow(2)]);
    assert_eq!((first.seen, first.is_closing()), (NOW + 9, false));
    assert_eq!((second.seen, second.is_closing()), (NOW + 9, true));
}

#[test]
fn a_syn_follows_unless_its_connection_has_ended_or_fallen_silent() {
    for (end, pause, expected) in [(false, 60, 1), (false, 61, 2), (true, 0, 2)] {
        let mut plane = plane(Slot::moved(2, 1, false));
        send(&mut plane, 1, PacketKind::Tcp, NOW);
        if end {
            send(&mut plane, 1, PacketKind::TcpEnd, NOW);
        }
        let owner = send(&mut plane, 1, PacketKind::TcpSyn, NOW + pause);
        assert_eq!(owner, Some(expected), "end {end}, pause {pause}");
        assert!(!plane.flows[&flow(1)].is_closing());
    }
}

#[test]
fn udp_without_an_entry_waits_for_the_slot_to_settle() {
    for (settled, expected) in [(false, 1), (true, 2)] {
        let mut plane = plane(Slot::moved(2, 1, settled));
        assert_eq!(send(&mut plane, 1, PacketKind::Udp, NOW), Some(expected));
        plane
            .store_slots(2, &[(SLOT, Slot::moved(2, 1, !settled))])
            .unwrap();
        assert_eq!(send(&mut plane, 1, PacketKind::Udp, NOW), Some(expected));
    }
}

#[test]
fn entries_of_lost_or_other_backends_and_services_count_for_nothing() {
    let lost = BackendEntry {
        flags: BackendEntry::LOST,
        ..backend(3)
    };
    for spoil in [
        |entry: &mut FlowEntry| entry.generation += 1,
        |entry: &mut FlowEntry| entry.service += 1,
        |entry: &mut FlowEntry| entry.backend = 3,
        |entry: &mut FlowEntry| entry.backend = 6,
        |entry: &mut FlowEntry| entry.backend = 0,
    ] {
        let mut plane = plane(Slot::moved(2, 1, false));
        plane.write_backend(3, &lost).unwrap();
        assert_eq!(send(&mut plane, 1, PacketKind::TcpSyn, NOW), Some(2));
        spoil(plane.flows.get_mut(&flow(1)).unwrap());
        assert_eq!(send(&mut plane, 1, PacketKind::Tcp, NOW), Some(1));
        assert_eq!(events(&mut plane), [0, 1, 1, 0]);
    }
}

#[test]
fn nobody_gets_what_has_no_owner_or_no_next_hop() {
    let mut plane = plane(Slot::moved(2, 0, false));
    assert_eq!(send(&mut plane, 1, PacketKind::Tcp, NOW), None);
    assert!(plane.flows.is_empty());
    let unresolved = BackendEntry {
        next_hop: NextHop::default(),
        ..backend(2)
    };
    plane.write_backend(2, &unresolved).unwrap();
    assert_eq!(send(&mut plane, 1, PacketKind::TcpSyn, NOW), None);
    assert_eq!(plane.flows.len(), 1, "known before its next hop is");
    plane.write_backend(2, &backend(2)).unwrap();
    assert_eq!(send(&mut plane, 1, PacketKind::TcpSyn, NOW), Some(2));
}

#[test]
fn a_full_table_forgets_the_flow_that_was_silent_for_longest() {
    let mut plane = plane(Slot::moved(2, 1, false));
    plane.flow_capacity = 2;
    for (number, now) in [(1, NOW), (2, NOW + 1), (1, NOW + 2), (3, NOW + 3)] {
        send(&mut plane, number, PacketKind::Tcp, now);
    }
    let known: Vec<FlowKey> = plane.flows.keys().copied().collect();
    assert_eq!(known, [flow(1), flow(3)]);
}

#[test]
fn an_index_that_a_slot_names_keeps_its_identity() {
    let mut plane = plane(Slot::moved(2, 1, false));
    for named in [1, 2] {
        for other in [
            BackendEntry::default(),
            BackendEntry {
                generation: 6,
                ..backend(named)
            },
        ] {
            plane
                .write_backend(named.into(), &other)
                .expect_err("a slot names it");
        }
        let lost = BackendEntry {
            flags: BackendEntry::LOST,
            ..backend(named)
        };
        plane.write_backend(named.into(), &lost).unwrap();
    }
    plane.write_backend(3, &BackendEntry::default()).unwrap();
}
