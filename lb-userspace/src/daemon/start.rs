//! Starts everything: what can refuse the start comes first, then the data plane, then the tasks around the loop.
//!
//! **Invariant.** A start that fails leaves the data plane as it was.

use super::{
    announce,
    core::Core,
    look::Looking,
    run::{Daemon, Events, SETTLE},
};
use crate::{
    api::{self, handle::Handle},
    config::NodeConfig,
    dataplane::{Adoption, Carried, Settings, aya, clock::monotonic},
    desired::Store,
    health::checker,
    metrics, neighbour,
    spec::Limits,
};
use anyhow::{Context, Result};
use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{info, warn};

/// Events waiting for the loop, of each kind.
const QUEUE: usize = 1024;

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
    let mut core = Core::new(plane, running, store, limits, monotonic())?;
    core.set_outer_source(config.outer_source);
    if let Some(settings) = &config.announce {
        core.begin_announcing(settings.clone());
    }

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
    let (loaded_sender, loaded) = mpsc::channel(QUEUE);
    let (report_sender, reports) = mpsc::channel(QUEUE);
    let announcer = config.announce.as_ref().map(|settings| {
        let worker = announce::start(settings, &config.state_directory, report_sender.clone());
        (worker, report_sender)
    });
    let mut daemon = Daemon {
        core,
        config_path: config_path.to_path_buf(),
        checker: checker::start(health_sender.clone()),
        resolver: neighbour::start(hop_sender.clone())?,
        senders: (health_sender, hop_sender),
        started: Instant::now(),
        settling: Some(tokio::time::Instant::now() + SETTLE),
        fresh: !is_filled(&adoption),
        looking: Looking::new(loaded_sender),
        announcer,
        blind: false,
        unready: false,
        untested: false,
        config,
    };
    let mut events = Events {
        requests,
        health,
        next_hops,
        loaded,
        reports,
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
    daemon.end_trace();
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
        Adoption::Replaced {
            carried: Ok(carried),
            ..
        } => carried.services > 0,
        // What is in the old maps cannot be read; they are taken to be in use.
        Adoption::Replaced {
            carried: Err(_), ..
        } => true,
    }
}

/// Whether the maps hold what the last daemon put there.
fn is_filled(adoption: &Adoption) -> bool {
    match adoption {
        Adoption::Fresh => false,
        Adoption::Reused { .. } => true,
        Adoption::Replaced { carried, .. } => carried.is_ok(),
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
        flows: config.max_flows,
    }
}

fn report(adoption: &Adoption) {
    match adoption {
        Adoption::Fresh => info!("nothing was running: the data plane is new"),
        Adoption::Reused { services, backends } => {
            info!(services, backends, "the running data plane was adopted");
        }
        Adoption::Replaced {
            differences,
            carried,
        } => {
            for difference in differences {
                info!(%difference, "the running data plane has other maps");
            }
            match carried {
                Ok(Carried {
                    services,
                    backends,
                    flows,
                }) => info!(
                    services,
                    backends,
                    flows,
                    "the running data plane was carried over into new maps; its counters start anew"
                ),
                Err(why) => warn!(
                    %why,
                    "the running data plane cannot be carried over; it forwards until the new one is filled, \
                     its flows are forgotten and its counters start anew"
                ),
            }
        }
    }
}
