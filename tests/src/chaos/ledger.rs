//! What happened in a run, written by the clients and by the one who makes the events, and how a loss is judged by it.
//!
//! **Invariant.** A loss is expected only if the backend's server was killed while the client depended on it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Answers that were under way when a server was killed come no later than this.
const IN_FLIGHT: Duration = Duration::from_secs(1);

/// An event that took place.
#[derive(Clone, Debug)]
pub(super) struct Happened {
    /// Seconds since the start.
    pub(super) at: f64,
    /// Name of its kind.
    pub(super) kind: &'static str,
    /// What it did.
    pub(super) words: String,
}

/// A connection that broke although its server lived, or a UDP flow that changed its server.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    /// Seconds since the start.
    pub(super) at: f64,
    /// Protocol, client's address, service's address.
    pub(super) flow: String,
    /// Whose it was.
    pub(super) backend: String,
    /// Seconds since it was opened.
    pub(super) age: f64,
    /// What was wrong.
    pub(super) cause: String,
    /// The last events before, newest last.
    pub(super) after: Vec<String>,
}

/// A time in which a server was dead.
#[derive(Clone, Copy, Debug)]
struct Outage {
    /// Just before the kill.
    from: Instant,
    /// When the kill was complete.
    dead: Option<Instant>,
    /// When no balancer sent new flows there any more.
    noticed: Option<Instant>,
}

/// Counts of failures by cause.
pub(super) type Causes = BTreeMap<String, u64>;

/// The facts.
#[derive(Debug)]
pub(crate) struct Ledger {
    start: Instant,
    outages: Mutex<BTreeMap<String, Vec<Outage>>>,
    /// Events so far.
    pub(super) events: Mutex<Vec<Happened>>,
    /// TCP connections broken.
    pub(crate) broken: Mutex<Vec<Broken>>,
    /// UDP flows moved.
    pub(crate) moved: Mutex<Vec<Broken>>,
    /// Failures of requests, of no killed backend.
    pub(super) request_failures: Mutex<Causes>,
    /// Failures of requests while a killed backend was not yet out of service.
    pub(super) request_failures_expected: Mutex<Causes>,
    /// Failures to open a long-lived connection; each is tried again.
    pub(super) open_failures: Mutex<Causes>,
    /// Long-lived connections open now.
    pub(crate) open: AtomicUsize,
    /// Long-lived connections ever opened.
    pub(crate) opened: AtomicU64,
    /// Connections whose server was killed.
    pub(super) expected_losses: AtomicU64,
    /// UDP flows whose server was killed and that another answered.
    pub(super) udp_rehomed: AtomicU64,
    /// Answered datagrams.
    pub(crate) udp_answers: AtomicU64,
    /// Datagrams without an answer.
    pub(super) udp_unanswered: AtomicU64,
    /// Requests.
    pub(super) requests: AtomicU64,
    /// Bytes that came back as they should over long-lived connections.
    pub(crate) bytes: AtomicU64,
}

