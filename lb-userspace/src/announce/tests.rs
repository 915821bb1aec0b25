//! Decisions and the node's drain, case by case and at random against what may never happen.

use super::{
    Announced, Announcing, Outcome, Role,
    decide::{Decider, Decision, Facts, ServiceFacts, Test},
    drain::Phase,
    setting::{DEFAULT_SOCKET, DrainTimes, Driver, RouteSettings, Settings, WHOLE, Watermarks},
    worker::Report,
};
use crate::{config::NodeConfig, prefix::Prefix};
use proptest::prelude::*;
use std::time::Duration;

const HOLD: Duration = Duration::from_secs(10);

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn settings(up: u64, down: u64) -> Settings {
    Settings {
        allow: vec![prefix("192.0.2.0/24")],
        watermarks: Watermarks { up, down },
        hold_down: HOLD,
        drain: DrainTimes {
            converge: Duration::from_secs(5),
            linger: Duration::from_secs(20),
        },
        driver: Driver::Route(RouteSettings {
            table: 179,
            protocol: 179,
        }),
    }
}

fn service(healthy: u64, total: u64) -> ServiceFacts {
    ServiceFacts {
        name: "www".into(),
        healthy,
        awaited: 0,
        total,
        published: true,
        test: Test::Passed,
    }
}

fn facts(address: &str, service: ServiceFacts) -> Facts {
    Facts {
        plane: Ok(()),
        node: Phase::Serving,
        pending: false,
        vips: [(prefix(address), vec![service])].into(),
    }
}

fn decide(decider: &mut Decider, facts: &Facts, seconds: u64) -> Decision {
    let decisions = decider.decide(facts, Duration::from_secs(seconds));
    decisions.into_values().next().unwrap()
}

#[test]
fn every_reason_is_said() {
    let good = || facts("192.0.2.1", service(1, 2));
    let with = |change: fn(&mut ServiceFacts)| {
        let mut service = service(1, 2);
        change(&mut service);
        facts("192.0.2.1", service)
    };
    let drained = |node| Facts { node, ..good() };
    for (facts, role, reason) in [
        (good(), Some(Role::Serving), "1 of 2 weight is healthy"),
        (
            drained(Phase::Draining),
            None,
            "1 of 2 weight is healthy, but the node is draining",
        ),
        (
            drained(Phase::Withdrawn),
            None,
            "the node is drained; `lbctl node undrain` ends that",
        ),
        (
            Facts {
                plane: Err("no program".into()),
                ..good()
            },
            None,
            "no program",
        ),
        (
            facts("198.51.100.1", service(2, 2)),
            None,
            "198.51.100.1 is outside `announce.allow` in the node config (192.0.2.0/24); add it there, or give the service \
             another address",
        ),
        (
            with(|service| service.published = false),
            None,
            "0 of 2 weight is healthy; the table of www is not in the data plane yet",
        ),
        (
            with(|service| service.test = Test::Failed("it is dropped".into())),
            None,
            "0 of 2 weight is healthy; the self-test of www failed: it is dropped",
        ),
        (
            with(|service| service.test = Test::Untested),
            None,
            "0 of 2 weight is healthy; www is not tested yet",
        ),
        (
            with(|service| service.healthy = 0),
            None,
            "0 of 2 weight is healthy",
        ),
        (
            with(|service| (service.healthy, service.total) = (0, 0)),
            None,
            "0 of 0 weight is healthy",
        ),
    ] {
        let mut decider = Decider::new(&settings(0, 0), &Announced::new());
        let decision = decide(&mut decider, &facts, 100);
        assert_eq!((decision.role, decision.reason.as_str()), (role, reason));
        assert_eq!(decision.refused, reason.contains("outside"));
    }
}

