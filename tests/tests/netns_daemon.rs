//! The daemon comes and goes; packets do not notice.

use anyhow::{Context, Result};
use lb_tests::{
    http, nginx, pattern,
    scenario::{Scenario, WEB, scenario},
    topology::Layout,
    traffic::{Traffic, failures},
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
fn maps_of_another_shape_are_replaced_under_traffic_without_a_request_lost() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let attached = link(scenario)?;
        let client = &scenario.topology.client;
        let traffic = Traffic::start(client, WEB, 2, Duration::from_millis(2));
        scenario.node.kill()?;
        let text = std::fs::read_to_string(scenario.node.config())?;
        let other = text.replace("backends: 1024", "backends: 2048");
        assert_ne!(other, text);
        std::fs::write(scenario.node.config(), other)?;
        scenario.start_lbd()?;
        wait_until("the maps to be replaced", LIMIT, || {
            let maps = std::fs::read_dir(scenario.node.pins())?.flatten();
            let generations =
                maps.filter(|entry| entry.file_name().to_string_lossy().starts_with("maps-"));
            let replaced = link(scenario)? == attached && generations.count() == 1;
            Ok((replaced && scenario.node.log().contains("has other maps")).then_some(()))
        })?;
        assert!(
            scenario.node.log().contains("BACKENDS"),
            "the map that differs is named"
        );
        let before = traffic.samples().len();
        wait_until(
            "500 requests to the new maps",
            Duration::from_secs(30),
            || Ok((traffic.samples().len() > before + 500).then_some(())),
        )?;
        let samples = traffic.stop();
        assert_eq!(failures(&samples), [].into());
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