impl Ledger {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            outages: Mutex::default(),
            events: Mutex::default(),
            broken: Mutex::default(),
            moved: Mutex::default(),
            request_failures: Mutex::default(),
            request_failures_expected: Mutex::default(),
            open_failures: Mutex::default(),
            open: AtomicUsize::default(),
            opened: AtomicU64::default(),
            expected_losses: AtomicU64::default(),
            udp_rehomed: AtomicU64::default(),
            udp_answers: AtomicU64::default(),
            udp_unanswered: AtomicU64::default(),
            requests: AtomicU64::default(),
            bytes: AtomicU64::default(),
        }
    }

    /// Seconds since the start.
    pub(super) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// An event begins.
    pub(crate) fn happens(&self, kind: &'static str, words: String) {
        let at = self.seconds();
        println!("  {at:>6.1} s  {words}");
        locked(&self.events).push(Happened { at, kind, words });
    }

    /// A server will be killed now.
    pub(super) fn killing(&self, backend: &str) {
        let outage = Outage {
            from: Instant::now(),
            dead: None,
            noticed: None,
        };
        locked(&self.outages)
            .entry(backend.to_owned())
            .or_default()
            .push(outage);
    }

    /// The server has been killed.
    pub(super) fn killed(&self, backend: &str) {
        self.last_outage(backend, |outage| outage.dead = Some(Instant::now()));
    }

    /// The balancers send no new flows to the killed server any more.
    pub(super) fn noticed(&self, backend: &str) {
        self.last_outage(backend, |outage| outage.noticed = Some(Instant::now()));
    }

    fn last_outage(&self, backend: &str, change: impl FnOnce(&mut Outage)) {
        let mut outages = locked(&self.outages);
        if let Some(outage) = outages.get_mut(backend).and_then(|all| all.last_mut()) {
            change(outage);
        }
    }

    /// Whether the server of `backend` has been killed since a moment.
    fn killed_since(&self, backend: &str, since: Instant) -> bool {
        let outages = locked(&self.outages);
        let mut all = outages.get(backend).into_iter().flatten();
        all.any(|outage| outage.dead.is_none_or(|dead| dead >= since))
    }

    /// Whether new flows could still meet a dead server at some time between two moments.
    fn unnoticed_within(&self, from: Instant, to: Instant) -> bool {
        let outages = locked(&self.outages);
        let mut all = outages.values().flatten();
        all.any(|outage| {
            outage.from <= to
                && outage
                    .noticed
                    .is_none_or(|noticed| noticed + IN_FLIGHT >= from)
        })
    }

    /// A long-lived connection, opened at `since`, has failed.
    pub(super) fn connection_failed(
        &self,
        flow: String,
        backend: &str,
        since: Instant,
        cause: String,
    ) {
        if self.killed_since(backend, since) {
            self.expected_losses.fetch_add(1, Ordering::Relaxed);
        } else {
            let broken = self.broken(flow, backend, since, cause);
            locked(&self.broken).push(broken);
        }
    }

    /// Another server than before answered a UDP flow that was opened at `since`. `last` is when `backend` last answered.
    pub(super) fn flow_changed(
        &self,
        flow: String,
        (backend, last): (&str, Instant),
        since: Instant,
        other: &str,
    ) {
        if self.killed_since(backend, last.checked_sub(IN_FLIGHT).unwrap_or(last)) {
            self.udp_rehomed.fetch_add(1, Ordering::Relaxed);
        } else {
            let moved = self.broken(flow, backend, since, format!("{other} answers"));
            locked(&self.moved).push(moved);
        }
    }

    /// A request that was sent at `from` has failed.
    pub(super) fn request_failed(&self, from: Instant, cause: String) {
        let expected = self.unnoticed_within(from, Instant::now());
        let causes = if expected {
            &self.request_failures_expected
        } else {
            &self.request_failures
        };
        count(causes, cause);
    }

    fn broken(&self, flow: String, backend: &str, since: Instant, cause: String) -> Broken {
        let events = locked(&self.events);
        let last = events.len().saturating_sub(3);
        let words = |event: &Happened| format!("{:.1} s {}", event.at, event.words);
        let broken = Broken {
            at: self.seconds(),
            flow,
            backend: backend.to_owned(),
            age: since.elapsed().as_secs_f64(),
            cause,
            after: events[last..].iter().map(words).collect(),
        };
        eprintln!("BROKEN {broken}");
        broken
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            at,
            flow,
            backend,
            age,
            cause,
            after,
        } = self;
        let after = after.join("; ");
        write!(
            f,
            "at {at:.1} s: {flow} at {backend}, {age:.1} s old: {cause}; after: {after}"
        )
    }
}

/// Counts a cause.
pub(super) fn count(causes: &Mutex<Causes>, cause: String) {
    *locked(causes).entry(cause).or_default() += 1;
}

/// What a mutex guards. A panic elsewhere does not make the facts untrue.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(ledger: &Ledger, backend: &str, since: Instant) -> (usize, u64) {
        ledger.connection_failed("tcp".into(), backend, since, "reset".into());
        (
            locked(&ledger.broken).len(),
            ledger.expected_losses.load(Ordering::Relaxed),
        )
    }

    #[test]
    fn only_the_connections_of_a_killed_server_may_be_lost() {
        let ledger = Ledger::new();
        let before = Instant::now();
        assert_eq!(fail(&ledger, "a", before), (1, 0), "nobody was killed");
        ledger.killing("a");
        assert_eq!(fail(&ledger, "a", before), (1, 1), "while it is killed");
        ledger.killed("a");
        assert_eq!(fail(&ledger, "a", before), (1, 2), "opened before");
        assert_eq!(fail(&ledger, "b", before), (2, 2), "another's");
        let after = Instant::now();
        assert_eq!(fail(&ledger, "a", after), (3, 2), "opened after the kill");
    }

    #[test]
    fn a_udp_flow_may_change_only_after_a_kill_of_its_server() {
        let ledger = Ledger::new();
        let change = |last: Instant| {
            ledger.flow_changed("udp".into(), ("a", last), last, "b");
            (
                locked(&ledger.moved).len(),
                ledger.udp_rehomed.load(Ordering::Relaxed),
            )
        };
        assert_eq!(change(Instant::now()), (1, 0));
        ledger.killing("a");
        ledger.killed("a");
        assert_eq!(change(Instant::now()), (1, 1), "an answer was under way");
        let later = Instant::now() + 2 * IN_FLIGHT;
        assert_eq!(change(later), (2, 1), "it was back and answered since");
    }

    #[test]
    fn a_request_may_fail_only_while_a_dead_server_gets_new_flows() {
        let ledger = Ledger::new();
        let counts = || {
            let sum = |causes: &Mutex<Causes>| locked(causes).values().sum::<u64>();
            (
                sum(&ledger.request_failures),
                sum(&ledger.request_failures_expected),
            )
        };
        ledger.request_failed(Instant::now(), "refused".into());
        assert_eq!(counts(), (1, 0));
        ledger.killing("a");
        ledger.killed("a");
        ledger.request_failed(Instant::now(), "refused".into());
        assert_eq!(counts(), (1, 1));
        ledger.noticed("a");
        ledger.request_failed(Instant::now() + 2 * IN_FLIGHT, "refused".into());
        assert_eq!(counts(), (2, 1));
    }
}