#[test]
fn watermarks_keep_what_is_between_them() {
    let mut decider = Decider::new(&settings(5_000, 2_500), &Announced::new());
    // Seconds, healthy weight of 100, announced, end of the reason.
    for (at, healthy, announced, reason) in [
        (100, 40, false, "less than 50 %"),
        (101, 50, true, "is healthy"),
        (102, 26, true, "is healthy"),
        (103, 25, false, "not above 25 %"),
        (104, 49, false, "less than 50 %"),
        (105, 50, false, "(hold_down): 6 s left"),
        (110, 50, false, "(hold_down): 1 s left"),
        (111, 50, true, "is healthy"),
    ] {
        let decision = decide(&mut decider, &facts("192.0.2.1", service(healthy, 100)), at);
        assert_eq!(decision.role.is_some(), announced, "{at}: {decision:?}");
        assert!(decision.reason.ends_with(reason), "{at}: {decision:?}");
    }
}

#[test]
fn what_was_announced_before_stays_between_the_watermarks_and_untested() {
    let before = Announced::from([(prefix("192.0.2.1"), Role::Serving)]);
    let mut untested = service(30, 100);
    untested.test = Test::Untested;
    let facts = facts("192.0.2.1", untested);
    let mut adopted = Decider::new(&settings(5_000, 2_500), &before);
    assert_eq!(decide(&mut adopted, &facts, 1).role, Some(Role::Serving));
    let mut new = Decider::new(&settings(5_000, 2_500), &Announced::new());
    assert_eq!(decide(&mut new, &facts, 1).role, None);
}

/// A pool that is replaced, a table that is about to be written, a service that is added: for a moment nothing is known.
#[test]
fn what_is_announced_is_not_withdrawn_for_what_is_awaited() {
    let announced = Announced::from([(prefix("192.0.2.1"), Role::Serving)]);
    let awaited = ServiceFacts {
        awaited: 100,
        ..service(0, 100)
    };
    let unpublished = ServiceFacts {
        published: false,
        test: Test::Untested,
        ..service(100, 100)
    };
    let failed = ServiceFacts {
        test: Test::Failed("no".into()),
        ..awaited.clone()
    };
    // What is known, whether tables are about to be written, whether it stays.
    for (service, pending, stays) in [
        (awaited, false, true),
        (unpublished.clone(), true, true),
        (unpublished, false, false),
        (failed, true, false),
        (service(0, 100), true, false),
    ] {
        let facts = Facts {
            pending,
            ..facts("192.0.2.1", service)
        };
        let mut known = Decider::new(&settings(0, 0), &announced);
        let decision = decide(&mut known, &facts, 1);
        assert_eq!(decision.role.is_some(), stays, "{facts:?}: {decision:?}");
        let mut new = Decider::new(&settings(0, 0), &Announced::new());
        assert_eq!(decide(&mut new, &facts, 1).role, None, "{facts:?}");
    }
}

#[test]
fn a_service_that_is_removed_and_added_again_is_still_held_down() {
    let mut decider = Decider::new(&settings(0, 0), &Announced::new());
    let there = facts("192.0.2.1", service(1, 1));
    let none = Facts {
        vips: [].into(),
        ..there.clone()
    };
    assert!(decide(&mut decider, &there, 100).role.is_some());
    assert!(decider.decide(&none, Duration::from_secs(101)).is_empty());
    assert!(decide(&mut decider, &there, 102).role.is_none());
    assert!(decide(&mut decider, &there, 110).role.is_some());
}

