//! Plans held against the in-memory data plane, which refuses every write that a packet could suffer from.

mod servers;

use super::{
    Facts, Scope,
    apply::apply,
    diff::{Capacity, Step, diff},
    mirror::Mirror,
    roster::Roster,
    select::{Condition, select},
    target::{choices, service_key, target},
};
use crate::{
    dataplane::{DataPlane, fake::FakeDataPlane},
    health::{checker::TargetId, state::HealthState},
    neighbour::{ResolvedHop, Unresolved},
    outer_source::{self, OuterSource},
    prefix::Prefix,
    spec::{AllDown, Backend, FlowPolicy, Hash, HealthCheck, Name, Protocol, Service, State},
};
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode},
    limits::SLOTS,
    service::ServiceEntry,
};
use proptest::prelude::*;
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

const CAPACITY: Capacity = Capacity {
    services: 8,
    backends: 64,
};

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn id(service: &Name, backend: &Name) -> TargetId {
    TargetId {
        service: service.clone(),
        backend: backend.clone(),
    }
}

fn backend(number: u8, weight: u16) -> Backend {
    Backend {
        name: name(&format!("b{number}")),
        address: IpAddr::from([10, 20, 0, number]),
        weight,
        drain: false,
        server_id: None,
    }
}

fn service(label: &str, last: u8, backends: &[Backend]) -> Service {
    Service {
        name: name(label),
        address: IpAddr::from([10, 0, 0, last]).into(),
        protocol: Protocol::Tcp,
        port: 80,
        mode: Mode::Ipip,
        gue_port: None,
        hash: Hash::FiveTuple,
        when_all_down: AllDown::Open,
        echo: false,
        quic: None,
        health: Some(HealthCheck {
            port: 80,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter_percent: 0,
        }),
        flows: FlowPolicy::default(),
        backends: backends
            .iter()
            .map(|backend| (backend.name.clone(), backend.clone()))
            .collect(),
    }
}

fn state(services: &[Service]) -> State {
    State {
        services: services
            .iter()
            .map(|service| (service.name.clone(), service.clone()))
            .collect(),
    }
}

fn hop(last: u8) -> ResolvedHop {
    ResolvedHop {
        mac: [2, 0, 0, 0, 0, last],
        interface: 3,
        interface_name: "eth0".into(),
        gateway: None,
        source: IpAddr::from([10, 20, 0, 1]),
        mtu: 1500,
    }
}

/// Every backend up and reachable.
fn all_well(state: &State) -> Facts {
    let mut facts = Facts {
        interfaces: [3].into(),
        ..Facts::default()
    };
    for service in state.services.values() {
        for backend in service.backends.values() {
            facts
                .health
                .insert(id(&service.name, &backend.name), HealthState::Up);
            facts.next_hops.insert(backend.address, Ok(hop(1)));
        }
    }
    facts
}

struct World {
    plane: FakeDataPlane,
    mirror: Mirror,
    /// Slot words that plans have read.
    read: usize,
}

impl World {
    fn new() -> Self {
        Self {
            plane: FakeDataPlane::new(CAPACITY.services, CAPACITY.backends),
            mirror: Mirror::default(),
            read: 0,
        }
    }

    fn plan(&mut self, state: &State, facts: &Facts) -> Vec<Step> {
        let (plane, read) = (&mut self.plane, &mut self.read);
        let roster = Roster::new(state, &Roster::default());
        let choices = choices(state, &roster, facts, &Scope::All);
        diff(
            &target(&choices, Some((state, &roster)), facts),
            &self.mirror,
            CAPACITY,
            1,
            None,
            &mut |service, slots| {
                *read += slots.len();
                plane.read_some_slots(service, slots)
            },
        )
        .unwrap()
        .steps
    }

    fn reconcile(&mut self, state: &State, facts: &Facts) {
        let steps = self.plan(state, facts);
        apply(&steps, &mut self.plane, &mut self.mirror).unwrap();
        let left = self.plan(state, facts);
        assert!(left.is_empty(), "the second run is empty: {left:?}");
        self.check_counts();
    }

    /// What is counted of a table step by step is what counting its words gives.
    fn check_counts(&mut self) {
        for (service, table) in &self.mirror.known {
            let (mut shares, mut old_owners) = (BTreeMap::new(), BTreeMap::new());
            for word in self.plane.read_slots(*service).unwrap() {
                let (new, old) = (word.new_owner(), word.old_owner());
                *shares.entry(new).or_default() += 1;
                if old != new {
                    *old_owners.entry(old).or_default() += 1;
                }
            }
            assert_eq!((table.shares(), table.old_owners()), (&shares, &old_owners));
        }
    }

