//! The daemon comes and goes; packets do not notice.

use anyhow::{Context, Result};
use lb_tests::{
    http, nginx, pattern,
    scenario::{Scenario, WEB, scenario},
    topology::Layout,
    traffic::failures,
    wait::wait_until,
    xdp::link_on,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_download_does_not_notice_that_lbd_is_killed_and_started_again() {
    // At 40 MiB/s (see nginx) the download takes two and a half seconds.
    const BYTES: u64 = 100 << 20;
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        pattern::write(&scenario.directory().join(nginx::LARGE_FILE), BYTES)?;
        let attached = link(scenario)?;
        assert!(attached.is_some());

        let progress = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&progress);
        let download = scenario
            .topology
            .client
            .spawn(move || http::download(WEB, "/slow", LIMIT, &counter));
        wait_until("the download to start", LIMIT, || {
            Ok((progress.load(Ordering::Relaxed) > 1 << 20).then_some(()))
        })?;
        let before = forwarded(scenario)?;
        let state = scenario.node.ok("export")?;
        let pid = scenario.node.pid()?;
        scenario.node.kill()?;
        assert_eq!(
            failures(&scenario.requests(WEB, 300)),
            [].into(),
            "while lbd was dead"
        );
        assert_eq!(link(scenario)?, attached);

        scenario.start_lbd()?;
        assert_ne!(scenario.node.pid()?, pid);
        assert_eq!(
            link(scenario)?,
            attached,
            "the link was adopted, not made again"
        );
        assert_eq!(scenario.node.ok("export")?, state);
        assert!(
            progress.load(Ordering::Relaxed) < BYTES,
            "the download was over before lbd was back"
        );
        let download = download
            .join()
            .expect("the download's thread does not panic")?;
        assert_eq!(download.bytes, BYTES);
        assert!(
            download.longest_pause < Duration::from_secs(1),
            "{download:?}"
        );
        let after = forwarded(scenario)?;
        assert!(
            after >= before + 4 * 300,
            "counters went on: {before}, then {after}"
        );
        assert_eq!(
            failures(&scenario.requests(WEB, 300)),
            [].into(),
            "after the restart"
        );
        Ok(())
    });
}

#[test]
fn sigterm_leaves_packets_flowing_and_detach_takes_everything_down() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let state = scenario.node.ok("export")?;
        let status = scenario.node.terminate()?;
        assert!(status.success(), "{status}");
        assert!(!scenario.node.socket().exists(), "the socket is left");
        assert_eq!(
            failures(&scenario.requests(WEB, 300)),
            [].into(),
            "while lbd was stopped"
        );

        scenario.start_lbd()?;
        assert_eq!(scenario.node.ok("export")?, state);
        scenario
            .node
            .wait_active(&["backend-1", "backend-2", "backend-3"])?;
        assert_eq!(
            failures(&scenario.requests(WEB, 300)),
            [].into(),
            "after the restart"
        );

        scenario.node.terminate()?;
        let detach = scenario.node.lbd(&scenario.topology.balancer, "detach")?;
        assert_eq!(detach.code, 0, "{detach:?}");
        assert_eq!(link(scenario)?, None);
        let left: Vec<_> = std::fs::read_dir(scenario.node.pins())
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(
            failures(&scenario.requests(WEB, 8)).values().sum::<usize>(),
            8,
            "nobody balances any more"
        );
        Ok(())
    });
}

fn link(scenario: &Scenario) -> Result<Option<u32>> {
    link_on(&scenario.topology.balancer, "eth0")
}

fn forwarded(scenario: &Scenario) -> Result<u64> {
    let stats = scenario.node.stats()?;
    let forwarded = stats
        .verdicts
        .iter()
        .find(|verdict| verdict.name == "forwarded");
    Ok(forwarded.context("no verdict forwarded")?.packets)
}