#[test]
fn a_node_drains_step_by_step_as_far_as_its_driver_follows() {
    let vip = prefix("192.0.2.1");
    let mut announcing = Announcing::new(settings(0, 0), Phase::Serving);
    let facts = facts("192.0.2.1", service(1, 1));
    let at = Duration::from_secs;
    assert!(
        announcing.decide(facts.clone(), at(1)).order.is_none(),
        "nothing is known yet"
    );
    announcing.on_report(Report::Adopted(Ok([(vip, Role::Serving)].into())));
    let step = |announcing: &mut Announcing, seconds, role: Option<Role>| {
        let next = announcing.decide(facts.clone(), at(seconds));
        if next.order.is_some() {
            let announced = role.map(|role| (vip, role)).into_iter().collect();
            let outcome = Outcome {
                announced,
                ..Outcome::default()
            };
            announcing.on_report(Report::Done(outcome));
        }
        (
            announcing.node(at(seconds)).state,
            announcing.node(at(seconds)).seconds_left,
        )
    };
    let state = |state: &str, left| (state.to_owned(), left);
    assert_eq!(
        step(&mut announcing, 2, Some(Role::Serving)),
        state("serving", None)
    );
    announcing.set_drain(true);
    // The driver fails first: nobody has heard of the drain, and time does not count.
    let next = announcing.decide(facts.clone(), at(3));
    assert!(next.order.is_some());
    let outcome = Outcome {
        problem: Some("no session".into()),
        ..Outcome::default()
    };
    announcing.on_report(Report::Done(outcome));
    assert_eq!(step(&mut announcing, 50, None), state("draining", None));
    let outcome = Outcome {
        announced: [(vip, Role::Draining)].into(),
        ..Outcome::default()
    };
    announcing.on_report(Report::Done(outcome));
    assert_eq!(step(&mut announcing, 60, None), state("draining", Some(5)));
    assert_eq!(step(&mut announcing, 65, None), state("lingering", None));
    assert_eq!(
        step(&mut announcing, 66, None),
        state("lingering", Some(20))
    );
    assert_eq!(step(&mut announcing, 86, None), state("safe", None));
    announcing.set_drain(false);
    assert_eq!(
        step(&mut announcing, 87, Some(Role::Serving)),
        state("serving", None)
    );
    assert_eq!(
        announcing.announced(),
        &Announced::from([(vip, Role::Serving)])
    );
}

/// One VIP that flaps, one that cannot be announced, and others that come and go: none of them keeps the node from leaving.
#[test]
fn a_node_leaves_whatever_single_vips_do() {
    let [vip, other] = ["192.0.2.1", "192.0.2.2"].map(prefix);
    let mut announcing = Announcing::new(settings(0, 0), Phase::Serving);
    announcing.on_report(Report::Adopted(Ok([(vip, Role::Serving)].into())));
    let both = |healthy| {
        let mut facts = facts("192.0.2.1", service(1, 1));
        facts.vips.insert(other, vec![service(healthy, 1)]);
        facts
    };
    // The driver does what it can: the other one is refused.
    let step = |announcing: &mut Announcing, facts: Facts, seconds| {
        let at = Duration::from_secs(seconds);
        if let Some(wanted) = announcing.decide(facts, at).order {
            let role = wanted.get(&vip).copied().flatten();
            let announced = role.map(|role| (vip, role)).into_iter().collect();
            let failed = match wanted.get(&other) {
                Some(Some(_)) => [(other, "refused".to_owned())].into(),
                Some(None) | None => Default::default(),
            };
            let outcome = Outcome {
                announced,
                failed,
                ..Outcome::default()
            };
            announcing.on_report(Report::Done(outcome));
        }
        announcing.node(at).state
    };
    assert_eq!(step(&mut announcing, both(1), 1), "serving");
    announcing.set_drain(true);
    assert_eq!(step(&mut announcing, both(1), 2), "draining");
    for at in 3..8 {
        assert_eq!(step(&mut announcing, both(at % 2), at), "draining", "{at}");
    }
    assert_eq!(step(&mut announcing, both(1), 8), "lingering");
    for at in 9..29 {
        let facts = if at % 2 == 0 {
            both(1)
        } else {
            facts("192.0.2.1", service(1, 1))
        };
        assert_eq!(step(&mut announcing, facts, at), "lingering", "{at}");
    }
    assert_eq!(step(&mut announcing, both(1), 29), "safe");
}

#[test]
fn one_failed_self_test_is_no_reason_and_two_are() {
    let name = crate::spec::Name::parse("www").unwrap();
    let mut announcing = Announcing::new(settings(0, 0), Phase::Serving);
    let now = Duration::from_secs(9);
    assert_eq!(announcing.test_of(&name), Test::Untested);
    announcing.on_test(&name, Ok(()), now);
    assert!(announcing.test_due(&name) > now);
    announcing.on_test(&name, Err("dropped".into()), now);
    assert_eq!(
        (announcing.test_of(&name), announcing.test_due(&name)),
        (Test::Passed, now)
    );
    announcing.on_test(&name, Err("dropped".into()), now);
    assert_eq!(announcing.test_of(&name), Test::Failed("dropped".into()));
    announcing.on_test(&name, Ok(()), now);
    assert_eq!(announcing.test_of(&name), Test::Passed);
}

