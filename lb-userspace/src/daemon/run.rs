//! The loop: takes what happens, tells the core, reconciles once for everything that came together.
//!
//! **Invariants.** Nothing here ends the daemon but SIGTERM and SIGINT. Stopping leaves links and maps pinned: packets
//! keep flowing. Until every backend has a first verdict (or 5 s have passed) the data plane is left as the last
//! daemon left it, so that a restart moves no slot.

use super::{
    change::revisions,
    core::Core,
    look::{Loaded, Looking},
    start::read_config,
    trace::POLL,
};
use crate::{
    announce::worker::{Report, Worker},
    api::{
        handle::Request,
        protocol::{ErrorBody, ErrorCode},
    },
    config::NodeConfig,
    dataplane::{Attachment, AyaDataPlane, clock::monotonic},
    health::checker::{self, Checker, HealthReport},
    neighbour::{self, NextHopUpdate, Resolver},
};
use anyhow::Result;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::Signal,
    sync::mpsc,
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

/// Longest wait for first verdicts before the data plane is brought up to date without them.
pub(super) const SETTLE: Duration = Duration::from_secs(5);
/// How often interfaces are looked at and failed writes tried again.
const TICK: Duration = Duration::from_secs(1);

/// The running daemon.
pub(super) struct Daemon {
    pub(super) core: Core<AyaDataPlane>,
    pub(super) config: NodeConfig,
    pub(super) config_path: PathBuf,
    pub(super) checker: Checker,
    pub(super) resolver: Resolver,
    /// Where the checker and the resolver report to, for the case that they have to be started again.
    pub(super) senders: (mpsc::Sender<HealthReport>, mpsc::Sender<NextHopUpdate>),
    pub(super) started: Instant,
    /// Until when first verdicts are waited for; the data plane is not written before. None: they are in, or late.
    pub(super) settling: Option<tokio::time::Instant>,
    /// Whether the program is to be attached once there is something to attach it with.
    pub(super) fresh: bool,
    /// What looks on.
    pub(super) looking: Looking,
    /// The driver that announces VIPs, and where it reports to; none: nothing is announced.
    pub(super) announcer: Option<(Worker, mpsc::Sender<Report>)>,
    /// Whether the last look at the interfaces failed, which is said once.
    pub(super) blind: bool,
    /// Whether there are stand-ins to compute when nothing else is to be done.
    pub(super) unready: bool,
    /// Whether the last self-test could not be run, which is said once.
    pub(super) untested: bool,
}

/// Where events come from.
pub(super) struct Events {
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) health: mpsc::Receiver<HealthReport>,
    pub(super) next_hops: mpsc::Receiver<NextHopUpdate>,
    pub(super) loaded: mpsc::Receiver<Loaded>,
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) reload: Signal,
}

