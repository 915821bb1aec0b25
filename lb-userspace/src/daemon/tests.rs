//! The core against the in-memory data plane: what each event does, what survives a restart, what is refused.

mod announce;

use super::core::Core;
use crate::{
    api::{
        handle::{Change, ChangeOptions},
        protocol::{ErrorCode, ServiceView},
    },
    dataplane::{Attachment, DataPlane, fake::FakeDataPlane},
    desired::Store,
    health::{
        checker::{HealthReport, TargetId},
        state::{HealthState, Outcome},
    },
    neighbour::{NextHopUpdate, ResolvedHop},
    spec::{Limits, Name, StateSpec},
};
use lb_common::{
    address::Address,
    backend::BackendEntry,
    flow_table::{FlowKey, PacketKind},
    limits::SLOTS,
    service::ServiceKey,
};
use std::{net::IpAddr, path::Path, time::Duration};

const LIMITS: Limits = Limits {
    services: 4,
    backends: 16,
};

const MAKE: ChangeOptions = ChangeOptions {
    dry_run: false,
    if_revision: None,
    max_move: None,
    now: false,
};

const DRY: ChangeOptions = ChangeOptions {
    dry_run: true,
    ..MAKE
};

/// CLOCK_MONOTONIC at the start of a test.
const NOW: Duration = Duration::from_secs(10_000);

const WWW: &str = "
services:
  - name: www
    address: 10.0.0.1
    protocol: tcp
    port: 80
    backends:
      - { name: b1, address: 10.20.0.1 }
      - { name: b2, address: 10.20.0.2 }
";

fn spec(yaml: &str) -> StateSpec {
    crate::spec::yaml::parse(yaml, "").unwrap()
}

fn start(directory: &Path, plane: FakeDataPlane) -> Core<FakeDataPlane> {
    let mut plane = plane;
    let running = !plane.installed().unwrap().services.is_empty();
    let mut core = Core::new(plane, running, Store::open(directory).unwrap(), LIMITS, NOW).unwrap();
    core.on_attachments(
        vec![Attachment {
            name: "eth0".into(),
            index: 3,
            up: true,
            mode: None,
            program_id: 0,
            note: String::new(),
        }],
        false,
    );
    core
}

fn new(directory: &Path) -> Core<FakeDataPlane> {
    start(directory, FakeDataPlane::new(8, 33))
}

fn all_reachable(core: &mut Core<FakeDataPlane>) {
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
}

/// Tells the core that every backend is reachable and, where it is probed, up.
fn all_well(core: &mut Core<FakeDataPlane>) {
    all_reachable(core);
    for target in core.targets().into_keys() {
        core.on_health(report(target, HealthState::Up), NOW);
    }
    core.reconcile(NOW);
}

fn report(target: TargetId, state: HealthState) -> HealthReport {
    let (outcome, detail) = match state {
        HealthState::Up => (Outcome::Success, ""),
        HealthState::Unknown | HealthState::Down => (Outcome::Failure, "connection refused"),
    };
    HealthReport {
        target,
        state,
        changed: true,
        outcome,
        detail: detail.to_owned(),
        latency: Some(Duration::from_micros(250)),
    }
}

fn target(service: &str, backend: &str) -> TargetId {
    TargetId {
        service: Name::parse(service).unwrap(),
        backend: Name::parse(backend).unwrap(),
    }
}

fn slots_of(core: &Core<FakeDataPlane>, backend: [u8; 4]) -> usize {
    let key = ServiceKey::new(IpAddr::from([10, 0, 0, 1]).into(), 6, 80);
    let address = Address::from(IpAddr::from(backend));
    let owned = |slot: &u32| {
        core.plane
            .forward(&key, *slot)
            .is_some_and(|entry| entry.address == address)
    };
    (0..SLOTS).filter(owned).count()
}

fn www(core: &Core<FakeDataPlane>) -> ServiceView {
    core.services()
        .unwrap()
        .into_iter()
        .find(|service| service.name == "www")
        .unwrap()
}

