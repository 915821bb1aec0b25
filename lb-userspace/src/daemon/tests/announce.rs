//! Announcing in the core: what is wanted of the driver, and the node's drain on disk.

use super::*;
use crate::{
    announce::{Announced, Outcome, Role, Wanted, worker::Report},
    config::NodeConfig,
    dataplane::{Explained, XdpMode},
    prefix::Prefix,
};
use anyhow::bail;
use lb_common::{
    trace::{Event, Record, SNAP},
    verdict::Verdict,
};

fn vip() -> Prefix {
    "10.0.0.1".parse().unwrap()
}

/// A core that announces, with the program on its interface. The driver has found nothing announced.
fn announcing(directory: &Path, plane: FakeDataPlane) -> Core<FakeDataPlane> {
    let text = "interfaces: [{ name: eth0 }]\nannounce: { allow: [10.0.0.0/24] }\n";
    let mut core = start(directory, plane);
    core.begin_announcing(NodeConfig::parse(text).unwrap().announce.unwrap());
    core.on_attachments(
        vec![Attachment {
            name: "eth0".into(),
            index: 3,
            up: true,
            mode: Some(XdpMode::Native),
            program_id: 9,
            note: String::new(),
        }],
        true,
    );
    core
}

fn adopt(core: &mut Core<FakeDataPlane>, found: Announced) {
    core.on_announced(Report::Adopted(Ok(found)));
}

/// What the driver is told, if it is told anything; it does it.
fn told(core: &mut Core<FakeDataPlane>, at: Duration) -> Option<Wanted> {
    let wanted = core.announce(false, at)?;
    let announced = wanted.iter();
    let announced = announced.filter_map(|(prefix, role)| Some((*prefix, (*role)?)));
    let outcome = Outcome {
        announced: announced.collect(),
        ..Outcome::default()
    };
    core.on_announced(Report::Done(outcome));
    Some((*wanted).clone())
}

fn pass(core: &mut Core<FakeDataPlane>, result: Result<(), String>) {
    let announcing = core.announcing.as_mut().unwrap();
    announcing.on_test(&Name::parse("www").unwrap(), result, NOW);
}

#[test]
fn a_vip_comes_when_all_is_known_of_it_and_goes_with_its_backends() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    assert_eq!(
        told(&mut core, NOW),
        None,
        "the driver has said nothing yet"
    );
    adopt(&mut core, Announced::new());
    let (none, serving) = (
        Wanted::from([(vip(), None)]),
        Wanted::from([(vip(), Some(Role::Serving))]),
    );
    assert_eq!(
        told(&mut core, NOW),
        Some(none.clone()),
        "nothing is published"
    );
    all_well(&mut core);
    assert_eq!(told(&mut core, NOW), None, "nothing is tested");
    pass(&mut core, Ok(()));
    assert_eq!(told(&mut core, NOW), Some(serving.clone()));
    core.on_health(report(target("www", "b1"), HealthState::Down), NOW);
    assert_eq!(told(&mut core, NOW), None, "one backend is left");
    core.on_health(report(target("www", "b2"), HealthState::Down), NOW);
    assert!(
        core.announce(true, NOW).is_some(),
        "before tables are written"
    );
    core.on_health(report(target("www", "b2"), HealthState::Up), NOW);
    let later = NOW + Duration::from_secs(60);
    assert!(
        core.announce(true, later).is_none(),
        "not before tables are written"
    );
    assert_eq!(told(&mut core, later), Some(serving));
    core.on_health(report(target("www", "b2"), HealthState::Down), NOW);
    assert_eq!(told(&mut core, later), Some(none));
    let view = core.announcements().unwrap().remove(0);
    assert_eq!(
        (view.state.as_str(), view.healthy_weight, view.total_weight),
        ("withdrawn", 0, 200)
    );
    let warnings = core.status(Duration::ZERO).warnings;
    let said = "10.0.0.1 (www) is not announced: 0 of 200 weight is healthy";
    assert!(
        warnings.iter().any(|warning| warning == said),
        "{warnings:?}"
    );
}

#[test]
fn what_an_earlier_daemon_announced_stays_until_something_is_wrong_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    adopt(&mut core, [(vip(), Role::Serving)].into());
    let serving = Wanted::from([(vip(), Some(Role::Serving))]);
    assert_eq!(
        told(&mut core, NOW),
        Some(serving),
        "untested, and not withdrawn"
    );
    pass(&mut core, Err("it is dropped".into()));
    assert_eq!(told(&mut core, NOW), None, "one failure may be chance");
    pass(&mut core, Err("it is dropped".into()));
    assert_eq!(told(&mut core, NOW), Some([(vip(), None)].into()));
    let view = core.announcements().unwrap().remove(0);
    assert!(
        view.reason
            .ends_with("the self-test of www failed: it is dropped"),
        "{view:?}"
    );
}

