//! What keeps a change from being made, drains, and the way back.

use super::*;
use crate::{
    dataplane::{Attachment, fake::FakeDataPlane},
    desired::Store,
    health::{
        checker::HealthReport,
        state::{HealthState, Outcome},
    },
    neighbour::{NextHopUpdate, ResolvedHop},
    spec::Limits,
};
use std::{fs, net::IpAddr, path::Path, time::Duration};

const LIMITS: Limits = Limits {
    services: 4,
    backends: 8,
};

/// CLOCK_MONOTONIC.
const NOW: Duration = Duration::from_secs(10_000);

const MAKE: ChangeOptions = ChangeOptions {
    dry_run: false,
    if_revision: None,
    max_move: None,
    now: false,
};

fn open(directory: &Path, limits: Limits) -> Core<FakeDataPlane> {
    let plane = FakeDataPlane::new(8, 33);
    Core::new(plane, false, Store::open(directory).unwrap(), limits, NOW).unwrap()
}

/// Two services; the host `b1` is behind both. Revision 1.
fn core(directory: &Path) -> Core<FakeDataPlane> {
    let mut core = open(directory, LIMITS);
    apply(&mut core, STATE);
    core
}

const STATE: &str = "
services:
  - { name: dns, address: 10.0.0.2, protocol: udp, port: 53, backends: [{ name: b1, address: 10.20.0.1 }] }
  - name: www
    address: 10.0.0.1
    protocol: tcp
    port: 80
    backends: [{ name: b1, address: 10.20.0.1 }, { name: b2, address: 10.20.0.2 }]
";

fn spec(yaml: &str) -> StateSpec {
    crate::spec::yaml::state_from_str(yaml).unwrap()
}

fn apply(core: &mut Core<FakeDataPlane>, yaml: &str) {
    core.change(&Change::Apply(spec(yaml)), &MAKE).unwrap();
}

/// Tells the core that every backend is up and can be reached.
fn all_well(core: &mut Core<FakeDataPlane>) {
    let attachment = Attachment {
        name: "eth0".into(),
        index: 3,
        up: true,
        mode: None,
        program_id: 0,
        note: String::new(),
    };
    core.on_attachments(vec![attachment], false);
    for address in core.addresses() {
        let hop = ResolvedHop {
            mac: [2, 0, 0, 0, 0, 9],
            interface: 3,
            interface_name: "eth0".into(),
            gateway: None,
            source: IpAddr::from([10, 20, 0, 254]),
            mtu: 1500,
        };
        core.on_next_hop(NextHopUpdate {
            address,
            resolution: Ok(hop),
        });
    }
    for target in core.targets().into_keys() {
        core.on_health(
            HealthReport {
                target,
                state: HealthState::Up,
                changed: true,
                outcome: Outcome::Success,
                detail: String::new(),
                latency: None,
            },
            NOW,
        );
    }
    core.reconcile(NOW);
}

fn weight(weight: i64) -> Change {
    Change::SetBackend {
        service: "www".into(),
        backend: "b2".into(),
        patch: crate::spec::BackendPatch {
            weight: Some(weight),
            ..Default::default()
        },
    }
}

fn drain(backend: &str, service: Option<&str>, drain: bool) -> Change {
    Change::Drain {
        backend: backend.into(),
        service: service.map(Into::into),
        drain,
    }
}

fn rollback(revision: u64) -> Change {
    Change::Rollback { revision }
}

/// The code and the words of a refusal, after which everything is as it was.
fn refused(
    core: &mut Core<FakeDataPlane>,
    change: &Change,
    options: &ChangeOptions,
) -> (ErrorCode, String) {
    let before = core.state_view().unwrap();
    let refusal = core.change(change, options).unwrap_err();
    assert_eq!(core.state_view().unwrap(), before);
    (refusal.code, refusal.message)
}

fn history(core: &Core<FakeDataPlane>) -> Vec<(u64, String, String, bool)> {
    let revisions = core.history().list().unwrap();
    let view = |view: RevisionView| {
        assert_eq!(view.problem, "");
        humantime::parse_rfc3339(&view.time).unwrap();
        (view.revision, view.change, view.summary, view.current)
    };
    revisions.into_iter().map(view).collect()
}