#[test]
fn views_tell_policy_drain_and_slow_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    let yaml = WWW.replace(
        "    backends:",
        "    tracking: all\n    on_down: keep\n    drain_timeout: 10m\n    udp_settle: 2s\n    slow_start: 60s\n    backends:",
    );
    let yaml = yaml.replace("10.20.0.2 }", "10.20.0.2, drain: true }");
    core.change(&Change::Apply(spec(&yaml)), &MAKE).unwrap();
    all_well(&mut core);
    for (seconds, percent) in [(0, Some(3)), (15, Some(25)), (59, Some(98)), (60, None)] {
        core.reconcile(NOW + Duration::from_secs(seconds));
        let view = www(&core);
        assert_eq!(
            (view.tracking.as_str(), view.on_down.as_str()),
            ("all", "keep")
        );
        assert_eq!(
            (
                view.drain_timeout_ms,
                view.udp_settle_ms,
                view.slow_start_ms
            ),
            (600_000, 2_000, Some(60_000))
        );
        let backends = view.backends.iter();
        let told: Vec<_> = backends
            .map(|backend| (backend.drain, backend.slow_start_percent))
            .collect();
        assert_eq!(told, [(false, percent), (true, None)], "after {seconds} s");
    }
}

/// A request moves the time on: the last step is due all the same.
#[test]
fn a_slow_start_ends_whoever_asks_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    let yaml = WWW.replace("    backends:", "    slow_start: 60s\n    backends:");
    core.change(&Change::Apply(spec(&yaml)), &MAKE).unwrap();
    all_well(&mut core);
    core.reconcile(NOW + Duration::from_secs(59));
    let end = NOW + Duration::from_secs(61);
    core.advance(end);
    assert!(core.has_more_to_do());
    core.reconcile(end);
    assert!(
        www(&core)
            .backends
            .iter()
            .all(|b| b.slow_start_percent.is_none())
    );
    // Slots on their way are waited for, and then nothing.
    core.count_flows(end);
    core.reconcile(end + Duration::from_secs(86_400));
    core.count_flows(end + Duration::from_secs(86_401));
    core.reconcile(end + Duration::from_secs(86_402));
    assert!(!core.has_more_to_do());
}

#[test]
fn a_backend_that_goes_down_loses_its_slots_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    let change = core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    assert_eq!((change.revision, change.changed), (1, true));
    assert_eq!(change.tables[0].slots_changed, SLOTS);
    assert!(!core.knows_all());
    all_well(&mut core);
    assert!(core.knows_all());
    assert!(slots_of(&core, [10, 20, 0, 1]).abs_diff(SLOTS as usize / 2) <= 1);

    assert!(core.on_health(report(target("www", "b1"), HealthState::Down), NOW));
    core.reconcile(NOW);
    assert_eq!(slots_of(&core, [10, 20, 0, 1]), 0);
    assert_eq!(slots_of(&core, [10, 20, 0, 2]), SLOTS as usize);
    let view = www(&core);
    let b1 = &view.backends[0];
    assert_eq!(
        (b1.health.as_str(), b1.health_detail.as_str()),
        ("down", "connection refused")
    );
    assert_eq!(
        (b1.active, b1.slots, b1.inactive_reason.as_str()),
        (false, 0, "down: connection refused")
    );
    assert_eq!(
        (view.backends[1].active, view.backends[1].slots),
        (true, SLOTS)
    );
    assert_eq!(core.status(Duration::ZERO).backends_active, 1);
}

#[test]
fn a_restart_keeps_the_state_and_moves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    core.on_health(report(target("www", "b2"), HealthState::Down), NOW);
    core.reconcile(NOW);
    let plane = core.plane.clone();
    drop(core);

    let mut core = start(directory.path(), plane);
    assert_eq!(core.state_view().unwrap().revision, 1);
    let initial = |backend| core.targets()[&target("www", backend)].initial;
    assert_eq!(
        (initial("b1"), initial("b2")),
        (HealthState::Up, HealthState::Unknown)
    );
    let writes = core.plane.writes;
    core.on_health(report(target("www", "b2"), HealthState::Down), NOW);
    all_reachable(&mut core);
    assert!(core.knows_all());
    core.reconcile(NOW);
    assert_eq!(core.plane.writes, writes, "the restart wrote nothing");
}

#[test]
fn stand_ins_are_computed_a_few_at_a_time_until_all_are_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    let other = WWW
        .replace("services:", "")
        .replace("name: www", "name: api");
    let other = other.replace("port: 80", "port: 81").replace("b1", "b3");
    let state = format!("{WWW}{other}");
    core.change(&Change::Apply(spec(&state)), &MAKE).unwrap();
    all_well(&mut core);
    let unready = |core: &Core<FakeDataPlane>| {
        let services = core.roster.services.values();
        let overlays = services.map(|enrolled| enrolled.members.overlay());
        overlays.filter(|overlay| !overlay.is_ready()).count()
    };
    assert_eq!(unready(&core), 2, "the two have no members in common");
    let mut turns = 0;
    while core.make_ready() {
        turns += 1;
        assert_eq!(unready(&core), 2 - turns);
    }
    assert_eq!(unready(&core), 0);
    assert!(!core.make_ready());
}

