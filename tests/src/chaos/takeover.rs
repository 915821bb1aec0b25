//! A balancer dies in the middle of a drain. The other one knows nothing of the flows that began at the first one meanwhile:
//! it takes them for old flows, and names the new owner beside. What the backends' kits make of that is counted.
//!
//! **Invariant.** No server and no daemon is killed: whatever breaks, breaks because the wrong backend got its packets.

use super::{
    clients::{self, Load},
    fleet::{Fleet, Shape},
    ledger::{Ledger, locked},
    plan::Action,
    raise_open_files,
};
use crate::{interrupt, require, session::Session, topology::VIP_V4, wait::wait_until};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::watch;

/// Longest wait for connections to be open.
const OPENING: Duration = Duration::from_secs(30);
/// Backends that are drained, of [`super::fleet::BACKENDS`].
const DRAINED: usize = 3;
/// Time after the loss, and after the end of the drain: long enough that a connection that makes no progress is noticed.
const AFTER: Duration = Duration::from_secs(12);

/// Arguments of a run.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Whether the kits hand packets on: on or off
    #[arg(long, default_value = "on")]
    second_chance: String,
    /// How the kits are attached, as in lbctl backend-kit attach --mode
    #[arg(long, default_value = "native")]
    by: String,
    /// Long-lived connections before the drain, and as many during it
    #[arg(long, default_value_t = 150)]
    connections: u64,
    /// File to write the counts to
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Plays it; whether nothing broke.
///
/// # Errors
/// When a part of it cannot be set up.
pub(super) fn perform(arguments: &Arguments) -> Result<bool> {
    let missing = require::missing_for_network();
    if !missing.is_empty() {
        bail!("a takeover needs {}", missing.join(", "));
    }
    raise_open_files()?;
    let session = Session::unique();
    let name = session.name().to_owned();
    interrupt::clean_up_on_signals(move || Session::named(&name))?;
    let mut fleet = Fleet::set_up(session, Shape::chaos("gue"))?;
    fleet.attach_kits(&arguments.by, &arguments.second_chance)?;
    let ledger = Arc::new(Ledger::new());
    let (stop, stopped) = watch::channel(false);
    let asked = usize::try_from(arguments.connections)?;

    let mut clients = vec![connect(&fleet, arguments, 1, &ledger, &stopped)];
    wait_open(&ledger, asked)?;
    for backend in 0..DRAINED {
        ledger.happens("drain", format!("drain backend-{}", backend + 1));
        fleet.act(Action::Drain(backend), &ledger)?;
    }
    clients.push(connect(&fleet, arguments, 2, &ledger, &stopped));
    wait_open(&ledger, 2 * asked)?;
    let opened = ledger.opened.load(Relaxed);
    ledger.happens("loss", "balancer 1 is lost".into());
    fleet.lose_first_balancer()?;
    thread::sleep(AFTER);
    for backend in 0..DRAINED {
        ledger.happens("undrain", format!("undrain backend-{}", backend + 1));
        fleet.act(Action::Undrain(backend), &ledger)?;
    }
    thread::sleep(AFTER);
    stop.send_replace(true);
    for clients in clients {
        clients
            .join()
            .map_err(|_| anyhow!("the clients panicked"))??;
    }
    let (broken, bytes) = (locked(&ledger.broken).len(), ledger.bytes.load(Relaxed));
    let handed_on = fleet.handed_on()?;
    println!(
        "second chance {}, {}: {opened} connections, half of them opened during the drain; {broken} broken, {handed_on} packets \
         handed on, {bytes} bytes checked",
        arguments.second_chance, arguments.by
    );
    if let Some(path) = &arguments.json {
        let counts = serde_json::json!({
            "connections": opened,
            "broken": broken,
            "handed_on": handed_on,
            "bytes_checked": bytes,
        });
        fs::write(path, format!("{counts:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(broken == 0)
}

fn connect(
    fleet: &Fleet,
    arguments: &Arguments,
    seed: u64,
    ledger: &Arc<Ledger>,
    stopped: &watch::Receiver<bool>,
) -> JoinHandle<Result<()>> {
    let load = Load {
        connections: arguments.connections,
        workers: 0,
        flows: 0,
    };
    let (ledger, stopped) = (Arc::clone(ledger), stopped.clone());
    let run = move || clients::run(VIP_V4, load, seed, &ledger, &stopped);
    fleet.topology.client.spawn(run)
}

fn wait_open(ledger: &Ledger, count: usize) -> Result<()> {
    wait_until("all connections to be open", OPENING, || {
        Ok((ledger.open.load(Relaxed) >= count).then_some(()))
    })
}