#[test]
fn a_change_for_another_revision_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    for (meant, dry_run) in [(0, false), (2, false), (2, true)] {
        let options = ChangeOptions {
            if_revision: Some(meant),
            dry_run,
            ..MAKE
        };
        let (code, said) = refused(&mut core, &weight(50), &options);
        assert_eq!(code, ErrorCode::Conflict);
        let start =
            format!("the change is meant for revision {meant}, but revision 1 is in force: look");
        assert!(said.starts_with(&start), "{said}");
    }
    let right = ChangeOptions {
        if_revision: Some(1),
        ..MAKE
    };
    assert_eq!(core.change(&weight(50), &right).unwrap().revision, 2);
    assert_eq!(
        refused(&mut core, &weight(60), &right).0,
        ErrorCode::Conflict
    );
}

#[test]
fn a_change_that_moves_too_much_is_refused_with_the_share() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    all_well(&mut core);
    let planned = core.change(
        &weight(50),
        &ChangeOptions {
            dry_run: true,
            ..MAKE
        },
    );
    let slots = planned.unwrap().tables[0].slots_changed;
    assert!((4_000..20_000).contains(&slots), "{slots}");
    let at_most = |percent: &str| ChangeOptions {
        max_move: Some(percent.parse().unwrap()),
        ..MAKE
    };
    let (code, said) = refused(&mut core, &weight(50), &at_most("2.5%"));
    let share = f64::from(slots) * 100.0 / f64::from(SLOTS);
    let start = format!(
        "the change would move {slots} of 65537 slots of service `www` ({share:.2} %), and at most 2.5 % may move: "
    );
    assert_eq!(code, ErrorCode::Conflict);
    assert!(said.starts_with(&start), "{said}");
    let enough = at_most(&format!("{}", share + 0.001));
    assert_eq!(core.change(&weight(50), &enough).unwrap().revision, 2);
}

#[test]
fn what_a_change_is_going_to_do_is_computed_with_what_the_tables_follow_from() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    all_well(&mut core);
    let is_ready = |core: &Core<FakeDataPlane>| {
        let www = core.roster.services.values().next_back().unwrap();
        www.members.overlay().is_ready()
    };
    assert!(!is_ready(&core), "nothing has needed stand-ins");
    let dry = ChangeOptions {
        dry_run: true,
        ..MAKE
    };
    let planned = core.change(&drain("b1", None, true), &dry).unwrap();
    assert_eq!(planned.tables.len(), 2);
    assert!(is_ready(&core));
}

#[test]
fn a_new_service_moves_nothing_and_a_removed_one_everything() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    let none = ChangeOptions {
        max_move: Some("0".parse().unwrap()),
        ..MAKE
    };
    let new = "  - { name: new, address: 10.0.0.3, protocol: tcp, port: 1, backends: [{ name: b3, address: 10.20.0.3 }] }\n";
    let with_new = Change::Apply(spec(&format!("{STATE}{new}")));
    assert_eq!(core.change(&with_new, &none).unwrap().revision, 2);
    let remove = Change::RemoveService {
        service: "new".into(),
    };
    let (_, said) = refused(&mut core, &remove, &none);
    assert!(said.contains("slots of service `new` (100.00 %)"), "{said}");
}

#[test]
fn a_drain_is_of_a_host_and_again_is_no_change() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    let begun = core.change(&drain("b1", None, true), &MAKE).unwrap();
    let lines: Vec<_> = begun
        .changes
        .iter()
        .map(|line| (line.name.as_str(), line.detail.as_str()))
        .collect();
    assert_eq!(
        lines,
        [("dns/b1", "drain begins"), ("www/b1", "drain begins")]
    );
    assert_eq!((begun.revision, begun.changed), (2, true));
    let again = core.change(&drain("b1", None, true), &MAKE).unwrap();
    assert_eq!((again.revision, again.changed), (2, false));
    let drains = |core: &mut Core<FakeDataPlane>| -> Vec<String> {
        core.reconcile(NOW);
        let drains = core.drains().unwrap();
        drains
            .into_iter()
            .map(|drain| format!("{}/{} {}", drain.service, drain.backend, drain.reason))
            .collect()
    };
    assert_eq!(drains(&mut core), ["dns/b1 drain", "www/b1 drain"]);
    core.change(&drain("b1", Some("www"), false), &MAKE)
        .unwrap();
    assert_eq!(drains(&mut core), ["dns/b1 drain"]);
    let (code, said) = refused(&mut core, &drain("b11", None, true), &MAKE);
    assert_eq!(code, ErrorCode::NotFound);
    assert_eq!(said, "no service has a backend `b11`; did you mean `b1`?");
}