#[test]
fn a_refused_change_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    let before = core.state_view().unwrap();
    let on_disk = std::fs::read(directory.path().join("state.json")).unwrap();
    let refusals = [
        (
            Change::AddService(spec(WWW).services[0].clone()),
            ErrorCode::Conflict,
        ),
        (
            Change::RemoveService {
                service: "ftp".into(),
            },
            ErrorCode::NotFound,
        ),
        (
            Change::Apply(spec(&WWW.replace("port: 80", "port: 70000"))),
            ErrorCode::Invalid,
        ),
        (
            Change::RemoveBackend {
                service: "www".into(),
                backend: "b9".into(),
            },
            ErrorCode::NotFound,
        ),
    ];
    for (change, code) in refusals {
        let refused = core.change(&change, &MAKE).unwrap_err();
        assert_eq!(refused.code, code, "{refused:?}");
        assert_eq!(core.state_view().unwrap(), before);
    }
    assert_eq!(
        std::fs::read(directory.path().join("state.json")).unwrap(),
        on_disk
    );
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    let (before, writes) = (core.state_view().unwrap(), core.plane.writes);
    let change = Change::RemoveBackend {
        service: "www".into(),
        backend: "b1".into(),
    };
    let planned = core.change(&change, &DRY).unwrap();
    assert_eq!(
        (planned.revision, planned.dry_run, planned.changed),
        (1, true, true)
    );
    assert_eq!(
        planned.tables[0].slots_changed as usize,
        slots_of(&core, [10, 20, 0, 1])
    );
    core.reconcile(NOW);
    assert_eq!(
        (core.state_view().unwrap(), core.plane.writes),
        (before, writes)
    );
}

#[test]
fn the_same_state_again_is_no_change() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    let again = core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    assert_eq!((again.revision, again.changed), (1, false));
}

#[test]
fn a_failing_data_plane_is_said_and_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    core.plane.fail_after = Some(core.plane.writes + 2);
    all_well(&mut core);
    assert!(core.must_retry());
    let status = core.status(Duration::ZERO);
    assert_eq!(status.condition, "degraded");
    assert!(
        status.warnings[0].contains("told to fail"),
        "{:?}",
        status.warnings
    );

    core.plane.fail_after = None;
    core.reconcile(NOW);
    assert!(!core.must_retry());
    assert_eq!(core.status(Duration::ZERO).warnings, Vec::<String>::new());
    assert_eq!(
        slots_of(&core, [10, 20, 0, 1]) + slots_of(&core, [10, 20, 0, 2]),
        SLOTS as usize
    );
}

#[test]
fn with_no_readable_state_the_data_plane_is_left_alone_until_a_whole_state_comes() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    let plane = core.plane.clone();
    drop(core);
    for file in ["state.json", "state.copy.json"] {
        std::fs::write(directory.path().join(file), "{\"format\": 1, \"rev").unwrap();
    }

    let mut core = start(directory.path(), plane);
    assert!(core.is_frozen());
    core.reconcile(NOW);
    assert_eq!(
        core.plane.installed().unwrap().services.len(),
        1,
        "still forwarding"
    );
    let refused = core
        .change(
            &Change::RemoveService {
                service: "www".into(),
            },
            &MAKE,
        )
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::Failed);
    assert!(
        refused.message.contains("state.json is damaged")
            && refused.message.contains("lbctl apply")
    );

    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    assert!(!core.is_frozen());
    assert!(directory.path().join("state.json.damaged-1").exists());
    assert_eq!(
        core.targets()[&target("www", "b1")].initial,
        HealthState::Up,
        "it had slots"
    );
}

#[test]
fn an_empty_state_directory_does_not_wipe_a_running_data_plane() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    let plane = core.plane.clone();

    let other = tempfile::tempdir().unwrap();
    let mut core = start(other.path(), plane);
    core.reconcile(NOW);
    assert_eq!(
        core.plane.installed().unwrap().services.len(),
        1,
        "still forwarding"
    );
    let said = core.status(Duration::ZERO).warnings.join("\n");
    assert!(said.contains("holds no state"), "{said}");
    assert!(core.state_view().is_err() && core.services().is_err());
    let planned = core
        .change(&Change::Apply(StateSpec::default()), &DRY)
        .unwrap();
    assert!(
        planned.warnings[0].contains("1 services that are running"),
        "{:?}",
        planned.warnings
    );
    let change = core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    assert_eq!(
        change.revision, 2,
        "told apart from the revision of the lost state"
    );
}

