//! Server IDs of QUIC connection IDs.

use super::*;
use crate::{
    plan::{
        departure::{Departure, Reason},
        target::backend_id,
    },
    spec::ServerId,
};
use lb_common::quic::QuicConfig;

pub(super) fn quic(mut service: Service, config_rotation: u8, server_id_length: u8) -> Service {
    service.protocol = Protocol::Udp;
    service.quic = Some(QuicConfig {
        config_rotation,
        server_id_length,
    });
    for (number, backend) in (1..).zip(service.backends.values_mut()) {
        backend.server_id = id_of(number, server_id_length);
    }
    service
}

fn id_of(number: u64, octets: u8) -> Option<ServerId> {
    let digits = 2 * usize::from(octets);
    ServerId::parse(&format!("{number:0digits$x}"))
}

/// Address of the backend that packets with a server ID go to.
pub(super) fn named(world: &World, service: &Service, id: u64) -> Option<IpAddr> {
    let index = world.plane.named(&service_key(service), id)?;
    Some(world.plane.backend(index)?.address.into())
}

fn address(last: u8) -> Option<IpAddr> {
    Some([10, 20, 0, last].into())
}

fn position(steps: &[Step], is: impl Fn(&Step) -> bool) -> (usize, usize) {
    let first = steps.iter().position(&is).unwrap();
    (first, steps.iter().rposition(is).unwrap())
}

#[test]
fn ids_come_after_backends_and_before_their_service_and_go_after_it() {
    let www = quic(service("www", 1, &[backend(1, 1), backend(2, 1)]), 3, 2);
    let state = state(std::slice::from_ref(&www));
    let facts = all_well(&state);
    let mut world = World::new();
    let steps = world.plan(&state, &facts);
    let (_, backends) = position(&steps, |step| matches!(step, Step::WriteBackend { .. }));
    let (first, last) = position(&steps, |step| matches!(step, Step::PutServer { .. }));
    let (service, _) = position(&steps, |step| matches!(step, Step::PutService { .. }));
    assert!(backends < first && last < service, "{steps:?}");
    world.reconcile(&state, &facts);
    for number in 1..=2 {
        assert_eq!(named(&world, &www, number.into()), address(number));
    }
    assert_eq!(named(&world, &www, 3), None);

    let mut plain = www.clone();
    plain.quic = None;
    plain
        .backends
        .values_mut()
        .for_each(|backend| backend.server_id = None);
    let plain = super::state(&[plain]);
    let steps = world.plan(&plain, &facts);
    assert!(
        matches!(
            &steps[..],
            [
                Step::PutService { .. },
                Step::RemoveServer { .. },
                Step::RemoveServer { .. }
            ]
        ),
        "without a slot that moves: {steps:?}"
    );
    world.reconcile(&plain, &facts);
    assert_eq!(named(&world, &www, 1), None);
    world.reconcile(&super::state(&[]), &facts);
    assert!(world.plane.installed().unwrap().backends.is_empty());
}

#[test]
fn a_new_daemon_knows_who_has_which_id() {
    let www = quic(service("www", 1, &[backend(1, 1), backend(2, 1)]), 0, 8);
    let state = state(std::slice::from_ref(&www));
    let facts = all_well(&state);
    let mut world = World::new();
    world.reconcile(&state, &facts);
    world.mirror = Mirror::new(world.plane.installed().unwrap());
    let writes = |step: &Step| !matches!(step, Step::StoreSlots { slots, .. } if slots.is_empty());
    assert!(!world.plan(&state, &facts).iter().any(writes));
}

#[test]
fn other_ids_and_other_configs_are_in_force_at_once() {
    let www = quic(service("www", 1, &[backend(1, 1), backend(2, 1)]), 0, 1);
    let facts = all_well(&state(std::slice::from_ref(&www)));
    let mut world = World::new();
    world.reconcile(&state(std::slice::from_ref(&www)), &facts);
    let mut swapped = www.clone();
    for (number, backend) in [2, 1].into_iter().zip(swapped.backends.values_mut()) {
        backend.server_id = id_of(number, 1);
    }
    world.reconcile(&state(std::slice::from_ref(&swapped)), &facts);
    assert_eq!(named(&world, &www, 1), address(2));
    assert_eq!(named(&world, &www, 2), address(1));
    let longer = quic(www, 4, 3);
    world.reconcile(&state(std::slice::from_ref(&longer)), &facts);
    assert_eq!(named(&world, &longer, 1), address(1));
    assert_eq!(world.plane.installed().unwrap().servers.len(), 2);
}

/// It keeps its ID as long as it keeps its flows, unless another is given that ID.
#[test]
fn a_removed_backend_keeps_its_id_until_it_is_gone() {
    let www = quic(service("www", 1, &[backend(1, 1), backend(2, 1)]), 0, 1);
    let mut left = www.clone();
    let gone = left.backends.remove(&name("b1")).unwrap();
    let mut facts = all_well(&state(std::slice::from_ref(&www)));
    let departure = Departure {
        reason: Reason::Removed,
        name: None,
        address: gone.address,
        since: Duration::ZERO,
        until: Duration::from_secs(300),
        probe: None,
        doubted: false,
    };
    let departing = |until| {
        let mut world = World::new();
        world.reconcile(
            &state(std::slice::from_ref(&www)),
            &all_well(&state(std::slice::from_ref(&www))),
        );
        let mut facts = all_well(&state(std::slice::from_ref(&www)));
        let departure = Departure {
            until,
            ..departure.clone()
        };
        facts.departures.insert(backend_id(&www, &gone), departure);
        world.reconcile(&state(std::slice::from_ref(&left)), &facts);
        world
    };
    let at_once = departing(Duration::ZERO);
    assert_eq!(named(&at_once, &left, 1), None);
    let mut world = departing(departure.until);
    assert_eq!(named(&world, &left, 1), address(1), "its flows stay");

    let mut heir = backend(3, 1);
    heir.server_id = gone.server_id;
    let mut inherited = left.clone();
    inherited.backends.insert(heir.name.clone(), heir);
    facts.next_hops.insert([10, 20, 0, 3].into(), Ok(hop(1)));
    facts.departures.insert(backend_id(&www, &gone), departure);
    world.reconcile(&state(std::slice::from_ref(&inherited)), &facts);
    assert_eq!(
        named(&world, &left, 1),
        address(3),
        "another is given its ID"
    );
}
