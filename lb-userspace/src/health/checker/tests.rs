//! The schedule against a fake prober in paused time, and thousands of real probes on loopback.

use super::*;
use HealthState::{Down, Unknown, Up};
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

const SECOND: Duration = Duration::from_secs(1);

/// Answers after a set time, as each port is told to; records when it was asked.
#[derive(Clone, Default)]
struct FakeProber {
    delay: Arc<Mutex<Duration>>,
    down: Arc<Mutex<BTreeSet<u16>>>,
    /// Whether this host lacks what a probe needs.
    lacking: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<(SocketAddr, Instant)>>>,
}

impl Prober for FakeProber {
    async fn probe(&self, target: SocketAddr, limit: Duration) -> Result<Duration, NoAnswer> {
        self.asked.lock().unwrap().push((target, Instant::now()));
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay.min(limit)).await;
        assert_ne!(target.port(), 13, "port 13 makes the probe crash");
        if self.lacking.load(Ordering::Relaxed) {
            return Err(NoAnswer::NotProbed("no files".into()));
        }
        match self.down.lock().unwrap().contains(&target.port()) {
            true => Err(NoAnswer::Failed("refused".into())),
            false => Ok(delay),
        }
    }
}

struct Rig {
    prober: FakeProber,
    checker: Checker,
    reports: mpsc::Receiver<HealthReport>,
}

impl Rig {
    fn new() -> Self {
        let prober = FakeProber::default();
        let (sender, reports) = mpsc::channel(16);
        let checker = start_with(prober.clone(), sender);
        Self {
            prober,
            checker,
            reports,
        }
    }

    async fn report(&mut self) -> HealthReport {
        tokio::time::timeout(60 * SECOND, self.reports.recv())
            .await
            .expect("a report in time")
            .unwrap()
    }

    async fn no_report_for(&mut self, time: Duration) {
        assert_eq!(
            tokio::time::timeout(time, self.reports.recv())
                .await
                .ok()
                .flatten(),
            None
        );
    }
}

fn id(backend: &str) -> TargetId {
    TargetId {
        service: Name::parse("www").unwrap(),
        backend: Name::parse(backend).unwrap(),
    }
}

/// Interval 1 s, timeout 1 s, rise 2, fall 3, no jitter.
fn target(port: u16) -> Target {
    let check = HealthCheck {
        port,
        interval: SECOND,
        timeout: SECOND,
        rise: 2,
        fall: 3,
        jitter_percent: 0,
    };
    Target {
        address: IpAddr::from([127, 0, 0, 1]),
        check,
        initial: Unknown,
    }
}

