use super::*;
use crate::{
    health::checker::TargetId,
    spec::{AllDown, FlowPolicy, Hash, HealthCheck, Name, Protocol, ServerId, Tracking},
};
use lb_common::{backend::Mode, quic::QuicConfig};
use std::time::Duration;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn backend(number: u8, weight: u16) -> Backend {
    Backend {
        name: name(&format!("b{number:02}")),
        address: IpAddr::from([10, 20, 0, number]),
        weight,
        drain: false,
        server_id: None,
    }
}

fn service(weights: &[u16]) -> Service {
    let backends = (1..).zip(weights).map(|(n, weight)| backend(n, *weight));
    Service {
        name: name("www"),
        address: IpAddr::from([10, 0, 0, 1]).into(),
        protocol: Protocol::Tcp,
        port: 80,
        mode: Mode::Ipip,
        gue_port: None,
        hash: Hash::FiveTuple,
        when_all_down: AllDown::Closed,
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
        backends: backends.map(|b| (b.name.clone(), b)).collect(),
    }
}

fn state(services: &[Service]) -> State {
    let services = services.iter().map(|s| (s.name.clone(), s.clone()));
    State {
        services: services.collect(),
    }
}

/// Everything in the state is up and can be reached.
fn well(state: &State) -> Facts {
    assume_well(state, &Facts::default())
}

fn with(service: &Service, change: impl FnOnce(&mut Service)) -> Service {
    let mut service = service.clone();
    change(&mut service);
    service
}

fn drained(service: &Service, numbers: &[u8]) -> Service {
    with(service, |service| {
        for number in numbers {
            let name = backend(*number, 0).name;
            service.backends.get_mut(&name).unwrap().drain = true;
        }
    })
}

fn without(service: &Service, number: u8) -> Service {
    with(service, |service| {
        service.backends.remove(&backend(number, 0).name).unwrap();
    })
}

/// What becomes of a state.
fn impact(before: &State, after: &State, facts: &Facts, now: bool) -> Impact {
    let old = Roster::new(before, &Roster::default());
    let new = Roster::new(after, &old);
    super::impact((before, &old), (after, &new), facts, now)
}

fn plan(before: &Service, after: &Service, now: bool) -> Impact {
    let before = state(std::slice::from_ref(before));
    impact(
        &before,
        &state(std::slice::from_ref(after)),
        &well(&before),
        now,
    )
}

/// The only table that changes, with the sums that hold for every table checked.
fn table(before: &Service, after: &Service, now: bool) -> TableChange {
    let impact = plan(before, after, now);
    assert_eq!(impact.warnings, [""; 0]);
    let [table] = &impact.tables[..] else {
        panic!("{impact:?}");
    };
    assert_eq!(table.slots_changed, table.necessary + table.collateral);
    assert!(table.lost_slots + table.expiring_slots <= table.slots_changed);
    table.clone()
}

#[test]
fn a_drain_moves_what_it_must_and_its_flows_expire() {
    let before = service(&[100; 10]);
    for numbers in [&[3][..], &[1, 2, 10]] {
        let after = drained(&before, numbers);
        let change = table(&before, &after, false);
        let slots = change.slots_changed;
        assert!(
            slots.abs_diff(SLOTS * numbers.len() as u32 / 10) <= 3,
            "{slots}"
        );
        assert_eq!((change.necessary, change.collateral), (slots, 0));
        assert_eq!((change.expiring_slots, change.lost_slots), (slots, 0));
        assert_eq!(change.seconds, 300);
        // And back, where the flows of the others live on.
        let back = table(&after, &before, false);
        assert_eq!((back.slots_changed, back.collateral), (slots, 0));
        assert_eq!((back.expiring_slots, back.lost_slots), (0, 0));
    }
    let change = table(&before, &drained(&before, &[3]), false);
    assert_eq!(change.new_flows_basis_points, 1_001);
    assert_eq!(
        change.old_flows,
        "10.01 % stay with a drained or removed backend for at most 5m and then end; the others are not touched"
    );
}

