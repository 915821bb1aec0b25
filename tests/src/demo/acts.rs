//! The acts of the demo, in the order in which they are played. Each announces itself before it acts.

use super::{
    record::Record,
    screen::{bars, command, heading, in_words, say},
};
use crate::{
    http, nginx, pattern,
    scenario::{FAST_PROBES, Scenario, WEB},
    session::Session,
    topology::{BALANCER_V4, Backend, CLIENT_V4, Layout, Topology},
    traffic::{answers, failures},
    wait::wait_until,
    xdp::link_on,
};
use anyhow::{Context, Result, anyhow};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(10);
/// The network and the web servers.
pub(super) fn network(session: Session, backends: u8, layout: Layout) -> Result<Scenario> {
    heading("A small network of namespaces");
    let scenario = Scenario::set_up(session, layout, backends, "auto")?;
    let hosts = scenario.topology.backends.iter().map(|backend| {
        let Backend { v4, name, .. } = backend;
        format!(
            "                                  +-- {v4:<9} {name}  nginx, {} on lo\n",
            WEB.ip()
        )
    });
    say(&format!(
        "
  client               router
  {CLIENT_V4} ----------- 10.1.0.1 --+-- {BALANCER_V4:<9} balancer   lbd, its XDP program on eth0
{}
  A request for the service {WEB} goes from the client to the router, to the balancer, and
  encapsulated (IP in IP) through the router to a backend. The answer goes from the backend
  straight to the client: direct server return.",
        hosts.collect::<String>(),
    ));
    Ok(scenario)
}

/// The daemon.
pub(super) fn start_daemon(scenario: &mut Scenario, record: &mut Record) -> Result<()> {
    heading("lbd attaches the XDP program");
    let config = scenario.node.config();
    say(&format!("  $ lbd --config {} &", config.display()));
    scenario.start_lbd()?;
    say(&format!(
        "  $ export GUIDEWAY_SOCKET={}",
        scenario.node.socket().display()
    ));
    show(scenario, "status")?;
    let status = scenario.node.status()?;
    let native = status
        .interfaces
        .iter()
        .all(|interface| interface.mode == "native");
    record.expect(native, || {
        format!(
            "the program is not attached natively: {:?}",
            status.interfaces
        )
    });
    Ok(())
}

/// The service and its backends.
pub(super) fn add_service(scenario: &Scenario) -> Result<()> {
    heading("A service with a backend on each host");
    show(
        scenario,
        &format!(
            "service add www --address {} --port {} {FAST_PROBES}",
            WEB.ip(),
            WEB.port()
        ),
    )?;
    for backend in &scenario.topology.backends {
        show(
            scenario,
            &format!(
                "backend add {} --service www --address {}",
                backend.name, backend.v4
            ),
        )?;
    }
    let names: Vec<&str> = names(&scenario.topology).collect();
    scenario.node.wait_active(&names)?;
    show(scenario, "backend list")
}

/// Requests spread over the backends.
pub(super) fn balance(scenario: &Scenario, record: &mut Record) {
    const REQUESTS: usize = 3_000;
    heading(&format!(
        "{REQUESTS} requests to http://{WEB}/, a connection each"
    ));
    let start = Instant::now();
    let samples = scenario.requests(WEB, REQUESTS);
    let counts = answers(&samples);
    bars(names(&scenario.topology), &counts);
    say(&format!(
        "  failed: {}; {:.1} s in all",
        in_words(&failures(&samples)),
        start.elapsed().as_secs_f64()
    ));
    let client = CLIENT_V4.to_string();
    let kept = samples
        .iter()
        .filter_map(|sample| sample.outcome.as_ref().ok())
        .all(|answer| answer.client == client);
    if kept {
        say(&format!(
            "  Every backend saw the client's own address, {client}."
        ));
    }
    record.expect(kept, || {
        "a backend saw another address than the client's".into()
    });
    let even = REQUESTS / scenario.topology.backends.len();
    let fair = counts.len() == scenario.topology.backends.len()
        && counts.values().all(|count| count.abs_diff(even) < even / 5);
    record.expect(fair, || {
        format!(
            "backends of equal weight got unequal shares: {}",
            in_words(&counts)
        )
    });
    record.requests(&samples, 0, "while all was well");
}

/// The daemon dies during a download and comes back.
pub(super) fn lose_and_regain_daemon(scenario: &mut Scenario, record: &mut Record) -> Result<()> {
    const BYTES: u64 = 200_000_000;
    heading(&format!(
        "lbd is killed during a download of {} MB, and started again",
        BYTES / 1_000_000
    ));
    pattern::write(&scenario.directory().join(nginx::LARGE_FILE), BYTES)?;
    let progress = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&progress);
    let download = scenario
        .topology
        .client
        .spawn(move || http::download(WEB, "/slow", LIMIT, &counter));
    let at = |share: u64| {
        wait_until("the download", LIMIT, || {
            Ok((progress.load(Ordering::Relaxed) > BYTES * share / 100).then_some(()))
        })?;
        say(&format!("  downloaded {share:>3} %"));
        anyhow::Ok(())
    };
    at(20)?;
    let link = link_on(&scenario.topology.balancer, "eth0")?;
    say(&format!("  $ kill -9 {}   # lbd", scenario.node.pid()?));
    scenario.node.kill()?;
    let samples = scenario.requests(WEB, 500);
    say(&format!(
        "  500 requests while no lbd runs, failed: {}",
        in_words(&failures(&samples))
    ));
    record.requests(&samples, 0, "while no lbd ran");
    at(50)?;
    say(&format!(
        "  $ lbd --config {} &",
        scenario.node.config().display()
    ));
    let start = Instant::now();
    scenario.start_lbd()?;
    say(&format!(
        "  lbd answers after {} ms and has adopted what it found.",
        start.elapsed().as_millis()
    ));
    record.expect(progress.load(Ordering::Relaxed) < BYTES, || {
        "the download was over before lbd was back".into()
    });
    record.expect(
        link_on(&scenario.topology.balancer, "eth0")? == link,
        || "the XDP link is another than before".into(),
    );
    at(90)?;
    let result = download
        .join()
        .map_err(|_| anyhow!("the download panicked"))?
        .context("the download broke")?;
    say(&format!(
        "  downloaded 100 %, every byte verified; longest pause {} ms",
        result.longest_pause.as_millis()
    ));
    let pause = result.longest_pause;
    record.expect(pause < Duration::from_secs(1), || {
        format!("the download paused for {} ms", pause.as_millis())
    });
    record.download = Some(result);
    let samples = scenario.requests(WEB, 500);
    record.requests(&samples, 0, "after the restart of lbd");
    record.expect(
        answers(&samples).len() == scenario.topology.backends.len(),
        || "after the restart of lbd not every backend got requests".into(),
    );
    Ok(())
}

/// Runs a command of `lbctl` and shows it with its answer.
pub(super) fn show(scenario: &Scenario, arguments: &str) -> Result<()> {
    let answer = scenario.node.ok(arguments)?;
    command(&format!("lbctl {arguments}"), &answer);
    Ok(())
}

pub(super) fn names(topology: &Topology) -> impl Iterator<Item = &str> {
    topology
        .backends
        .iter()
        .map(|backend| backend.name.as_str())
}