#[test]
fn the_digest_tells_nodes_apart_by_what_they_do() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [mut ours, mut theirs] = directories
        .each_ref()
        .map(|directory| core(directory.path()));
    let early = ours.digest(7).unwrap_err();
    assert_eq!(early.code, ErrorCode::Unavailable);
    assert!(early.message.contains("service `dns` is not in force yet"));
    theirs.change(&weight(50), &MAKE).unwrap();
    theirs.change(&rollback(1), &MAKE).unwrap();
    all_well(&mut ours);
    all_well(&mut theirs);
    let digest = |core: &mut Core<FakeDataPlane>| core.digest(7).unwrap();
    let names: Vec<_> = digest(&mut ours)
        .services
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert_eq!(names, ["dns", "www"]);
    // Another history, the same state.
    assert_eq!(digest(&mut ours), digest(&mut theirs));
    theirs.change(&weight(50), &MAKE).unwrap();
    theirs.reconcile(NOW);
    assert_eq!(
        digest(&mut ours).services[0],
        digest(&mut theirs).services[0]
    );
    assert_ne!(
        digest(&mut ours).services[1].table,
        digest(&mut theirs).services[1].table
    );
}

#[test]
fn the_history_says_what_was_changed_and_how() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    core.change(&weight(50), &MAKE).unwrap();
    core.change(&weight(50), &MAKE).unwrap();
    core.change(&drain("b1", None, true), &MAKE).unwrap();
    let entry = |revision, change: &str, summary: &str, current| {
        (revision, change.to_owned(), summary.to_owned(), current)
    };
    let expected = [
        entry(
            3,
            "backend drain",
            "change backend dns/b1: drain begins, and 1 more",
            true,
        ),
        entry(
            2,
            "backend set",
            "change backend www/b2: weight 100 -> 50",
            false,
        ),
        entry(
            1,
            "apply",
            "add service dns: 10.0.0.2 udp/53, ipip, 1 backend, and 4 more",
            false,
        ),
    ];
    assert_eq!(history(&core), expected);
    drop(core);
    assert_eq!(history(&open(directory.path(), LIMITS)), expected);
}

#[test]
fn a_rollback_is_a_new_revision_with_the_old_state() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    let first = core.state_view().unwrap().state;
    core.change(&weight(50), &MAKE).unwrap();
    core.change(&drain("b2", None, true), &MAKE).unwrap();
    let dry = ChangeOptions {
        dry_run: true,
        ..MAKE
    };
    let planned = core.change(&rollback(1), &dry).unwrap();
    assert_eq!((planned.revision, planned.changed), (3, true));
    assert_eq!(planned.changes[0].detail, "weight 50 -> 100, drain ends");
    let done = core.change(&rollback(1), &MAKE).unwrap();
    assert_eq!((done.revision, done.changes), (4, planned.changes));
    assert_eq!(core.state_view().unwrap().state, first);
    assert_eq!(history(&core)[0].1, "rollback 1");
    for to in [1, 4] {
        let nothing = core.change(&rollback(to), &MAKE).unwrap();
        assert_eq!((nothing.revision, nothing.changed), (4, false), "{to}");
    }
    let stale = ChangeOptions {
        if_revision: Some(3),
        ..MAKE
    };
    assert_eq!(
        refused(&mut core, &rollback(2), &stale).0,
        ErrorCode::Conflict
    );
}

#[test]
fn a_rollback_to_what_is_not_kept_says_what_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    for n in 0..101 {
        core.change(&weight(n), &MAKE).unwrap();
    }
    assert_eq!(core.history().list().unwrap().len(), 100);
    for missing in [0, 2, 103, u64::MAX] {
        let (code, said) = refused(&mut core, &rollback(missing), &MAKE);
        assert_eq!(code, ErrorCode::NotFound);
        assert_eq!(
            said,
            format!(
                "there is no revision {missing} to go back to: 3 to 102 are kept (see `lbctl history`)"
            )
        );
    }
    core.change(&rollback(3), &MAKE).unwrap();
    let backends = &core.state_view().unwrap().state.services[1].backends;
    assert_eq!(backends[1].weight, 1);
}

