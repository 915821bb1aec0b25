//! The act in which a backend dies under traffic and comes back: every request is put down to the time in which it
//! was sent, and judged by what may happen then.

use super::{
    acts::{names, show},
    record::Record,
    screen::{bars, heading, in_words, say},
};
use crate::{
    scenario::{Scenario, WEB},
    topology::Topology,
    traffic::{Sample, Traffic, answers, failures},
    wait::wait_until,
};
use anyhow::Result;
use std::{
    thread,
    time::{Duration, Instant},
};

/// Number and name of the backend that is killed.
const VICTIM: usize = 2;
const VICTIM_NAME: &str = "backend-2";
/// Requests under way at once.
const WORKERS: usize = 4;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(10);
/// Time for which traffic is watched.
const WATCH: Duration = Duration::from_secs(2);

/// Kills a backend's web server under traffic and starts it again.
pub(super) fn lose_and_regain_backend(scenario: &mut Scenario, record: &mut Record) -> Result<()> {
    heading(&format!(
        "The web server of {VICTIM_NAME} is killed under traffic"
    ));
    let traffic = Traffic::start(
        &scenario.topology.client,
        WEB,
        WORKERS,
        Duration::from_millis(4),
    );
    thread::sleep(WATCH / 2);
    say(&format!(
        "  # kill -9 (nginx of {VICTIM_NAME}), probed every 200 ms, down after 2 failures"
    ));
    let killed = Instant::now();
    scenario.kill_web(VICTIM)?;
    wait_active(scenario, false)?;
    let without = Instant::now();
    record.noticed = without - killed;
    say(&format!(
        "  lbd took it out of service {} ms after the kill.",
        record.noticed.as_millis()
    ));
    show(scenario, "backend list")?;
    thread::sleep(WATCH);

    say(&format!(
        "  # the web server of {VICTIM_NAME} is started again"
    ));
    let started = Instant::now();
    scenario.start_web(VICTIM)?;
    wait_active(scenario, true)?;
    let back = Instant::now();
    record.returned = back - started;
    say(&format!(
        "  lbd gave it traffic again {} ms after the start.",
        record.returned.as_millis()
    ));
    thread::sleep(WATCH);
    judge(
        &scenario.topology,
        record,
        &traffic.stop(),
        [killed, without, started, back],
    );
    Ok(())
}

fn wait_active(scenario: &Scenario, active: bool) -> Result<()> {
    let word = if active { "traffic" } else { "no traffic" };
    wait_until(&format!("{VICTIM_NAME} to get {word}"), LIMIT, || {
        Ok((scenario.node.backend(VICTIM_NAME)?.active == active).then_some(()))
    })
}

/// Judges the requests sent before, during and after the absence of the backend.
fn judge(
    topology: &Topology,
    record: &mut Record,
    samples: &[Sample],
    [killed, without, started, back]: [Instant; 4],
) {
    // A request sent just before the kill may be the one under way at that moment.
    let shortly_before = killed - Duration::from_millis(100);
    // While a slot moves back, a connection open in it is lost: established ones are not tracked yet.
    let phases = [
        ("before the kill", shortly_before, 0),
        ("dead, not yet noticed", without, usize::MAX),
        ("out of service", started, 0),
        ("coming back", back, WORKERS),
        ("back in service", Instant::now(), 0),
    ];
    let mut rest = samples.iter().collect::<Vec<_>>();
    for (phase, end, may_fail) in phases {
        let (sent, later): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|sample| sample.sent < end);
        let counts = answers(sent.iter().copied());
        let failed = in_words(&failures(sent.iter().copied()));
        say(&format!(
            "\n  {phase}: {} requests, failed: {failed}",
            sent.len()
        ));
        bars(names(topology), &counts);
        record.requests(sent.iter().copied(), may_fail, phase);
        let served = counts.contains_key(VICTIM_NAME);
        match phase {
            "out of service" => record.expect(!served, || {
                format!("{VICTIM_NAME} answered while out of service")
            }),
            "back in service" => record.expect(served, || {
                format!("{VICTIM_NAME} got nothing after its return")
            }),
            _ => {}
        }
        rest = later;
    }
}