#[test]
fn settings_have_defaults_and_each_mistake_is_named() {
    let parse = |text: &str| NodeConfig::parse(&format!("interfaces: [{{ name: lo }}]\n{text}"));
    let short = parse("announce:\n  allow: [192.0.2.0/24]\n")
        .unwrap()
        .announce
        .unwrap();
    assert_eq!(
        short.driver,
        Driver::Route(RouteSettings {
            table: 179,
            protocol: 179
        })
    );
    assert_eq!(
        (short.watermarks.up, short.watermarks.down, short.hold_down),
        (0, 0, HOLD)
    );
    let full =
        parse("announce: { allow: [192.0.2.0/24], up: 50%, down: 2.5, driver: route }").unwrap();
    assert_eq!(
        full.announce.unwrap().watermarks,
        Watermarks {
            up: 5_000,
            down: 250
        }
    );
    let text = "announce:
  allow: [192.0.2.1/24]
  driver: carrier-pigeon
  up: 10%
  down: 20%
  hold_down: soon
  route:
    table: 254
    protocol: 12
";
    let problems = parse(text).unwrap_err().0;
    let seen: Vec<(&str, &str, Option<u64>)> = problems
        .iter()
        .map(|problem| (problem.field.as_str(), problem.value.as_str(), problem.line))
        .collect();
    let expected = [
        ("announce.allow[0]", "192.0.2.1/24", Some(3)),
        ("announce.route.table", "254", Some(9)),
        ("announce.route.protocol", "12", Some(10)),
        ("announce.driver", "carrier-pigeon", Some(4)),
        ("announce.hold_down", "soon", Some(7)),
        ("announce.up", "10%", Some(5)),
    ];
    assert_eq!(seen, expected);
    let said = parse("announce: { driver: exec }").unwrap_err().to_string();
    assert!(
        said.contains("announce.allow: is missing or empty"),
        "{said}"
    );
    assert!(
        said.contains("announce.exec.command: does not start with"),
        "{said}"
    );
}

