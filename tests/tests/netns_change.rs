//! Changes under way with real connections: what is established stays, what is refused changes nothing.

use anyhow::{Context, Result, ensure};
use lb_tests::{
    http::{self, Download},
    nginx,
    node::{Finished, Node},
    pattern,
    scenario::{FAST_PROBES, Scenario, WEB, scenario, scenario_of},
    topology::Layout,
    traffic::failures,
    wait::wait_until,
};
use lb_userspace::api::protocol::DrainView;
use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(10);
/// What a web server sends in a second on `/slow`.
const PACE: u64 = 40 << 20;

/// A download that is under way.
struct Running {
    progress: Arc<AtomicU64>,
    bytes: u64,
    worker: JoinHandle<Result<Download>>,
}

impl Running {
    /// Starts one that takes some `seconds`.
    fn start(scenario: &Scenario, seconds: u64) -> Result<Self> {
        let bytes = seconds * PACE;
        pattern::write(&scenario.directory().join(nginx::LARGE_FILE), bytes)?;
        let progress = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&progress);
        let client = &scenario.topology.client;
        let worker = client.spawn(move || http::download(WEB, "/slow", LIMIT, &counter));
        let running = Self {
            progress,
            bytes,
            worker,
        };
        running.goes_on("it starts")?;
        Ok(running)
    }

    /// Waits until another MiB has come.
    fn goes_on(&self, when: &str) -> Result<()> {
        let before = self.progress.load(Ordering::Relaxed);
        ensure!(
            before < self.bytes,
            "the download was over too early: {when}"
        );
        wait_until(&format!("the download to go on: {when}"), LIMIT, || {
            let more = self.progress.load(Ordering::Relaxed) > before + (1 << 20);
            Ok((more || self.worker.is_finished()).then_some(()))
        })
    }

    /// Waits for its end: every byte has come, without a long pause.
    fn finish(self) -> Result<()> {
        let download = match self.worker.join() {
            Ok(download) => download?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        assert_eq!(download.bytes, self.bytes);
        assert!(
            download.longest_pause < Duration::from_secs(1),
            "{download:?}"
        );
        Ok(())
    }
}

/// Whether a new connection gets an answer.
fn answers(scenario: &Scenario) -> bool {
    let client = &scenario.topology.client;
    client.run(|| http::ask(WEB, Duration::from_millis(500)).is_ok())
}

fn dropped(node: &Node) -> Result<u64> {
    let stats = node.stats()?;
    let verdict = stats.verdicts.iter().find(|v| v.name == "drop_no_backend");
    Ok(verdict.context("no verdict drop_no_backend")?.packets)
}

fn drains(node: &Node) -> Result<Vec<DrainView>> {
    Ok(serde_json::from_str(&node.ok("--output json drains")?)?)
}

/// Adds the service `www` with the first backend only.
fn add_with_one(scenario: &Scenario, more: &str) -> Result<()> {
    let (address, port) = (WEB.ip(), WEB.port());
    scenario.node.ok(&format!(
        "service add www --address {address} --port {port} {FAST_PROBES} {more}"
    ))?;
    add(scenario, 1)
}

fn add(scenario: &Scenario, number: usize) -> Result<()> {
    let backend = &scenario.topology.backends[number - 1];
    scenario.node.ok(&format!(
        "backend add {} --service www --address {}",
        backend.name, backend.v4
    ))?;
    wait_until("it to get traffic", LIMIT, || {
        Ok(scenario.node.backend(&backend.name)?.active.then_some(()))
    })
}

fn refused(node: &Node, arguments: &str, words: &[&str]) -> Result<()> {
    let Finished {
        code,
        stdout,
        stderr,
    } = node.lbctl(arguments)?;
    assert_eq!(code, 1, "{arguments}: {stdout}{stderr}");
    for word in words {
        assert!(
            stderr.contains(word),
            "no {word:?} in what lbctl says of {arguments}: {stderr}"
        );
    }
    Ok(())
}

#[test]
fn the_last_backend_may_go_and_its_connections_stay() {
    scenario_of(1, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        add_with_one(scenario, "")?;
        let download = Running::start(scenario, 10)?;
        for (out, back) in [
            ("set backend-1 --weight 0", "set backend-1 --weight 100"),
            ("drain backend-1", "undrain backend-1"),
        ] {
            let before = dropped(&scenario.node)?;
            let said = scenario.node.ok(&format!("backend {out}"))?;
            for word in ["warning: every backend of service www", "drop_no_backend"] {
                assert!(said.contains(word), "no {word:?} in: {said}");
            }
            download.goes_on(out)?;
            assert!(!answers(scenario), "a new connection got through: {out}");
            assert!(dropped(&scenario.node)? > before, "{out}");
            download.goes_on(out)?;

            scenario.node.ok(&format!("backend {back}"))?;
            scenario.node.wait_active(&["backend-1"])?;
            assert!(answers(scenario), "{back}");
            download.goes_on(back)?;
        }
        scenario.node.ok("backend drain backend-1")?;
        download.goes_on("drained to the end")?;
        download.finish()?;
        assert!(!answers(scenario));
        Ok(())
    });
}