#[test]
fn removal_expires_its_flows_or_ends_them_now() {
    let before = service(&[100; 10]);
    let after = without(&before, 4);
    let change = table(&before, &after, false);
    assert!(change.necessary.abs_diff(SLOTS / 10) <= 1);
    assert!(change.collateral > 0 && change.collateral < SLOTS / 100);
    assert!(change.expiring_slots.abs_diff(SLOTS / 10) <= 1);
    assert_eq!((change.lost_slots, change.seconds), (0, 300));
    let now = table(&before, &after, true);
    assert_eq!(
        (now.lost_slots, now.expiring_slots),
        (change.expiring_slots, 0)
    );
    assert!(
        now.old_flows.contains("10.01 % end at once"),
        "{}",
        now.old_flows
    );
    // The flows of survivors in collateral slots stay, even then.
    assert!(
        now.old_flows
            .contains("stay with their backend unless they send nothing for 5m")
    );
    assert_eq!(now.seconds, 300);
}

#[test]
fn another_address_is_another_backend() {
    let before = service(&[100; 4]);
    let after = with(&before, |service| {
        let backend = service.backends.get_mut(&name("b02")).unwrap();
        backend.address = IpAddr::from([10, 20, 1, 2]);
    });
    let change = table(&before, &after, true);
    assert_eq!(change.collateral, 0);
    assert_eq!(change.lost_slots, change.slots_changed);
    assert!(change.slots_changed.abs_diff(SLOTS / 4) <= 1);
}

#[test]
fn weights_and_new_backends_lose_no_flow() {
    let before = service(&[100; 10]);
    let heavier = with(&before, |service| {
        service.backends.get_mut(&name("b01")).unwrap().weight = 200;
    });
    let larger = with(&before, |service| {
        let new = backend(11, 100);
        service.backends.insert(new.name.clone(), new);
    });
    for after in [heavier, larger] {
        let change = table(&before, &after, false);
        assert!(change.necessary >= SLOTS / 13 && change.necessary <= SLOTS / 9);
        assert!(change.collateral < change.necessary / 5);
        assert_eq!((change.lost_slots, change.expiring_slots), (0, 0));
        assert_eq!(change.seconds, 300);
    }
}

#[test]
fn weight_0_is_a_drain() {
    let before = service(&[100; 10]);
    let idle = with(&before, |service| {
        service.backends.get_mut(&name("b01")).unwrap().weight = 0;
    });
    let change = table(&before, &idle, false);
    assert!(change.expiring_slots.abs_diff(SLOTS / 10) <= 1);
    assert!(change.collateral < change.necessary / 5);
    assert_eq!((change.lost_slots, change.seconds), (0, 300));
}

#[test]
fn without_tracking_every_moved_flow_is_lost_at_once() {
    let untracked = |service: &Service| with(service, |s| s.flows.tracking = Tracking::None);
    let before = untracked(&service(&[100; 3]));
    let change = table(&before, &drained(&before, &[1]), false);
    assert_eq!(change.lost_slots, change.slots_changed);
    assert_eq!(change.seconds, 0);
    assert_eq!(
        change.old_flows,
        "33.34 % end at once; the others are not touched"
    );
}

#[test]
fn silence_of_udp_is_shorter() {
    let before = with(&service(&[100; 3]), |s| s.protocol = Protocol::Udp);
    let after = with(&before, |service| {
        service.backends.get_mut(&name("b01")).unwrap().weight = 150;
    });
    let change = table(&before, &after, false);
    assert!(change.old_flows.contains("unless they send nothing for 1m"));
}

#[test]
fn what_changes_no_table_is_not_listed() {
    let before = service(&[100; 3]);
    let after = with(&before, |service| service.flows.udp_settle = Duration::ZERO);
    assert!(plan(&before, &after, false).tables.is_empty());
    assert!(plan(&before, &before, false).tables.is_empty());
    // A backend without a weight owns nothing.
    let before = service(&[100, 0, 100]);
    assert!(plan(&before, &without(&before, 2), false).tables.is_empty());
}

#[test]
fn services_come_and_go_as_a_whole() {
    let one = service(&[100; 3]);
    let other = with(&one, |service| {
        (service.name, service.port) = (name("api"), 81);
    });
    let (before, after) = (state(&[one]), state(&[other]));
    let impact = impact(&before, &after, &well(&before), false);
    let [api, www] = &impact.tables[..] else {
        panic!("{impact:?}");
    };
    assert_eq!((api.service.as_str(), www.service.as_str()), ("api", "www"));
    assert_eq!((api.slots_changed, api.lost_slots), (SLOTS, 0));
    assert_eq!((www.slots_changed, www.lost_slots), (SLOTS, SLOTS));
}