    /// Slots of a service by the name's last octet of the backend that a packet would reach; `None`: nobody.
    fn shares(&self, service: &Service) -> BTreeMap<Option<IpAddr>, u32> {
        let key = service_key(service);
        let mut shares = BTreeMap::new();
        for slot in 0..SLOTS {
            let address = self
                .plane
                .forward(&key, slot)
                .map(|entry| IpAddr::from(entry.address));
            *shares.entry(address).or_default() += 1;
        }
        shares
    }
}

#[test]
fn slots_follow_health_weights_and_next_hops() {
    let www = service(
        "www",
        1,
        &[
            backend(1, 100),
            backend(2, 100),
            backend(3, 0),
            backend(4, 200),
        ],
    );
    let state = state(std::slice::from_ref(&www));
    let mut facts = all_well(&state);
    let mut world = World::new();
    world.reconcile(&state, &facts);
    let shares = world.shares(&www);
    assert_eq!(shares.len(), 3, "{shares:?}");
    assert!(shares[&Some([10, 20, 0, 4].into())].abs_diff(SLOTS / 2) <= 1);

    facts
        .health
        .insert(id(&name("www"), &name("b1")), HealthState::Down);
    facts
        .next_hops
        .insert([10, 20, 0, 4].into(), Err(Unresolved::NoRoute));
    world.reconcile(&state, &facts);
    assert_eq!(
        world.shares(&www),
        BTreeMap::from([(Some([10, 20, 0, 2].into()), SLOTS)])
    );

    let selection = select(&www, &facts);
    assert_eq!(selection.condition, Condition::Up);
    let reason = |backend: &str| selection.refusal(&name(backend)).unwrap();
    assert_eq!(reason("b1"), "down");
    assert_eq!(reason("b3"), "weight is 0");
    assert!(reason("b4").starts_with("next hop: "), "{}", reason("b4"));
}

#[test]
fn a_change_reads_only_the_slots_that_it_can_touch() {
    let backends: Vec<Backend> = (1..=10).map(|number| backend(number, 1)).collect();
    let services = [service("www", 1, &backends), service("api", 2, &backends)];
    let state = state(&services);
    let mut facts = all_well(&state);
    let mut world = World::new();
    world.reconcile(&state, &facts);
    for (down, tables) in [(HealthState::Down, 1), (HealthState::Up, 1)] {
        world.mirror.unused.clear();
        world.read = 0;
        facts.health.insert(id(&name("www"), &name("b3")), down);
        let steps = world.plan(&state, &facts);
        let stored = steps.iter().filter_map(|step| match step {
            Step::StoreSlots { slots, .. } => Some(slots.len()),
            _ => None,
        });
        let stored: Vec<usize> = stored.collect();
        assert_eq!(stored.len(), tables, "{down:?}");
        let share = SLOTS as usize / 10;
        assert!(
            world.read.abs_diff(share) < 10,
            "{down:?}: {} read",
            world.read
        );
        assert!(stored[0].abs_diff(share) < 10, "{down:?}: {stored:?}");
        world.reconcile(&state, &facts);
    }
}

#[test]
fn all_down_is_open_or_closed_as_configured() {
    let mut www = service("www", 1, &[backend(1, 1), backend(2, 1), backend(3, 1)]);
    let whole = state(std::slice::from_ref(&www));
    let mut facts = all_well(&whole);
    for health in facts.health.values_mut() {
        *health = HealthState::Down;
    }
    facts
        .next_hops
        .insert([10, 20, 0, 3].into(), Err(Unresolved::NoRoute));
    let mut world = World::new();
    world.reconcile(&whole, &facts);
    assert_eq!(select(&www, &facts).condition, Condition::AllDownOpen);
    assert_eq!(world.shares(&www).len(), 2, "the two that can be reached");

    www.when_all_down = AllDown::Closed;
    world.reconcile(&state(std::slice::from_ref(&www)), &facts);
    assert_eq!(select(&www, &facts).condition, Condition::AllDownClosed);
    assert_eq!(world.shares(&www), BTreeMap::from([(None, SLOTS)]));
}

#[test]
fn a_backend_behind_an_interface_without_a_program_gets_nothing() {
    let www = service("www", 1, &[backend(1, 1)]);
    let mut facts = all_well(&state(std::slice::from_ref(&www)));
    facts.interfaces = [9].into();
    let selection = select(&www, &facts);
    assert_eq!(selection.condition, Condition::NoBackends);
    let reason = selection.refusal(&name("b1")).unwrap();
    assert!(
        reason.contains("eth0") && reason.contains("`interfaces`"),
        "{reason}"
    );
}