#[tokio::test(start_paused = true)]
async fn first_probe_at_once_then_every_interval_from_start_to_start() {
    let mut rig = Rig::new();
    *rig.prober.delay.lock().unwrap() = Duration::from_millis(300);
    let start = Instant::now();
    rig.checker.set_targets([(id("a"), target(80))].into());
    let first = rig.report().await;
    assert_eq!(
        (first.state, first.changed, first.outcome),
        (Up, true, Outcome::Success)
    );
    assert_eq!(first.latency, Some(Duration::from_millis(300)));
    for _ in 0..3 {
        assert!(!rig.report().await.changed);
    }
    let times: Vec<_> = rig
        .prober
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|(_, at)| *at - start)
        .collect();
    for (n, time) in times.into_iter().enumerate() {
        let late = time.saturating_sub(SECOND * u32::try_from(n).unwrap());
        assert!(late < Duration::from_millis(20), "probe {n} at {time:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn falls_and_rises_after_as_many_probes_as_asked() {
    let mut rig = Rig::new();
    rig.checker.set_targets(
        [(
            id("a"),
            Target {
                initial: Up,
                ..target(80)
            },
        )]
        .into(),
    );
    assert!(!rig.report().await.changed);
    rig.prober.down.lock().unwrap().insert(80);
    let fall: Vec<_> = [rig.report().await, rig.report().await, rig.report().await]
        .map(|r| (r.state, r.changed))
        .into();
    assert_eq!(fall, [(Up, false), (Up, false), (Down, true)]);
    rig.prober.down.lock().unwrap().clear();
    let pending = rig.report().await;
    assert_eq!(
        (pending.state, pending.outcome, pending.detail.as_str()),
        (Down, Outcome::Success, "refused")
    );
    let risen = rig.report().await;
    assert_eq!(
        (risen.state, risen.changed, risen.detail.as_str()),
        (Up, true, "")
    );
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_probe_takes_no_target_down() {
    let mut rig = Rig::new();
    rig.checker.set_targets([(id("a"), target(80))].into());
    assert_eq!(rig.report().await.state, Up);
    rig.prober.lacking.store(true, Ordering::Relaxed);
    for _ in 0..5 {
        let report = rig.report().await;
        assert_eq!(
            (report.state, report.changed, report.outcome),
            (Up, false, Outcome::NotProbed)
        );
        assert_eq!(report.detail, "could not probe: no files");
    }
    rig.prober.lacking.store(false, Ordering::Relaxed);
    let report = rig.report().await;
    assert_eq!((report.state, report.detail.as_str()), (Up, ""));
}

#[tokio::test(start_paused = true)]
async fn a_removed_target_is_silent_even_with_a_probe_under_way() {
    let mut rig = Rig::new();
    *rig.prober.delay.lock().unwrap() = Duration::from_millis(500);
    rig.checker.set_targets([(id("a"), target(80))].into());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.prober.asked.lock().unwrap().len(), 1);
    rig.checker.set_targets(BTreeMap::new());
    rig.no_report_for(10 * SECOND).await;
    assert_eq!(rig.prober.asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_changed_check_keeps_the_state_and_is_probed_at_once() {
    let mut rig = Rig::new();
    rig.checker.set_targets([(id("a"), target(80))].into());
    assert_eq!(rig.report().await.state, Up);
    rig.prober.down.lock().unwrap().insert(81);
    let before = Instant::now();
    rig.checker.set_targets([(id("a"), target(81))].into());
    let report = rig.report().await;
    assert_eq!(
        (report.state, report.changed, report.outcome),
        (Up, false, Outcome::Failure)
    );
    assert!(before.elapsed() < SECOND / 10);
}

#[tokio::test(start_paused = true)]
async fn a_new_address_is_a_new_host_and_the_same_target_is_left_alone() {
    let mut rig = Rig::new();
    rig.checker.set_targets([(id("a"), target(80))].into());
    assert_eq!(rig.report().await.state, Up);
    rig.checker.set_targets(
        [(
            id("a"),
            Target {
                initial: Down,
                ..target(80)
            },
        )]
        .into(),
    );
    rig.no_report_for(SECOND / 2).await;
    rig.prober.down.lock().unwrap().insert(80);
    rig.checker.set_targets(
        [(
            id("a"),
            Target {
                address: IpAddr::from([127, 0, 0, 2]),
                ..target(80)
            },
        )]
        .into(),
    );
    let report = rig.report().await;
    assert_eq!((report.state, report.changed), (Down, true));
}

#[tokio::test(start_paused = true)]
async fn a_crashed_probe_counts_as_failed_and_probing_goes_on() {
    let mut rig = Rig::new();
    rig.checker.set_targets([(id("a"), target(13))].into());
    for _ in 0..2 {
        let report = rig.report().await;
        assert_eq!(
            (report.state, report.detail.as_str()),
            (Down, "the probe crashed")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_channel_delays_reports_and_loses_none() {
    let mut rig = Rig::new();
    let names: BTreeSet<String> = (0..100).map(|n| format!("b{n}")).collect();
    rig.checker
        .set_targets(names.iter().map(|name| (id(name), target(80))).collect());
    tokio::time::sleep(SECOND / 2).await;
    let mut changed = BTreeSet::new();
    for _ in 0..100 {
        let report = rig.report().await;
        assert!(report.changed);
        changed.insert(report.target.backend.to_string());
    }
    assert_eq!(changed, names);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_checker_ends_the_reports() {
    let mut rig = Rig::new();
    rig.checker.set_targets([(id("a"), target(80))].into());
    rig.report().await;
    drop(rig.checker);
    assert_eq!(
        tokio::time::timeout(SECOND, rig.reports.recv()).await,
        Ok(None)
    );
}

#[test]
fn jitter_stays_within_its_share() {
    let ms = Duration::from_millis;
    assert_eq!(jittered(ms(1000), 0, 0.9), ms(1000));
    assert_eq!(jittered(ms(1000), 10, 0.0), ms(900));
    assert_eq!(jittered(ms(1000), 10, 0.5), ms(1000));
    assert_eq!(jittered(ms(1000), 50, 1.0), ms(1500));
}

/// Two thousand real targets, half of them closed, for three rounds of one second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_probes_keep_their_schedule() {
    const TARGETS: usize = 2_000;
    // Rounds start after 0, 1 and 2 s; the rest is room for a busy machine.
    const TIME: Duration = Duration::from_secs(4);
    // Several listeners: a thousand connections at once would overflow the backlog of one.
    let mut servers = JoinSet::new();
    let mut open_ports = Vec::new();
    for _ in 0..8 {
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        open_ports.push(open.local_addr().unwrap().port());
        servers.spawn(async move { while open.accept().await.is_ok() {} });
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let (sender, mut reports) = mpsc::channel(1_024);
    let checker = start(sender);
    let is_open = |n: usize| n.is_multiple_of(2);
    let port = |n: usize| {
        if is_open(n) {
            open_ports[n / 2 % 8]
        } else {
            closed_port
        }
    };
    let cpu_before = cpu_time();
    checker.set_targets(
        (0..TARGETS)
            .map(|n| (id(&format!("b{n}")), target(port(n))))
            .collect(),
    );

    let mut seen: HashMap<TargetId, (u32, HealthState)> = HashMap::new();
    let start = Instant::now();
    let mut behind = TARGETS;
    while behind > 0 {
        let report = tokio::time::timeout_at(start + TIME, reports.recv()).await;
        let report = report
            .unwrap_or_else(|_| panic!("{behind} targets are behind"))
            .unwrap();
        let (rounds, state) = seen.entry(report.target).or_insert((0, report.state));
        *rounds += 1;
        behind -= usize::from(*rounds == 3);
        assert_eq!(*state, report.state, "{}", report.detail);
    }
    let elapsed = start.elapsed();
    let cpu = cpu_time() - cpu_before;
    drop(servers);
    println!("{TARGETS} targets, 3 rounds in {elapsed:?}: {cpu:?} of CPU, server included");
    for (id, (_, state)) in seen {
        let number: usize = id.backend.as_str()[1..].parse().unwrap();
        assert_eq!(state, if is_open(number) { Up } else { Down }, "{id:?}");
    }
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let of = |t: nix::sys::time::TimeVal| {
        Duration::from_secs(t.tv_sec() as u64) + Duration::from_micros(t.tv_usec() as u64)
    };
    of(usage.user_time()) + of(usage.system_time())
}
