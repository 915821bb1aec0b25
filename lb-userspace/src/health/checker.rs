//! Probes all targets on their schedules and reports every probe.
//!
//! One task owns the schedule and the state machines; each probe is a task of its own. **Invariants.** A target has
//! one probe waiting or running, never two. A removed or changed target never hears from a probe started before.
//! At most `probes_at_once` probes hold a socket. A report is never dropped: when the receiver is slow, the
//! schedule waits.

use super::{
    probe::{Prober, TcpProber},
    state::{Health, HealthState, NoAnswer, Outcome},
};
use crate::spec::{HealthCheck, Name};
use futures::StreamExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::time::{DelayQueue, delay_queue};

/// A backend of a service: what is probed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    /// The service.
    pub service: Name,
    /// Its backend.
    pub backend: Name,
}

/// How a target is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address probed. A new address is a new host: its health starts again from `initial`.
    pub address: IpAddr,
    /// The probe. A changed one keeps the health and is carried out at once.
    pub check: HealthCheck,
    /// Health before the first probe.
    pub initial: HealthState,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthReport {
    /// Whom it is about.
    pub target: TargetId,
    /// State after the probe.
    pub state: HealthState,
    /// Whether the probe changed the state.
    pub changed: bool,
    /// How the probe ended.
    pub outcome: Outcome,
    /// Why this host could not probe, if it could not; else why the last failed probe failed, empty once an up target has
    /// answered again.
    pub detail: String,
    /// How long the last successful probe took.
    pub latency: Option<Duration>,
}

/// The running checker; dropping it stops all probes.
#[derive(Debug)]
pub struct Checker {
    targets: watch::Sender<BTreeMap<TargetId, Target>>,
    task: AbortHandle,
}

impl Checker {
    /// Whether its task has ended although nobody stopped it: a defect.
    pub fn has_died(&self) -> bool {
        self.task.is_finished()
    }

    /// Replaces the set of targets. New ones are probed at once, those that stay the same are not disturbed.
    pub fn set_targets(&self, targets: BTreeMap<TargetId, Target>) {
        self.targets.send_replace(targets);
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a checker without targets. Must be called within a tokio runtime.
pub fn start(reports: mpsc::Sender<HealthReport>) -> Checker {
    start_with(TcpProber, reports)
}

fn start_with<P: Prober>(prober: P, reports: mpsc::Sender<HealthReport>) -> Checker {
    let (targets, wanted) = watch::channel(BTreeMap::new());
    let schedule = Schedule {
        prober: Arc::new(prober),
        permits: Arc::new(Semaphore::new(probes_at_once())),
        reports,
        entries: BTreeMap::new(),
        waiting: DelayQueue::new(),
        running: JoinSet::new(),
    };
    let task = tokio::spawn(schedule.run(wanted)).abort_handle();
    Checker { targets, task }
}

/// Probes that may hold a socket at the same time: half of the file descriptors the process may open, so that the
/// API and the maps always find one, and at most 4,096. With every target timing out after 1 s that is 4,096 dead
/// targets a second; more are probed late, not never.
fn probes_at_once() -> usize {
    let descriptors = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    // On an error, what every Linux process gets: 1,024.
    let soft = descriptors.map_or(1_024, |(soft, _)| soft);
    usize::try_from(soft / 2)
        .unwrap_or(usize::MAX)
        .clamp(16, 4_096)
}

/// Where a target's next result comes from.
#[derive(Debug)]
enum Next {
    /// It waits for its time.
    Waiting(delay_queue::Key),
    /// A probe is under way.
    Running(AbortHandle),
}

#[derive(Debug)]
struct Entry {
    target: Target,
    health: Health,
    next: Next,
}

/// A probe's answer.
struct Finished {
    id: TargetId,
    started: Instant,
    result: Result<Duration, NoAnswer>,
}

struct Schedule<P> {
    prober: Arc<P>,
    permits: Arc<Semaphore>,
    reports: mpsc::Sender<HealthReport>,
    entries: BTreeMap<TargetId, Entry>,
    waiting: DelayQueue<TargetId>,
    running: JoinSet<Finished>,
}

impl<P: Prober> Schedule<P> {
    /// Runs until the checker is dropped or nobody receives reports any more.
    async fn run(mut self, mut wanted: watch::Receiver<BTreeMap<TargetId, Target>>) {
        loop {
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let targets = wanted.borrow_and_update().clone();
                    self.replace(targets);
                }
                Some(joined) = self.running.join_next_with_id() => {
                    if let Some(report) = self.finish(joined)
                        && self.reports.send(report).await.is_err()
                    {
                        return;
                    }
                }
                Some(due) = self.waiting.next() => self.probe(due.into_inner()),
            }
        }
    }