#[test]
fn what_is_refused_says_why_and_changes_nothing() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let node = &scenario.node;
        let saved = scenario.directory().join("digest.json");
        fs::write(&saved, node.ok("--output json digest")?)?;
        let before = (node.ok("export")?, node.ok("digest")?);
        let revision = node.status()?.revision;
        let stale = revision - 1;

        refused(
            node,
            "backend drain backend-9",
            &["`backend-9`", "did you mean `backend-"],
        )?;
        refused(
            node,
            &format!("backend drain backend-1 --if-revision {stale}"),
            &[
                &format!("revision {stale}"),
                &format!("revision {revision} is in force"),
            ],
        )?;
        refused(node, "rollback 4711", &["4711", "lbctl history"])?;
        refused(
            node,
            "backend remove backend-1 --max-move 1%",
            &["`www`", "(33.", "at most 1 %"],
        )?;
        refused(
            node,
            "backend set backend-1 --weight 1001",
            &["weight", "1001"],
        )?;
        assert_eq!((node.ok("export")?, node.ok("digest")?), before);
        assert_eq!(node.status()?.revision, revision);
        assert!(drains(node)?.is_empty());
        assert_eq!(failures(&scenario.requests(WEB, 100)), [].into());

        let compare = format!("digest --compare {}", saved.display());
        node.ok(&compare)?;
        node.ok("backend set backend-2 --weight 50")?;
        let differs = node.lbctl(&compare)?;
        assert_eq!(differs.code, 1, "{differs:?}");
        let said = differs.stdout + &differs.stderr;
        for word in ["backend-2", "weight", "50", "100"] {
            assert!(said.contains(word), "no {word} in: {said}");
        }
        node.ok("backend set backend-2 --weight 100")?;
        node.ok(&compare)?;

        let good = fs::read_to_string(node.config())?;
        let bad = good.replace("backends: 1024", "backends: 1024, flows: 0");
        assert_ne!(bad, good);
        fs::write(node.config(), bad)?;
        let checked = node.lbd(&scenario.topology.balancer, "check-config")?;
        fs::write(node.config(), good)?;
        assert_eq!(checked.code, 1, "{checked:?}");
        for word in ["limits.flows", "given: 0", "choose 1024 to 16777216"] {
            assert!(checked.stderr.contains(word), "{}", checked.stderr);
        }
        Ok(())
    });
}

#[test]
fn a_drain_is_waited_for_until_its_timeout_while_a_connection_lives() {
    const TIMEOUT: Duration = Duration::from_secs(6);
    scenario_of(2, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        add_with_one(scenario, "--drain-timeout 6s")?;
        let download = Running::start(scenario, 5)?;
        add(scenario, 2)?;
        let started = Instant::now();
        let waited = scenario.node.lbctl("backend drain backend-1 --wait")?;
        assert_eq!(waited.code, 0, "{waited:?}");
        let took = started.elapsed();
        assert!(
            took >= TIMEOUT - Duration::from_secs(1) && took < TIMEOUT + Duration::from_secs(3),
            "{took:?}"
        );
        download.finish()?;

        // Who does not wait that long is told so.
        scenario.node.ok("backend undrain backend-1")?;
        scenario.node.wait_active(&["backend-1", "backend-2"])?;
        let early = scenario
            .node
            .lbctl("backend drain backend-2 --wait --timeout 1s")?;
        assert_eq!(early.code, 1, "{early:?}");
        assert!(
            early.stderr.contains("not safe to stop after 1s"),
            "{early:?}"
        );
        assert_eq!(drains(&scenario.node)?.len(), 1, "the drain goes on");
        assert_eq!(failures(&scenario.requests(WEB, 100)), [].into());
        Ok(())
    });
}

#[test]
fn a_removed_backend_keeps_its_download_over_restarts_and_other_limits() {
    scenario_of(2, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        add_with_one(scenario, "")?;
        let download = Running::start(scenario, 20)?;
        add(scenario, 2)?;
        scenario.node.ok("backend remove backend-1")?;
        download.goes_on("removed")?;
        let leaving = drains(&scenario.node)?;
        assert_eq!(leaving.len(), 1, "{leaving:?}");
        assert_eq!(leaving[0].backend, "backend-1");

        scenario.node.kill()?;
        download.goes_on("lbd is dead")?;
        scenario.start_lbd()?;
        scenario.node.wait_active(&["backend-2"])?;
        download.goes_on("lbd is back")?;

        scenario.node.kill()?;
        let text = fs::read_to_string(scenario.node.config())?;
        let other = text.replace("backends: 1024", "backends: 2048, flows: 4096");
        assert_ne!(other, text);
        fs::write(scenario.node.config(), other)?;
        scenario.start_lbd()?;
        wait_until("the maps to be replaced", LIMIT, || {
            let log = scenario.node.log();
            Ok(log.contains("was carried over into new maps").then_some(()))
        })?;
        scenario.node.wait_active(&["backend-2"])?;
        download.goes_on("other limits")?;
        // Long enough for the daemon to have looked around.
        let settled = Instant::now();
        wait_until("three seconds", LIMIT, || {
            Ok((settled.elapsed() > Duration::from_secs(3)).then_some(()))
        })?;
        let digest = scenario.node.ok("digest")?;
        assert_eq!(drains(&scenario.node)?.len(), 1, "it still leaves");
        assert_eq!(failures(&scenario.requests(WEB, 100)), [].into());
        download.goes_on("all is settled")?;
        download.finish()?;
        assert_eq!(scenario.node.ok("digest")?, digest);
        Ok(())
    });
}