#[test]
fn what_leaves_nobody_is_warned_of() {
    let warning = |before: &Service, after: &Service, now: bool| {
        let impact = plan(before, after, now);
        assert_eq!(impact.warnings.len(), 1, "{impact:?}");
        impact.warnings[0].clone()
    };
    let before = service(&[100, 100]);
    let all_drained = drained(&before, &[1, 2]);
    assert_eq!(
        warning(&before, &all_drained, false),
        "every backend of service www that has a weight is drained: new flows are dropped as drop_no_backend until one is \
         undrained (lbctl backend undrain) or added; established ones stay where they are for at most 5m"
    );
    let change = &plan(&before, &all_drained, false).tables[0];
    assert_eq!(
        (change.slots_changed, change.expiring_slots),
        (SLOTS, SLOTS)
    );
    assert_eq!((change.necessary, change.collateral), (SLOTS, 0));

    let single = service(&[100]);
    let removed = without(&single, 1);
    assert!(
        warning(&single, &removed, false).contains("the last backend of service www is removed")
    );
    assert!(warning(&single, &removed, false).ends_with("stay where they are for at most 5m"));
    assert!(warning(&single, &removed, true).ends_with("are dropped at once"));
    assert_eq!(plan(&single, &removed, true).tables[0].lost_slots, SLOTS);

    let idle = service(&[0, 0]);
    assert!(warning(&before, &idle, false).contains("has weight 0"));
    let empty = service(&[]);
    let none = impact(
        &State::default(),
        &state(&[empty]),
        &Facts::default(),
        false,
    );
    assert!(none.warnings[0].contains("has no backends yet"));
}

#[test]
fn draining_the_last_that_is_up_is_warned_of() {
    for (policy, words) in [
        (
            AllDown::Closed,
            "(b02) are down or cannot be reached: new flows are dropped",
        ),
        (
            AllDown::Open,
            "(b02) are down: new flows go to them all the same",
        ),
    ] {
        let before = with(&service(&[100, 100]), |s| s.when_all_down = policy);
        let after = drained(&before, &[1]);
        let (before, after) = (state(&[before]), state(&[after]));
        let mut facts = well(&before);
        let down = TargetId {
            service: name("www"),
            backend: name("b02"),
        };
        facts.health.insert(down, HealthState::Down);
        let impact = impact(&before, &after, &facts, false);
        assert!(impact.warnings[0].contains(words), "{impact:?}");
        assert_eq!(impact.tables[0].slots_changed, SLOTS);
    }
}

#[test]
fn connection_ids_that_name_nobody_any_more_are_warned_of() {
    let quic = |rotation, ids: [&str; 2]| {
        with(&service(&[100, 100]), |service| {
            service.quic = Some(QuicConfig {
                config_rotation: rotation,
                server_id_length: 1,
            });
            for (backend, id) in service.backends.values_mut().zip(ids) {
                backend.server_id = ServerId::parse(id);
            }
        })
    };
    let before = quic(0, ["01", "02"]);
    let address = with(&before, |service| {
        service.backends.values_mut().for_each(|backend| {
            if backend.server_id == ServerId::parse("02") {
                backend.address = IpAddr::from([10, 20, 0, 9]);
            }
        });
    });
    for (after, words) in [
        (quic(0, ["01", "03"]), "b02 (02 -> 03)"),
        (quic(1, ["01", "02"]), "are read in another way"),
        (service(&[100, 100]), "has no `quic` any more"),
        (address, "b02 (02: 10.20.0.2 -> 10.20.0.9)"),
    ] {
        let warnings = plan(&before, &after, false).warnings;
        assert!(
            matches!(&warnings[..], [one] if one.contains(words)),
            "{words}: {warnings:?}"
        );
    }
    let weight = with(&before, |service| {
        service.backends.values_mut().for_each(|b| b.weight = 50);
    });
    for (before, after) in [(&service(&[100, 100]), &before), (&before, &weight)] {
        assert_eq!(plan(before, after, false).warnings, [""; 0]);
    }
    let begun = plan(&service(&[100, 100]), &before, false);
    assert!(begun.tables.is_empty(), "no slot moves: {begun:?}");
}