    fn replace(&mut self, targets: BTreeMap<TargetId, Target>) {
        let gone: BTreeSet<_> = self
            .entries
            .keys()
            .filter(|id| !targets.contains_key(id))
            .cloned()
            .collect();
        for entry in gone
            .iter()
            .filter_map(|id| self.entries.remove(id))
            .collect::<Vec<_>>()
        {
            self.cancel(&entry.next);
        }
        for (id, target) in targets {
            let health = match self.entries.get(&id) {
                Some(entry) if same_probe(&entry.target, &target) => continue,
                Some(entry) if entry.target.address == target.address => entry.health.clone(),
                Some(_) | None => Health::new(target.initial),
            };
            let next = Next::Waiting(self.waiting.insert(id.clone(), Duration::ZERO));
            if let Some(replaced) = self.entries.insert(
                id,
                Entry {
                    target,
                    health,
                    next,
                },
            ) {
                self.cancel(&replaced.next);
            }
        }
    }

    fn cancel(&mut self, next: &Next) {
        match next {
            Next::Waiting(key) => {
                self.waiting.try_remove(key);
            }
            Next::Running(task) => task.abort(),
        }
    }

    fn probe(&mut self, id: TargetId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let address = SocketAddr::new(entry.target.address, entry.target.check.port);
        let limit = entry.target.check.timeout;
        let (prober, permits) = (self.prober.clone(), self.permits.clone());
        entry.next = Next::Running(self.running.spawn(async move {
            // The semaphore is never closed; if it were, one probe too many would do no harm.
            let _permit = permits.acquire().await;
            let started = Instant::now();
            let result = prober.probe(address, limit).await;
            Finished {
                id,
                started,
                result,
            }
        }));
    }

    /// Feeds a probe's answer to its target and schedules the next one. None when the target did not ask for it.
    fn finish(&mut self, joined: Result<(Id, Finished), JoinError>) -> Option<HealthReport> {
        let (task, finished) = match joined {
            Ok(joined) => joined,
            // Cancelled, so its target is gone or waits for another probe; or it panicked, which must not end the
            // probing of its target.
            Err(error) => (error.id(), self.crashed(error.id())?),
        };
        let Finished {
            id,
            started,
            result,
        } = finished;
        let entry = self.entries.get_mut(&id)?;
        if !matches!(&entry.next, Next::Running(handle) if handle.id() == task) {
            return None;
        }
        let check = &entry.target.check;
        let wait = jittered(check.interval, check.jitter_percent, fastrand::f64());
        entry.next = Next::Waiting(self.waiting.insert_at(id.clone(), started + wait));
        let before = entry.health.state();
        let outcome = entry.health.record(result, check);
        Some(HealthReport {
            target: id,
            state: entry.health.state(),
            changed: entry.health.state() != before,
            outcome,
            detail: entry.health.detail().to_owned(),
            latency: entry.health.latency(),
        })
    }

    fn crashed(&self, task: Id) -> Option<Finished> {
        let is_its = |next: &Next| matches!(next, Next::Running(handle) if handle.id() == task);
        let (id, _) = self.entries.iter().find(|(_, entry)| is_its(&entry.next))?;
        Some(Finished {
            id: id.clone(),
            started: Instant::now(),
            result: Err(NoAnswer::Failed("the probe crashed".into())),
        })
    }
}

/// Whether nothing changes for a target that is already there; `initial` is for new ones only.
fn same_probe(old: &Target, new: &Target) -> bool {
    (old.address, &old.check) == (new.address, &new.check)
}

/// `interval`, lengthened or shortened by up to `percent` of it. `random` is uniform in 0..1.
fn jittered(interval: Duration, percent: u32, random: f64) -> Duration {
    let share = f64::from(percent.min(100)) / 100.0;
    interval.mul_f64(1.0 + share * (2.0 * random - 1.0))
}

#[cfg(test)]
mod tests;