#[test]
fn a_backend_with_another_address_is_another_backend() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    core.change(
        &Change::Apply(spec(&WWW.replace("10.20.0.1 ", "10.20.0.7 "))),
        &MAKE,
    )
    .unwrap();
    core.reconcile(NOW);
    assert_eq!(
        core.targets()[&target("www", "b1")].initial,
        HealthState::Unknown
    );
    assert_eq!(
        slots_of(&core, [10, 20, 0, 7]),
        0,
        "not before it has been probed"
    );
    assert_eq!(slots_of(&core, [10, 20, 0, 2]), SLOTS as usize);
    all_well(&mut core);
    assert!(slots_of(&core, [10, 20, 0, 7]) > 0);
}

#[test]
fn reports_on_backends_that_are_gone_are_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    assert!(!core.on_health(report(target("www", "b9"), HealthState::Up), NOW));
    assert!(!core.on_health(report(target("ftp", "b1"), HealthState::Up), NOW));
}

#[test]
fn a_removed_backend_is_followed_by_its_probes_until_it_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    // As if packets had come: slots are not free to move.
    core.mirror.unused.clear();
    let b2 = || target("www", "b2");
    let down = |core: &mut Core<FakeDataPlane>| {
        core.on_health(report(b2(), HealthState::Up), NOW);
        core.on_health(report(b2(), HealthState::Down), NOW)
    };
    core.change(&remove("b2"), &MAKE).unwrap();
    assert!(
        core.targets().contains_key(&b2()) && down(&mut core),
        "at once"
    );
    core.on_health(report(b2(), HealthState::Up), NOW);
    core.reconcile(NOW);
    assert!(core.targets().contains_key(&b2()) && down(&mut core));
    pass(&mut core, NOW, 3);
    assert!(is_lost(&mut core, [10, 20, 0, 2]), "it is down");
    assert!(!core.targets().contains_key(&b2()) && !down(&mut core));
}

/// Time passes: second by second, as the loop has it.
fn pass(core: &mut Core<FakeDataPlane>, from: Duration, seconds: u32) -> Duration {
    for second in 1..=seconds {
        let now = from + second * Duration::from_secs(1);
        core.count_flows(now);
        core.reconcile(now);
    }
    from + seconds * Duration::from_secs(1)
}

fn is_lost(core: &mut Core<FakeDataPlane>, backend: [u8; 4]) -> bool {
    let address = Address::from(IpAddr::from(backend));
    let installed = core.plane.installed().unwrap();
    let entry = installed.backends.values().find(|b| b.address == address);
    entry.is_none_or(|entry| entry.flags & BackendEntry::LOST != 0)
}

fn remove(backend: &str) -> Change {
    Change::RemoveBackend {
        service: "www".into(),
        backend: backend.into(),
    }
}

#[test]
fn a_backend_that_was_down_before_a_restart_gets_no_new_flows_by_it() {
    let keep = WWW.replace("port: 80", "port: 80\n    on_down: keep\n    health: {}");
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(&keep)), &MAKE).unwrap();
    all_well(&mut core);
    // As if packets had come: slots are not free to move.
    core.mirror.unused.clear();
    core.on_health(report(target("www", "b2"), HealthState::Down), NOW);
    core.reconcile(NOW);
    assert_eq!(slots_of(&core, [10, 20, 0, 2]), 0);
    let plane = core.plane.clone();
    drop(core);

    let mut core = start(directory.path(), plane);
    let initial = |backend| core.targets()[&target("www", backend)].initial;
    assert_eq!(
        (initial("b1"), initial("b2")),
        (HealthState::Up, HealthState::Unknown)
    );
    all_reachable(&mut core);
    core.reconcile(NOW);
    assert_eq!(slots_of(&core, [10, 20, 0, 2]), 0);
    assert!(!is_lost(&mut core, [10, 20, 0, 2]), "its flows stay");
}

