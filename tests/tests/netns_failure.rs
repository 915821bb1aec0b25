//! Backends that die, come back, are drained or removed, with requests under way.

use anyhow::Result;
use lb_tests::{
    process::output,
    scenario::{FAST_PROBES, WEB, scenario},
    topology::Layout,
    traffic::{Traffic, answers, failures},
    wait::wait_until,
};
use lb_userspace::api::protocol::BackendView;
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// Two probes 200 ms apart, each 10 % late, then 150 ms for the second to fail: 590 ms. The rest is for a busy machine.
const NOTICED: Duration = Duration::from_millis(1_500);

/// Requests under way at once.
const WORKERS: usize = 4;

#[test]
fn a_killed_backend_is_noticed_and_gets_nothing_until_it_is_back() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let traffic = Traffic::start(
            &scenario.topology.client,
            WEB,
            WORKERS,
            Duration::from_millis(5),
        );
        wait_until("answers of all backends", NOTICED, || {
            Ok((answers(&traffic.samples()).len() == 3).then_some(()))
        })?;

        let killed = Instant::now();
        scenario.kill_web(2)?;
        wait_until("lbd to notice", NOTICED, || {
            Ok((!scenario.node.backend("backend-2")?.active).then_some(()))
        })?;
        let noticed = Instant::now();
        let backend = scenario.node.backend("backend-2")?;
        assert_eq!(
            (backend.health.as_str(), backend.slots),
            ("down", 0),
            "{backend:?}"
        );
        assert!(backend.health_detail.contains("refused"), "{backend:?}");
        assert!(!backend.inactive_reason.is_empty(), "{backend:?}");
        let table = scenario.node.ok("backend list")?;
        assert!(
            table
                .lines()
                .any(|line| line.contains("backend-2") && line.contains("refused")),
            "{table}"
        );

        std::thread::sleep(Duration::from_millis(500));
        let started = Instant::now();
        scenario.start_web(2)?;
        scenario
            .node
            .wait_active(&["backend-1", "backend-2", "backend-3"])?;
        let back = Instant::now();
        wait_until("an answer of backend-2", NOTICED, || {
            let samples = traffic.samples();
            let since = samples.iter().filter(|sample| sample.sent > back);
            Ok(answers(since).contains_key("backend-2").then_some(()))
        })?;

        let samples = traffic.stop();
        let before = samples
            .iter()
            .filter(|sample| sample.sent < killed - Duration::from_millis(100));
        assert_eq!(failures(before), [].into());
        // While its slots move back, connections open in them are lost: established ones are not tracked yet.
        let (moving, steady): (Vec<_>, Vec<_>) = samples
            .iter()
            .filter(|sample| sample.sent > noticed)
            .partition(|sample| (started..back).contains(&sample.sent));
        assert_eq!(
            failures(steady.iter().copied()),
            [].into(),
            "{} requests after it was noticed",
            steady.len()
        );
        let lost = failures(moving);
        assert!(
            lost.values().sum::<usize>() <= WORKERS,
            "while slots moved back: {lost:?}"
        );
        let without = samples.iter().filter(|sample| {
            (noticed..noticed + Duration::from_millis(400)).contains(&sample.sent)
        });
        let without = answers(without);
        assert!(
            !without.contains_key("backend-2") && without.len() == 2,
            "{without:?}"
        );
        for cause in failures(&samples).keys() {
            assert!(
                ["connection refused", "connection reset"].contains(&cause.as_str()),
                "{cause}"
            );
        }
        Ok(())
    });
}

#[test]
fn weight_zero_and_removal_take_the_traffic_away() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let only = |names: &[&str]| -> Result<()> {
            let samples = scenario.requests(WEB, 200);
            assert_eq!(failures(&samples), [].into());
            assert!(
                answers(&samples).keys().eq(names),
                "{:?} answered, not {names:?}",
                answers(&samples)
            );
            Ok(())
        };
        only(&["backend-1", "backend-2", "backend-3"])?;
        scenario.node.ok("backend set backend-1 --weight 0")?;
        only(&["backend-2", "backend-3"])?;
        let drained = scenario.node.backend("backend-1")?;
        assert!(
            !drained.active && drained.inactive_reason.contains("weight"),
            "{drained:?}"
        );
        scenario.node.ok("backend remove backend-2")?;
        only(&["backend-3"])?;
        scenario.node.ok("backend set backend-1 --weight 100")?;
        only(&["backend-1", "backend-3"])
    });
}

/// Without a file descriptor to spare `lbd` can neither look at its interfaces nor probe. That says nothing of either.
#[test]
fn an_lbd_without_file_descriptors_leaves_all_as_it_is() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let (before, log_before) = (scenario.node.backends()?, scenario.node.log());
        let table_changes = |log: &str| log.matches("table changed").count();
        let limit = |soft: &str| {
            let pid = scenario.node.pid()?.to_string();
            output(Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]))
        };
        limit("3")?;
        // Several looks at the interfaces, one a second, and many probes.
        std::thread::sleep(Duration::from_secs(4));
        assert_eq!(failures(&scenario.requests(WEB, 200)), [].into());
        limit("1024")?;

        let log = scenario.node.log();
        let said = log
            .matches("what is on the interfaces cannot be read")
            .count();
        assert_eq!(said, 1, "{log}");
        assert!(!log.contains("backend is down"), "{log}");
        let slots = |backends: &[BackendView]| -> Vec<_> {
            let slots = |backend: &BackendView| (backend.name.clone(), backend.slots);
            backends.iter().map(slots).collect()
        };
        assert_eq!(slots(&scenario.node.backends()?), slots(&before));
        assert_eq!(table_changes(&log), table_changes(&log_before), "{log}");
        Ok(())
    });
}

#[test]
fn when_all_are_down_closed_drops_and_open_still_sends() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        for number in 1..=3 {
            scenario.kill_web(number)?;
        }
        let condition = |expected: &str| {
            wait_until(expected, NOTICED, || {
                Ok(scenario
                    .node
                    .services()?
                    .iter()
                    .any(|service| service.condition == expected)
                    .then_some(()))
            })
        };
        condition("all_down_open")?;
        // The backends refuse: the packets did reach them.
        assert_eq!(
            failures(&scenario.requests(WEB, 8)),
            [("connection refused".into(), 8)].into()
        );

        scenario.node.ok("service remove www")?;
        let (address, port) = (WEB.ip(), WEB.port());
        let closed = format!(
            "service add www --address {address} --port {port} --when-all-down closed {FAST_PROBES}"
        );
        scenario.node.ok(&closed)?;
        for backend in &scenario.topology.backends {
            scenario.node.ok(&format!(
                "backend add {} --service www --address {}",
                backend.name, backend.v4
            ))?;
        }
        condition("all_down_closed")?;
        assert_eq!(
            failures(&scenario.requests(WEB, 8)),
            [("timed out".into(), 8)].into()
        );
        let stats = scenario.node.stats()?;
        let dropped = stats
            .verdicts
            .iter()
            .find(|verdict| verdict.name == "drop_no_backend");
        assert!(
            dropped.is_some_and(|verdict| verdict.packets >= 8),
            "{dropped:?}"
        );
        Ok(())
    });
}