#[test]
fn one_damaged_revision_is_shown_as_such_and_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    core.change(&weight(50), &MAKE).unwrap();
    core.change(&weight(60), &MAKE).unwrap();
    let file = |revision: u64| {
        directory
            .path()
            .join(format!("history/{revision:010}.json"))
    };
    let whole = fs::read(file(1)).unwrap();
    fs::write(file(1), &whole[..whole.len() / 2]).unwrap();
    // A file that says it is another revision is none to go back to either.
    fs::copy(file(3), file(2)).unwrap();
    let said: Vec<_> = core
        .history()
        .list()
        .unwrap()
        .into_iter()
        .map(|view| (view.revision, view.problem))
        .collect();
    assert_eq!((said.len(), said[0].1.as_str()), (3, ""));
    assert!(
        said[1].1.ends_with("is damaged: it says it is revision 3"),
        "{said:?}"
    );
    assert!(
        said[2].1.contains("0000000001.json is damaged: EOF"),
        "{said:?}"
    );
    for revision in [1, 2] {
        let (code, said) = refused(&mut core, &rollback(revision), &MAKE);
        assert_eq!(code, ErrorCode::Failed);
        let start = format!("revision {revision} cannot be restored: ");
        assert!(
            said.starts_with(&start) && said.contains("is damaged"),
            "{said}"
        );
    }
    drop(core);
    let mut core = open(directory.path(), LIMITS);
    assert_eq!(core.change(&weight(70), &MAKE).unwrap().revision, 4);
}

#[test]
fn a_state_that_fits_no_more_is_no_way_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    apply(&mut core, "services: []");
    drop(core);
    let small = Limits {
        services: 1,
        backends: 8,
    };
    let mut core = open(directory.path(), small);
    let (code, said) = refused(&mut core, &rollback(1), &MAKE);
    assert_eq!(code, ErrorCode::Invalid);
    assert!(
        said.contains("more than the 1 services this node can hold"),
        "{said}"
    );
}

#[test]
fn a_change_whose_history_cannot_be_written_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    // A directory in the place where the file is written first: it cannot be opened for writing.
    let obstacle = directory.path().join("history/0000000002.new");
    fs::create_dir(&obstacle).unwrap();
    let (code, said) = refused(&mut core, &weight(50), &MAKE);
    assert_eq!(code, ErrorCode::Failed);
    assert!(
        said.contains("could not be kept on disk") && said.contains("0000000002.json"),
        "{said}"
    );
    fs::remove_dir(&obstacle).unwrap();
    // Now the state itself cannot be written: its place in the history goes again.
    let obstacle = directory.path().join("state.copy.new");
    fs::create_dir(&obstacle).unwrap();
    assert_eq!(refused(&mut core, &weight(50), &MAKE).0, ErrorCode::Failed);
    assert!(!directory.path().join("history/0000000002.json").exists());
    assert_eq!(history(&core).len(), 1);
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(core.change(&weight(50), &MAKE).unwrap().revision, 2);
}

#[test]
fn a_revision_that_never_came_into_force_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    core.change(&weight(50), &MAKE).unwrap();
    // As if lbd had died between the two writes.
    fs::copy(
        directory.path().join("history/0000000001.json"),
        directory.path().join("history/0000000003.json"),
    )
    .unwrap();
    drop(core);
    let mut core = open(directory.path(), LIMITS);
    assert_eq!(history(&core).len(), 2);
    assert_eq!(
        refused(&mut core, &rollback(3), &MAKE).0,
        ErrorCode::NotFound
    );
    core.change(&weight(60), &MAKE).unwrap();
    assert_eq!(
        history(&core)[0].2,
        "change backend www/b2: weight 50 -> 60"
    );
}

#[test]
fn a_directory_without_history_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    core.change(&weight(50), &MAKE).unwrap();
    drop(core);
    fs::remove_dir_all(directory.path().join("history")).unwrap();
    let mut core = open(directory.path(), LIMITS);
    assert_eq!(history(&core), [(2, String::new(), String::new(), true)]);
    core.change(&weight(60), &MAKE).unwrap();
    core.change(&rollback(2), &MAKE).unwrap();
    let backends = &core.state_view().unwrap().state.services[1].backends;
    assert_eq!(backends[1].weight, 50);
}

#[test]
fn a_lost_state_is_got_back_from_the_history() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = core(directory.path());
    core.change(&weight(50), &MAKE).unwrap();
    let lost = core.state_view().unwrap().state;
    drop(core);
    for file in ["state.json", "state.copy.json"] {
        fs::write(directory.path().join(file), "{").unwrap();
    }
    let mut core = open(directory.path(), LIMITS);
    assert!(core.is_frozen());
    let shown: Vec<_> = history(&core)
        .into_iter()
        .map(|(revision, .., current)| (revision, current))
        .collect();
    assert_eq!(shown, [(2, false), (1, false)]);
    let missing = core.change(&rollback(3), &MAKE).unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    let back = core.change(&rollback(2), &MAKE).unwrap();
    assert_eq!((back.revision, back.changed), (3, true));
    assert!(!core.is_frozen());
    assert_eq!(core.state_view().unwrap().state, lost);
}
