//! Starts everything and runs the loop until it is told to stop.
//!
//! **Invariants.** Nothing here ends the daemon but SIGTERM and SIGINT. Stopping leaves links and maps pinned: packets
//! keep flowing. Until every backend has a first verdict (or 5 s have passed) the data plane is left as the last
//! daemon left it, so that a restart moves no slot.

use super::core::Core;
use crate::{
    api::{
        self,
        handle::{Handle, Request},
        protocol::{ErrorBody, ErrorCode},
    },
    config::NodeConfig,
    dataplane::{
        Adoption, Attachment, Settings,
        aya::{self, AyaDataPlane},
    },
    desired::Store,
    health::checker::{self, Checker, HealthReport},
    metrics,
    neighbour::{self, NextHopUpdate, Resolver},
    spec::Limits,
};
use anyhow::{Context, Result};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

/// Longest wait for first verdicts before the data plane is brought up to date without them.
const SETTLE: Duration = Duration::from_secs(5);
/// How often interfaces are looked at and failed writes tried again.
const TICK: Duration = Duration::from_secs(1);
/// Events waiting for the loop, of each kind.
const QUEUE: usize = 1024;

/// The running daemon.
struct Daemon {
    core: Core<AyaDataPlane>,
    config: NodeConfig,
    config_path: PathBuf,
    checker: Checker,
    resolver: Resolver,
    started: Instant,
    /// Until when first verdicts are waited for; the data plane is not written before. None: they are in, or late.
    settling: Option<tokio::time::Instant>,
    /// Whether the program is to be attached once there is something to attach it with.
    fresh: bool,
    /// Whether the last look at the interfaces failed, which is said once.
    blind: bool,
}

/// Where events come from.
struct Events {
    requests: mpsc::Receiver<Request>,
    health: mpsc::Receiver<HealthReport>,
    next_hops: mpsc::Receiver<NextHopUpdate>,
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

/// Runs `lbd` with the configuration in a file until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting. Once it runs, nothing does.
pub async fn run(config_path: &Path) -> Result<()> {
    let config = read_config(config_path)?;
    aya::check_privileges()?;
    // Whatever can refuse the start does so before the data plane is touched.
    let store = Store::open(&config.state_directory)?;
    let listener = api::server::bind(&config.socket, config.group.as_deref())?;
    let metrics_listener = match config.metrics {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let (plane, adoption) = aya::open(&settings(&config))?;
    report(&adoption);
    let running = is_running(&adoption);
    if let (Some(before), true) = (store.remember_seed(config.hash_seed)?, running) {
        let now = config.hash_seed;
        warn!(
            before,
            now, "hash_seed is another: established connections move to other backends"
        );
    }
    let limits = Limits {
        services: config.max_services,
        backends: config.max_backends,
    };
    let core = Core::new(plane, running, store, limits)?;

    let (handle, requests) = Handle::new(QUEUE);
    let (stop, stopped) = watch::channel(());
    let shutdown = async move {
        let mut stopped = stopped;
        // An error means that the sender is gone, which is the signal.
        let _ = stopped.changed().await;
    };
    let api = tokio::spawn(api::server::serve(listener, handle.clone(), shutdown));
    if let Some(listener) = metrics_listener {
        tokio::spawn(metrics::serve(listener, handle));
    }
    let (health_sender, health) = mpsc::channel(QUEUE);
    let (hop_sender, next_hops) = mpsc::channel(QUEUE);
    let mut daemon = Daemon {
        core,
        config_path: config_path.to_path_buf(),
        checker: checker::start(health_sender),
        resolver: neighbour::start(hop_sender)?,
        started: Instant::now(),
        settling: Some(tokio::time::Instant::now() + SETTLE),
        fresh: !matches!(adoption, Adoption::Reused { .. }),
        blind: false,
        config,
    };
    let mut events = Events {
        requests,
        health,
        next_hops,
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        reload: signal(SignalKind::hangup())?,
    };
    info!(
        pid = std::process::id(),
        version = env!("CARGO_PKG_VERSION"),
        "lbd started"
    );
    daemon.serve(&mut events).await;
    drop(stop);
    // The API answers what it has accepted; a second is enough for that.
    let _ = tokio::time::timeout(Duration::from_secs(1), api).await;
    let _ = std::fs::remove_file(&daemon.config.socket);
    info!("lbd stopped; packets keep flowing (`lbd detach` takes the data plane down)");
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("metrics.address {address} cannot be listened on; is another lbd running?")
    })
}