#[test]
fn mode_l2_does_not_send_through_a_gateway() {
    let mut www = service("www", 1, &[backend(1, 1)]);
    www.mode = Mode::L2;
    let mut facts = all_well(&state(std::slice::from_ref(&www)));
    assert_eq!(select(&www, &facts).condition, Condition::Up);
    let behind = ResolvedHop {
        gateway: Some([10, 9, 0, 1].into()),
        ..hop(1)
    };
    facts.next_hops.insert([10, 20, 0, 1].into(), Ok(behind));
    let selection = select(&www, &facts);
    let reason = selection.refusal(&name("b1")).unwrap();
    assert!(
        reason.contains("10.9.0.1") && reason.contains("use mode ipip"),
        "{reason}"
    );
}

#[test]
fn a_way_that_is_too_narrow_for_the_tunnel_is_refused() {
    let mut www = service("www", 1, &[backend(1, 1)]);
    for (mode, vip, mtu, good) in [
        (Mode::Ipip, "10.0.0.1", 596, true),
        (Mode::Ipip, "10.0.0.1", 595, false),
        (Mode::Gue, "10.0.0.1", 616, true),
        (Mode::Gue, "10.0.0.1", 615, false),
        (Mode::L2, "fd00::1", 1_280, true),
        (Mode::Ipip, "fd00::1", 1_300, true),
        (Mode::Gue, "fd00::1", 1_319, false),
    ] {
        (www.mode, www.address) = (mode, vip.parse().unwrap());
        let mut facts = all_well(&state(std::slice::from_ref(&www)));
        let narrow = ResolvedHop { mtu, ..hop(1) };
        facts.next_hops.insert([10, 20, 0, 1].into(), Ok(narrow));
        let selection = select(&www, &facts);
        let refusal = selection.refusal(&name("b1"));
        assert_eq!(refusal.is_none(), good, "{mode:?} {vip} {mtu}: {refusal:?}");
        if let Some(reason) = refusal {
            let said = format!("the MTU of the way by eth0, {mtu} bytes, leaves");
            assert!(reason.contains(&said), "{reason}");
        }
    }
}