#[test]
fn a_restart_shortens_no_drain_and_takes_up_no_flows_that_were_given_up() {
    let long = WWW.replace("port: 80", "port: 80\n    drain_timeout: 1h");
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(&long)), &MAKE).unwrap();
    all_well(&mut core);
    core.mirror.unused.clear();
    core.change(&remove("b2"), &MAKE).unwrap();
    core.reconcile(NOW);
    let plane = core.plane.clone();
    drop(core);
    let mut core = start(directory.path(), plane);
    all_well(&mut core);
    core.reconcile(NOW + Duration::from_secs(3_590));
    assert!(!is_lost(&mut core, [10, 20, 0, 2]));
    core.reconcile(NOW + Duration::from_secs(3_601));
    core.reconcile(NOW + Duration::from_secs(3_602));
    assert!(is_lost(&mut core, [10, 20, 0, 2]));

    let drain = Change::Drain {
        service: None,
        backend: "b1".into(),
        drain: true,
    };
    core.advance(NOW);
    core.change(&drain, &MAKE).unwrap();
    core.reconcile(NOW);
    core.reconcile(NOW + Duration::from_secs(3_601));
    assert!(is_lost(&mut core, [10, 20, 0, 1]));
    let plane = core.plane.clone();
    drop(core);
    let mut core = start(directory.path(), plane);
    all_well(&mut core);
    assert!(is_lost(&mut core, [10, 20, 0, 1]), "it was safe to stop");
}

#[test]
fn a_lost_state_does_not_use_up_the_time_of_those_that_the_new_one_leaves_out() {
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    let plane = core.plane.clone();
    let other = tempfile::tempdir().unwrap();
    let mut core = start(other.path(), plane);
    let later = NOW + Duration::from_secs(1_000);
    core.advance(later);
    let one = WWW.replace("      - { name: b2, address: 10.20.0.2 }\n", "");
    core.change(&Change::Apply(spec(&one)), &MAKE).unwrap();
    all_reachable(&mut core);
    core.reconcile(later);
    assert!(!is_lost(&mut core, [10, 20, 0, 2]));
    core.reconcile(later + Duration::from_secs(301));
    core.reconcile(later + Duration::from_secs(302));
    assert!(is_lost(&mut core, [10, 20, 0, 2]));
}

#[test]
fn the_flows_of_a_service_that_tracks_all_are_counted_though_no_slot_waits() {
    let all = WWW.replace("port: 80", "port: 80\n    tracking: all");
    let directory = tempfile::tempdir().unwrap();
    let mut core = new(directory.path());
    core.change(&Change::Apply(spec(&all)), &MAKE).unwrap();
    all_well(&mut core);
    let now = pass(&mut core, NOW, 10);
    let key = ServiceKey::new(IpAddr::from([10, 0, 0, 1]).into(), 6, 80);
    let flow = FlowKey {
        source: IpAddr::from([198, 51, 100, 1]).into(),
        destination: key.address,
        source_port: 1,
        destination_port: 80,
        protocol: 6,
    };
    let second = now.as_secs() as u32;
    core.plane
        .packet(&key, &flow, 7, PacketKind::TcpSyn, second);
    assert_eq!(core.plane.flows.len(), 1);
    let now = pass(&mut core, now, 5);
    assert_eq!(core.census.as_ref().unwrap().entries, 1);
    pass(&mut core, now, 310);
    assert_eq!(core.plane.flows.len(), 0, "a dead one is removed");
}

#[test]
fn when_indexes_run_out_no_more_flows_are_given_up_than_need_be() {
    let directory = tempfile::tempdir().unwrap();
    // Indexes 1 to 4.
    let mut core = start(directory.path(), FakeDataPlane::new(8, 5));
    core.change(&Change::Apply(spec(WWW)), &MAKE).unwrap();
    all_well(&mut core);
    core.mirror.unused.clear();
    let mut now = NOW;
    for (name, address) in [
        ("b1", "10.20.0.3"),
        ("b2", "10.20.0.4"),
        ("b1", "10.20.0.5"),
    ] {
        now += Duration::from_secs(10);
        core.advance(now);
        let mut state = core.state_view().unwrap().state;
        for backend in &mut state.services[0].backends {
            if backend.name == name {
                backend.address = address.into();
            }
        }
        core.change(&Change::Apply(state), &MAKE).unwrap();
        all_reachable(&mut core);
        core.reconcile(now);
    }
    assert!(core.must_retry(), "no index is free");
    now = pass(&mut core, now, 3);
    assert!(!core.must_retry());
    assert!(slots_of(&core, [10, 20, 0, 5]) > 0);
    assert!(is_lost(&mut core, [10, 20, 0, 1]), "the first to leave");
    for kept in [2, 3, 4] {
        assert!(!is_lost(&mut core, [10, 20, 0, kept]), "{kept}");
    }
    pass(&mut core, now, 1);
}