/// Whether a data plane with services in it is in force.
fn is_running(adoption: &Adoption) -> bool {
    match adoption {
        Adoption::Fresh => false,
        Adoption::Reused { services, .. } => *services > 0,
        // What is in the old maps cannot be read; they are taken to be in use.
        Adoption::Replaced { .. } => true,
    }
}

/// Reads the configuration; the error names the file in every line.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_config(path: &Path) -> Result<NodeConfig> {
    NodeConfig::read(path).map_err(|problems| {
        let lines: Vec<String> = problems
            .0
            .iter()
            .map(|problem| format!("{}: {problem}", path.display()))
            .collect();
        anyhow::anyhow!(lines.join("\n"))
    })
}

/// What the data plane needs to know. The maps are twice the limits: while a whole pool is replaced, both are in them.
pub fn settings(config: &NodeConfig) -> Settings {
    Settings {
        pin_directory: config.pin_directory.clone(),
        interfaces: config.interfaces.clone(),
        hash_seed: config.hash_seed,
        services: 2 * config.max_services,
        backends: 2 * config.max_backends + 1,
    }
}

fn report(adoption: &Adoption) {
    match adoption {
        Adoption::Fresh => info!("nothing was running: the data plane is new"),
        Adoption::Reused { services, backends } => {
            info!(services, backends, "the running data plane was adopted");
        }
        Adoption::Replaced { differences } => {
            for difference in differences {
                warn!(%difference, "the running data plane has other maps; it forwards until the new one is filled");
            }
        }
    }
}

impl Daemon {
    async fn serve(&mut self, events: &mut Events) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !self.fresh {
            // The maps are in use already: the new program can take over at once.
            let attachments = self.core.plane.activate();
            self.take_attachments(attachments);
        }
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
                Some(request) = events.requests.recv() => due |= self.answer(request),
                Some(report) = events.health.recv() => due |= self.core.on_health(report),
                Some(update) = events.next_hops.recv() => due |= self.core.on_next_hop(update),
                _ = tick.tick() => due |= self.on_tick(),
                () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)), if deadline.is_some() => {
                    due |= self.settle("not every backend answered in time");
                }
            }
            // What came together is reconciled together.
            while let Ok(report) = events.health.try_recv() {
                due |= self.core.on_health(report);
            }
            while let Ok(update) = events.next_hops.try_recv() {
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
        self.core.reconcile();
        if self.fresh && !self.core.must_retry() && !self.core.is_frozen() {
            let attachments = self.core.plane.activate();
            self.fresh = false;
            self.take_attachments(attachments);
        }
    }

    /// Tells probes and next hops what there is to follow.
    fn follow(&self) {
        self.checker.set_targets(self.core.targets());
        self.resolver.set_addresses(self.core.addresses());
    }

    /// Looks at the interfaces and attaches where the program is missing; whether a reconcile is due.
    fn on_tick(&mut self) -> bool {
        let plane = &mut self.core.plane;
        plane.flush_drop_log();
        let attachments = if self.fresh {
            plane.attachments()
        } else {
            plane.activate()
        };
        self.take_attachments(attachments) | self.core.has_more_to_do()
    }

    /// Takes what is attached where; whether a reconcile is due. When that could not be read, what was known stays in
    /// force: an interface that cannot be seen for a moment still forwards.
    fn take_attachments(&mut self, found: Result<Vec<Attachment>>) -> bool {
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

    /// Answers one request; whether a reconcile is due. A client that does not wait for its answer is no problem.
    fn answer(&mut self, request: Request) -> bool {
        let mut due = false;
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
            Request::Metrics(reply) => {
                drop(reply.send(self.core.metrics_text(self.started.elapsed())))
            }
            Request::Change {
                change,
                dry_run,
                reply,
            } => {
                let frozen = self.core.is_frozen();
                let result = self.core.change(&change, dry_run);
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
                    due = true;
                }
                drop(reply.send(result));
            }
        }
        due
    }
}