/// Another port is another backend to the program, as another address is.
#[test]
fn the_port_of_gue_is_written_and_is_part_of_a_backends_identity() {
    let mut www = service("www", 1, &[backend(1, 1)]);
    www.mode = Mode::Gue;
    let mut world = World::new();
    let mut seen = Vec::new();
    for port in [6_080, 7_777] {
        www.gue_port = Some(port);
        let state = state(std::slice::from_ref(&www));
        world.reconcile(&state, &all_well(&state));
        let entries = world.plane.installed().unwrap().backends;
        let entry = entries.values().find(|entry| entry.port == port.to_be());
        seen.push(entry.expect("an entry with the port").id);
    }
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn a_named_outer_source_is_written_and_stays_when_the_next_hop_is_lost() {
    let www = service("www", 1, &[backend(1, 1), backend(2, 1)]);
    let state = state(std::slice::from_ref(&www));
    let mut facts = all_well(&state);
    facts.outer_source.ipv4 = Some(outer_source::parse("172.31.0.0/16", true).unwrap());
    let mut world = World::new();
    world.reconcile(&state, &facts);
    let network = Address::from(IpAddr::from([172, 31, 0, 0]));
    let check = |world: &mut World, lost: u8| {
        let entries = world.plane.installed().unwrap().backends;
        assert_eq!(entries.len(), 2);
        for entry in entries.values() {
            assert_eq!(entry.outer_source, network);
            assert_eq!(entry.flags & !lost, BackendEntry::ENTROPY, "{entry:?}");
        }
    };
    check(&mut world, 0);
    facts
        .next_hops
        .insert([10, 20, 0, 1].into(), Err(Unresolved::NoRoute));
    world.reconcile(&state, &facts);
    check(&mut world, BackendEntry::LOST);
    // Back to this host's own address, as after a restart with another configuration.
    facts.outer_source = OuterSource::default();
    facts.next_hops.insert([10, 20, 0, 1].into(), Ok(hop(1)));
    world.reconcile(&state, &facts);
    let entries = world.plane.installed().unwrap().backends;
    assert!(
        entries
            .values()
            .all(|entry| entry.flags == 0 && entry.outer_source != network)
    );
}

#[test]
fn a_new_mac_is_one_backend_write_and_no_slot() {
    let www = service("www", 1, &[backend(1, 1), backend(2, 1)]);
    let state = state(std::slice::from_ref(&www));
    let mut facts = all_well(&state);
    let mut world = World::new();
    world.reconcile(&state, &facts);
    facts.next_hops.insert([10, 20, 0, 1].into(), Ok(hop(77)));
    let steps = world.plan(&state, &facts);
    assert!(
        matches!(&steps[..], [Step::WriteBackend { new: false, entry, .. }] if entry.next_hop.mac[5] == 77)
    );
}

#[test]
fn a_new_daemon_finds_everything_as_it_was() {
    let www = service("www", 1, &[backend(1, 1), backend(2, 3)]);
    let dns = service("dns", 2, &[backend(1, 1), backend(3, 1)]);
    let state = state(&[www, dns]);
    let facts = all_well(&state);
    let mut world = World::new();
    world.reconcile(&state, &facts);
    world.mirror = Mirror::new(world.plane.installed().unwrap());
    let writes = world.plane.writes;
    let steps = world.plan(&state, &facts);
    assert!(
        steps
            .iter()
            .all(|step| matches!(step, Step::StoreSlots { slots, .. } if slots.is_empty())),
        "{steps:?}"
    );
    apply(&steps, &mut world.plane, &mut world.mirror).unwrap();
    assert_eq!(world.plane.writes, writes, "nothing is written");
    assert!(world.plan(&state, &facts).is_empty());
}

/// The flags of each address's entry.
fn addresses(world: &mut World) -> Vec<(IpAddr, u32)> {
    let installed = world.plane.installed().unwrap();
    let entries = installed.addresses.iter();
    entries
        .map(|(key, entry)| (key.address.into(), entry.flags))
        .collect()
}

#[test]
fn an_address_has_an_entry_as_long_as_a_service_has_the_address() {
    let mut world = World::new();
    let one = service("one", 1, &[backend(1, 100)]);
    let two = Service {
        port: 81,
        echo: true,
        ..service("two", 1, &[backend(1, 100)])
    };
    let other = service("other", 2, &[backend(2, 100)]);
    let (first, second) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
    for (services, expected) in [
        (vec![one.clone()], vec![(first, 0)]),
        (
            vec![one.clone(), two.clone(), other.clone()],
            vec![(first, ServiceEntry::ECHO), (second, 0)],
        ),
        (vec![two.clone()], vec![(first, ServiceEntry::ECHO)]),
        (vec![one, other], vec![(first, 0), (second, 0)]),
        (vec![], vec![]),
    ] {
        let state = state(&services);
        let facts = all_well(&state);
        world.reconcile(&state, &facts);
        assert_eq!(addresses(&mut world), expected);
        assert_eq!(world.mirror.services.len(), services.len());
    }
}

#[test]
fn a_prefix_is_written_with_its_length_and_beside_what_it_holds() {
    let mut world = World::new();
    let one = service("one", 1, &[backend(1, 100)]);
    let all = |name: &str, length: u8| Service {
        address: Prefix::around(IpAddr::from([10, 0, 0, 0]), length).unwrap(),
        hash: Hash::SourceIp,
        echo: length == 24,
        ..service(name, 1, &[backend(1, 100)])
    };
    let (wide, wider) = (all("wide", 24), all("wider", 16));
    let told = |length: u32| (96 + length) << 24;
    let entry = |world: &mut World, service: &Service| {
        let installed = world.plane.installed().unwrap();
        let key = service_key(service);
        let flags = installed.services.get(&key).map(|entry| entry.flags);
        let address = installed.addresses.get(&key.its_address());
        (flags, address.map(|entry| entry.flags))
    };
    for services in [
        vec![one.clone(), wide.clone(), wider.clone()],
        vec![wide.clone()],
        vec![wider.clone(), one.clone()],
        vec![],
    ] {
        let state = state(&services);
        world.reconcile(&state, &all_well(&state));
        assert_eq!(world.mirror.addresses.len(), services.len());
        for (service, flags, address) in [
            (&one, 0, 0),
            (
                &wide,
                told(24) | ServiceEntry::HASH_SOURCE,
                told(24) | ServiceEntry::ECHO,
            ),
            (&wider, told(16) | ServiceEntry::HASH_SOURCE, told(16)),
        ] {
            let expected = if services.contains(service) {
                (Some(flags), Some(address))
            } else {
                (None, None)
            };
            assert_eq!(entry(&mut world, service), expected, "{}", service.name);
        }
    }
}

#[test]
fn what_is_hashed_is_written_with_the_service() {
    let mut world = World::new();
    for (hash, flags) in [
        (Hash::SourceIp, ServiceEntry::HASH_SOURCE),
        (Hash::SourceIpPort, ServiceEntry::HASH_SOURCE_PORT),
        (Hash::FiveTuple, 0),
    ] {
        let www = Service {
            hash,
            ..service("www", 1, &[backend(1, 100)])
        };
        let state = state(&[www]);
        world.reconcile(&state, &all_well(&state));
        let services = world.plane.installed().unwrap().services;
        let entries: Vec<ServiceEntry> = services.into_values().collect();
        // What was there with other flags keeps its index.
        assert_eq!(entries, [ServiceEntry { index: 1, flags }]);
    }
}

#[test]
fn the_whole_pool_can_be_replaced_at_the_limit() {
    let pool =
        |range: std::ops::Range<u8>| -> Vec<Backend> { range.map(|n| backend(n, 1)).collect() };
    let blue = service("www", 1, &pool(1..32));
    let green = service("www", 1, &pool(32..63));
    let mut world = World::new();
    for www in [&blue, &green, &blue] {
        let state = state(std::slice::from_ref(www));
        world.reconcile(&state, &all_well(&state));
        assert_eq!(world.shares(www).len(), 31);
    }
}

/// A state from three bytes a service: which backends of six it has, with which weights.
fn arbitrary_state() -> impl Strategy<Value = (State, Facts)> {
    let backends = prop::collection::btree_map(1_u8..7, 0_u16..3, 0..6);
    let config = prop::option::of((0_u8..3, 1_u8..3));
    let services = prop::collection::btree_map(1_u8..5, (backends, any::<bool>(), config), 0..4);
    let health = prop::collection::vec(0_u8..3, 24);
    let hops = prop::collection::vec(0_u8..4, 7);
    (services, health, hops).prop_map(|(services, health, hops)| {
        let services: Vec<Service> = services
            .into_iter()
            .map(|(last, (backends, open, config))| {
                let backends: Vec<Backend> = backends
                    .into_iter()
                    .map(|(n, weight)| backend(n, weight))
                    .collect();
                let mut service = service(&format!("s{last}"), last, &backends);
                service.when_all_down = if open { AllDown::Open } else { AllDown::Closed };
                match config {
                    Some((rotation, length)) => servers::quic(service, rotation, length),
                    None => service,
                }
            })
            .collect();
        let state = state(&services);
        let mut facts = all_well(&state);
        for (value, health) in facts.health.values_mut().zip(health) {
            *value =
                [HealthState::Unknown, HealthState::Up, HealthState::Down][usize::from(health)];
        }
        for (n, kind) in (0..7).zip(hops) {
            let hop = if kind == 0 {
                Err(Unresolved::NoRoute)
            } else {
                Ok(hop(kind))
            };
            facts.next_hops.insert([10, 20, 0, n].into(), hop);
        }
        (state, facts)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any history of states ends in what the last state alone would give, with no write on the way that the data
    /// plane refuses, also when writes fail in between.
    #[test]
    fn histories_do_not_matter(history in prop::collection::vec((arbitrary_state(), 0_u64..40), 1..6)) {
        let mut world = World::new();
        for ((state, facts), writes) in &history {
            world.plane.fail_after = Some(world.plane.writes + writes);
            let steps = world.plan(state, facts);
            let failed = apply(&steps, &mut world.plane, &mut world.mirror).is_err();
            world.plane.fail_after = None;
            world.reconcile(state, facts);
            let mut fresh = World::new();
            fresh.reconcile(state, facts);
            for service in state.services.values() {
                prop_assert_eq!(world.shares(service), fresh.shares(service), "failed before: {}", failed);
                for id in 0..8 {
                    let named = |world| servers::named(world, service, id);
                    prop_assert_eq!(named(&world), named(&fresh), "failed before: {}", failed);
                }
            }
            let installed = world.plane.installed().unwrap();
            let backends: usize = state.services.values().map(|service| service.backends.len()).sum();
            prop_assert_eq!(installed.services.len(), state.services.len());
            prop_assert_eq!(installed.servers.len(), fresh.plane.installed().unwrap().servers.len());
            prop_assert_eq!(installed.addresses, fresh.plane.installed().unwrap().addresses);
            prop_assert_eq!(installed.backends.len(), backends);
            prop_assert_eq!(installed.tables.len(), state.services.len());
        }
    }
}