#[test]
fn what_speakers_are_told_has_defaults_and_each_mistake_is_named() {
    let parse = |text: &str| {
        NodeConfig::parse(&format!(
            "interfaces: [{{ name: lo }}]\nannounce:\n  allow: [192.0.2.0/24]\n{text}"
        ))
    };
    let driver = |text: &str| parse(text).unwrap().announce.unwrap().driver;
    let Driver::Exabgp(exabgp) = driver("  driver: exabgp\n") else {
        panic!("not exabgp")
    };
    assert_eq!(exabgp.socket.to_str(), Some(DEFAULT_SOCKET));
    let said = &exabgp.attributes;
    assert_eq!(
        (
            said.next_hop_v4,
            said.next_hop_v6,
            said.med,
            said.draining_med
        ),
        (None, None, 0, 1_000)
    );
    let full = "  driver: gobgp
  gobgp:
    address: \"[::1]:50051\"
    next_hop: { ipv4: self, ipv6: \"2001:db8::11\" }
    med: 4000
    communities: [\"65001:100\", \"65535:65281\"]
    timeout: 1s
";
    let Driver::Gobgp(gobgp) = driver(full) else {
        panic!("not gobgp")
    };
    assert!(gobgp.address.is_ipv6() && gobgp.timeout == Duration::from_secs(1));
    let said = &gobgp.attributes;
    assert_eq!((said.med, said.draining_med), (4_000, 4_001));
    assert_eq!(
        (said.next_hop_v6, said.communities.len()),
        ("2001:db8::11".parse().ok(), 2)
    );
    let text = "  driver: exabgp
  exabgp:
    socket: lbd.sock
    next_hop: { ipv4: \"::1\", ipv6: \"::\" }
    med: -1
    draining_med: 0
    communities: [\"65535:0\", \"65001\"]
    timeout: 1ms
  gobgp:
    address: localhost
    med: 7
    draining_med: 7
";
    let problems = parse(text).unwrap_err().0;
    let seen: Vec<(&str, &str)> = problems
        .iter()
        .map(|problem| (problem.field.as_str(), problem.value.as_str()))
        .collect();
    let expected = [
        ("announce.exabgp.socket", "lbd.sock"),
        ("announce.exabgp.next_hop.ipv4", "::1"),
        ("announce.exabgp.next_hop.ipv6", "::"),
        ("announce.exabgp.med", "-1"),
        ("announce.exabgp.draining_med", "0"),
        ("announce.exabgp.communities[0]", "65535:0"),
        ("announce.exabgp.communities[1]", "65001"),
        ("announce.exabgp.timeout", "1ms"),
        ("announce.gobgp.address", "localhost"),
        ("announce.gobgp.draining_med", "7"),
    ];
    assert_eq!(seen, expected);
    assert!(
        problems.iter().all(|problem| problem.line.is_some()),
        "{problems:?}"
    );
    assert!(parse("  driver: exabgp\n  exabgp: { sockets: /a }\n").is_err());
}

#[test]
fn what_the_shipped_configuration_shows_is_understood() {
    let shipped = include_str!("../../../deploy/lbd.yaml");
    let section = shipped.split_once("\n#announce:\n").unwrap().1;
    let section = section.split_once("\n\n").unwrap().0.replace("\n#", "\n");
    let section = section.strip_prefix('#').unwrap();
    for driver in ["route", "exec", "exabgp", "gobgp"] {
        let section = section.replace("driver: route", &format!("driver: {driver}"));
        let text = format!("interfaces: [{{ name: lo }}]\nannounce:\n{section}\n");
        let announce = NodeConfig::parse(&text).unwrap().announce.unwrap();
        assert_eq!(announce.driver.as_str(), driver);
    }
}

proptest! {
    /// Whatever happens, at random moments, to one VIP.
    #[test]
    fn no_history_breaks_a_rule(
        up in 0..=WHOLE,
        down in 0..=WHOLE,
        steps in proptest::collection::vec((0..4_000_u64, 0..=100_u64, 0..12_u8, 0..8_u8), 1..60),
    ) {
        let (up, down) = (up.max(down), up.min(down));
        let mut decider = Decider::new(&settings(up, down), &Announced::new());
        let (mut now, mut announced, mut last) = (Duration::from_secs(1_000), false, None::<Duration>);
        for (wait, healthy, plane, node) in steps {
            now += Duration::from_millis(wait);
            let mut facts = facts("192.0.2.1", service(healthy, 100));
            if plane == 0 {
                facts.plane = Err("gone".into());
            }
            facts.node = match node {
                0 => Phase::Withdrawn,
                1 => Phase::Draining,
                _ => Phase::Serving,
            };
            let before = decider.clone();
            let decision = decider.decide(&facts, now).into_values().next().unwrap();
            let share = healthy * 100;
            let able = facts.plane.is_ok() && facts.node != Phase::Withdrawn && share > down;
            let free = last.is_none_or(|last| now >= last + HOLD);
            // The rules, once more and without memory but for these two.
            let begins = share >= up && free && facts.node != Phase::Draining;
            let expected = able && (announced || begins);
            prop_assert_eq!(decision.role.is_some(), expected, "{:?} {:?}", facts, decision);
            if expected && !announced {
                last = Some(now);
            }
            announced = expected;
            prop_assert_eq!(decision.role == Some(Role::Draining), expected && facts.node == Phase::Draining);
            prop_assert!(!decision.reason.is_empty());
            // To decide twice is to decide once.
            let (mut once, mut again) = (decider.clone(), before);
            again.decide(&facts, now);
            prop_assert_eq!(once.decide(&facts, now), again.decide(&facts, now));
        }
    }
}