impl Daemon {
    /// Serves until SIGTERM or SIGINT.
    pub(super) async fn serve(&mut self, events: &mut Events) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Next hops count by the interface that they are behind, so these come first. Where the maps are in use already, the
        // new program can take over at once.
        let attachments = if self.fresh {
            self.core.plane.attachments()
        } else {
            self.core.plane.activate()
        };
        self.take_attachments(attachments);
        self.follow();
        let mut due = true;
        loop {
            if due {
                self.reconcile();
                due = false;
            }
            let deadline = self.settling;
            tokio::select! {
                _ = events.terminate.recv() => return,
                _ = events.interrupt.recv() => return,
                _ = events.reload.recv() => due |= self.reload(),
                Some(request) = events.requests.recv() => {
                    self.core.advance(monotonic());
                    self.answer(request);
                }
                Some(loaded) = events.loaded.recv() => self.on_loaded(loaded),
                Some(report) = events.reports.recv() => {
                    self.core.on_announced(report);
                    self.announce();
                }
                Some(report) = events.health.recv() => due |= self.core.on_health(report, monotonic()),
                Some(update) = events.next_hops.recv() => due |= self.core.on_next_hop(update),
                _ = tick.tick() => due |= self.on_tick(),
                // It is never ready at the first look, so that whatever waits comes first.
                () = yield_now(), if self.unready => self.unready = self.core.make_ready(),
                _ = poll.tick(), if self.looking.session.is_some() => self.on_trace_tick(),
                () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    due |= self.settle("not every backend answered in time");
                }
            }
            due |= std::mem::take(&mut self.looking.due);
            // What came together is reconciled together.
            for report in waiting(&mut events.health) {
                due |= self.core.on_health(report, monotonic());
            }
            for update in waiting(&mut events.next_hops) {
                due |= self.core.on_next_hop(update);
            }
            if self.settling.is_some() && self.core.knows_all() {
                due |= self.settle("every backend is known");
            }
        }
    }

    fn settle(&mut self, why: &str) -> bool {
        info!(why, "bringing the data plane up to date");
        self.settling = None;
        true
    }

    /// Brings the data plane up to date, then attaches the program if it waited for that.
    fn reconcile(&mut self) {
        if self.settling.is_some() {
            return;
        }
        let leaving = self.core.leaving();
        self.withdraw();
        self.core.reconcile_new(monotonic());
        self.announce();
        if self.core.leaving() != leaving {
            self.follow();
        }
        if self.fresh && !self.core.must_retry() && !self.core.is_frozen() {
            let attachments = self.core.plane.activate();
            self.fresh = false;
            if self.take_attachments(attachments) {
                self.core.reconcile_new(monotonic());
            }
            self.announce();
        }
    }

    /// Tells probes and next hops what there is to follow.
    fn follow(&self) {
        self.checker.set_targets(self.core.targets());
        self.resolver.set_addresses(self.core.addresses());
    }

    /// Looks at the interfaces and attaches where the program is missing; whether a reconcile is due.
    fn on_tick(&mut self) -> bool {
        self.revive();
        let plane = &mut self.core.plane;
        plane.flush_drop_log();
        let attachments = if self.fresh {
            plane.attachments()
        } else {
            plane.activate()
        };
        self.revive_announcer();
        if self.settling.is_none() {
            self.core.count_flows(monotonic());
            self.unready = self.core.make_ready();
        }
        let due = self.take_attachments(attachments) | self.core.look_for_more();
        self.announce();
        due
    }

    /// Starts again what has died. Only a defect can end these tasks, and without them the node would go on with what it
    /// knew last and say nothing.
    fn revive(&mut self) {
        let (reports, updates) = &self.senders;
        if self.checker.has_died() {
            error!("the health checker died, which is a defect; it is started again");
            self.checker = checker::start(reports.clone());
            self.follow();
        } else if self.resolver.has_died() {
            error!("the resolver of next hops died, which is a defect; it is started again");
            match neighbour::start(updates.clone()) {
                Ok(resolver) => self.resolver = resolver,
                Err(problem) => {
                    error!(problem = %format!("{problem:#}"), "it could not be started")
                }
            }
            self.follow();
        }
    }

    /// Takes what is attached where; whether a reconcile is due. When that could not be read, what was known stays in
    /// force: an interface that cannot be seen for a moment still forwards.
    pub(super) fn take_attachments(&mut self, found: Result<Vec<Attachment>>) -> bool {
        match found {
            Ok(attachments) => {
                self.blind = false;
                self.core.on_attachments(attachments, !self.fresh)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.blind, true) {
                    warn!(
                        "what is on the interfaces cannot be read, what was known stays in force: {error:#}"
                    );
                }
                false
            }
        }
    }

    /// SIGHUP: the interfaces are taken from the file anew; whatever else differs is said.
    fn reload(&mut self) -> bool {
        let config = match read_config(&self.config_path) {
            Ok(config) => config,
            Err(problem) => {
                error!(%problem, "the configuration was not reloaded; the old one is in force");
                return false;
            }
        };
        let interfaces = config.interfaces.clone();
        if (NodeConfig {
            interfaces: self.config.interfaces.clone(),
            ..config.clone()
        }) != self.config
        {
            warn!(
                "only `interfaces` can change while lbd runs; restart it for the rest (packets keep flowing)"
            );
        }
        self.core.plane.set_interfaces(interfaces.clone());
        self.config.interfaces = interfaces;
        info!("configuration reloaded");
        self.on_tick()
    }

    /// Answers one request, a change when the data plane is true to it. A client that does not wait for its answer is no problem.
    fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => drop(reply.send(self.core.status(self.started.elapsed()))),
            Request::Services(reply) => drop(reply.send(self.core.services())),
            Request::State(reply) => drop(reply.send(self.core.state_view())),
            Request::Stats(reply) => {
                let failed = |error: anyhow::Error| ErrorBody {
                    code: ErrorCode::Failed,
                    message: format!("the counters could not be read: {error:#}"),
                    problems: Vec::new(),
                };
                drop(reply.send(self.core.stats().map_err(failed)));
            }
            Request::Digest(reply) => {
                drop(reply.send(self.core.digest(self.config.hash_seed)));
            }
            Request::Drains(reply) => drop(reply.send(self.core.drains())),
            Request::Announcements(reply) => drop(reply.send(self.core.announcements())),
            Request::Node(reply) => drop(reply.send(self.core.node())),
            Request::DrainNode { drain, reply } => drop(reply.send(self.drain_node(drain))),
            Request::History(reply) => {
                let history = self.core.history();
                // A hundred states take longer to read than the loop may stand still.
                tokio::task::spawn_blocking(move || drop(reply.send(revisions(&history))));
            }
            Request::Metrics(reply) => {
                drop(reply.send(self.core.metrics_text(self.started.elapsed())))
            }
            Request::Trace { request, reply } => self.on_trace(&request, reply),
            Request::Explain { request, reply } => self.on_explain(request, reply),
            Request::Change {
                change,
                options,
                reply,
            } => {
                let frozen = self.core.is_frozen();
                let result = self.core.change(&change, &options);
                if frozen && !self.core.is_frozen() {
                    // As after a start: what the data plane holds is not touched before the backends are known.
                    self.settling = Some(tokio::time::Instant::now() + SETTLE);
                }
                if result
                    .as_ref()
                    .is_ok_and(|report| report.changed && !report.dry_run)
                {
                    self.follow();
                    self.reconcile();
                }
                drop(reply.send(result));
            }
        }
    }
}

/// What waits in a queue now. What comes meanwhile is left for the next turn: who fills a queue as fast as it is emptied must not
/// keep the loop from everything else.
fn waiting<T>(queue: &mut mpsc::Receiver<T>) -> impl Iterator<Item = T> {
    (0..queue.len()).map_while(move |_| queue.try_recv().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_is_filled_meanwhile_is_left_all_the_same() {
        let (sender, mut queue) = mpsc::channel(4);
        for number in 0..3 {
            sender.try_send(number).unwrap();
        }
        let mut taken = Vec::new();
        for number in waiting(&mut queue) {
            taken.push(number);
            sender.try_send(number + 3).unwrap();
            assert!(taken.len() < 100, "it never ends");
        }
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!(waiting(&mut queue).collect::<Vec<_>>(), [3, 4, 5]);
    }
}