#[test]
fn a_self_test_that_could_not_be_run_says_nothing_of_its_service() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    adopt(&mut core, Announced::new());
    pass(&mut core, Ok(()));
    assert_eq!(
        told(&mut core, NOW),
        Some([(vip(), Some(Role::Serving))].into())
    );
    let later = |seconds| NOW + Duration::from_secs(seconds);
    for seconds in 10..15 {
        let due = core.due_tests(later(seconds));
        assert_eq!(due.len(), 1, "it stays due");
        let run = core.test(due, later(seconds), |_| bail!("no such device"));
        assert_eq!(run.unwrap_err().to_string(), "no such device");
        assert_eq!(told(&mut core, later(seconds)), None);
    }
    // What the program says counts.
    for seconds in [15, 16] {
        let due = core.due_tests(later(seconds));
        let run = core.test(due, later(seconds), |_| Ok(dropped()));
        assert!(run.is_ok());
    }
    assert_eq!(told(&mut core, later(16)), Some([(vip(), None)].into()));
}

/// A packet that the program drops.
fn dropped() -> Explained {
    let record = Record {
        verdict: Verdict::DropNoBackend as u32,
        ..Record::default()
    };
    Explained {
        event: Event {
            record,
            before: [0; SNAP],
            after: [0; SNAP],
        },
        frame: Vec::new(),
    }
}

#[test]
fn tables_that_change_all_the_time_keep_no_service_from_its_test() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    let services = ["a", "b", "c"].map(|name| {
        format!(
            "  - {{ name: {name}, address: 10.0.0.1, protocol: tcp, port: {}, backends: [{{ name: b1, address: 10.20.0.1 }}] }}\n",
            u32::from(name.as_bytes()[0])
        )
    });
    let state = |names: usize| format!("services:\n{}", services[..names].concat());
    core.change(&Change::Apply(spec(&state(2))), &MAKE).unwrap();
    all_well(&mut core);
    let mut tested = String::new();
    for second in 0..6 {
        let now = NOW + Duration::from_secs(second);
        if second == 4 {
            core.change(&Change::Apply(spec(&state(3))), &MAKE).unwrap();
            core.reconcile(now);
        }
        // There is time for one.
        let name = core.due_tests(now).remove(0);
        tested.push_str(name.as_str());
        let announcing = core.announcing.as_mut().unwrap();
        announcing.on_test(&name, Ok(()), now);
        announcing.published();
    }
    assert_eq!(tested, "ababca", "a new one comes first");
}

#[test]
fn a_pool_that_is_replaced_as_a_whole_keeps_its_vip_until_the_new_one_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    adopt(&mut core, [(vip(), Role::Serving)].into());
    assert!(told(&mut core, NOW).is_some());
    let others = WWW.replace("b1", "c1").replace("b2", "c2");
    let others = others
        .replace("10.20.0.1", "10.20.0.3")
        .replace("10.20.0.2", "10.20.0.4");
    core.change(&Change::Apply(spec(&others)), &MAKE).unwrap();
    assert!(core.announce(true, NOW).is_none(), "no way is known");
    core.reconcile_new(NOW);
    assert_eq!(told(&mut core, NOW), None, "no way is known");
    all_reachable(&mut core);
    core.reconcile_new(NOW);
    assert_eq!(told(&mut core, NOW), None, "no probe has ended");
    for backend in ["c1", "c2"] {
        core.on_health(report(target("www", backend), HealthState::Down), NOW);
    }
    assert_eq!(told(&mut core, NOW), Some([(vip(), None)].into()));
}

#[test]
fn before_anything_is_decided_the_services_vips_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    core.on_announced(Report::Adopted(Err("no speaker".into())));
    let view = core.announcements().unwrap().remove(0);
    let said = (
        view.address.as_str(),
        view.state.as_str(),
        view.problem.as_str(),
    );
    assert_eq!(said, ("10.0.0.1", "withdrawn", "no speaker"));
    assert_eq!(
        (view.services, view.reason.as_str()),
        (vec!["www".to_owned()], "nothing is decided yet")
    );
}

#[test]
fn the_node_s_drain_outlives_its_daemon_and_a_damaged_file_means_drained() {
    let directory = tempfile::tempdir().unwrap();
    let state = |core: &Core<FakeDataPlane>| core.node().unwrap().state;
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    assert_eq!(core.drain_node(true).unwrap().state, "draining");
    adopt(&mut core, Announced::new());
    for seconds in [0, 1, 10, 11, 12, 80] {
        told(&mut core, NOW + Duration::from_secs(seconds));
    }
    assert_eq!(
        core.announcing.as_ref().unwrap().phase().as_str(),
        "withdrawn"
    );
    drop(core);
    let core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    assert_eq!(state(&core), "lingering", "its wait begins anew");
    drop(core);
    std::fs::write(directory.path().join("node_drain"), "drai").unwrap();
    let mut core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    assert_eq!(state(&core), "lingering");
    let warned = |core: &Core<FakeDataPlane>| {
        let warnings = core.status(Duration::ZERO).warnings;
        warnings
            .iter()
            .any(|warning| warning.contains("holds \"drai\""))
    };
    assert!(warned(&core));
    // What cannot be written down is not so: here a directory is in the way.
    let file = directory.path().join("node_drain");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert!(core.drain_node(false).is_err());
    assert_eq!(state(&core), "lingering");
    std::fs::remove_dir(&file).unwrap();
    assert_eq!(core.drain_node(false).unwrap().state, "serving");
    assert!(!warned(&core));
    drop(core);
    let core = announcing(directory.path(), FakeDataPlane::new(8, 33));
    assert_eq!(state(&core), "serving");
    drop(core);
    let refused = new(directory.path()).drain_node(true).unwrap_err();
    assert!(refused.message.contains("announces nothing"), "{refused:?}");
}
