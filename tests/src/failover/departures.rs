//! Balancers leave a fleet and come back, by drain and by death, while every byte of many connections is compared.
//!
//! **Invariant.** No server is ever killed: whatever breaks, breaks because of a balancer.

use super::{figures::Figures, site::Site};
use crate::{
    chaos::{
        clients::{self, Load},
        fleet::BACKENDS,
        ledger::{Ledger, locked},
    },
    moment::{self, millis},
    session::Session,
    speaker::Kind,
    topology::VIP_V4,
    wait::wait_until,
};
use anyhow::{Result, anyhow, ensure};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle, sleep},
    time::Duration,
};
use tokio::sync::watch;

/// Longest wait for all connections to be open.
const OPENING: Duration = Duration::from_secs(30);
/// UDP flows beside the connections.
const FLOWS: u64 = 100;
/// The node that is drained, and the one that dies.
const DRAINED: usize = 0;
const DEAD: usize = 1;

/// What is asked of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Nodes, two or more.
    pub(super) balancers: u8,
    /// Long-lived connections.
    pub(super) connections: u64,
    /// How long connections are watched after each change. One that makes no progress for ten seconds is broken: in a shorter
    /// time it is noticed all the same, but may be put down to a later change.
    pub(super) after: Duration,
}

/// Connections at work.
struct Traffic {
    ledger: Arc<Ledger>,
    stop: watch::Sender<bool>,
    clients: JoinHandle<Result<()>>,
    /// Broken connections and moved flows that are in the figures already.
    counted: usize,
}

impl Traffic {
    fn start(site: &Site, connections: u64) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let ledger = Arc::new(Ledger::new());
        let load = Load {
            connections,
            workers: 0,
            flows: FLOWS,
        };
        let shared = Arc::clone(&ledger);
        let run = move || clients::run(VIP_V4, load, 1, &shared, &stopped);
        let clients = site.fleet.topology.client.spawn(run);
        let asked = usize::try_from(connections)?;
        wait_until("all connections to be open", OPENING, || {
            Ok((ledger.open.load(Relaxed) >= asked).then_some(()))
        })?;
        Ok(Self {
            ledger,
            stop,
            clients,
            counted: 0,
        })
    }

    fn broken(&self) -> usize {
        locked(&self.ledger.broken).len() + locked(&self.ledger.moved).len()
    }

    /// Notes what has broken since the last time.
    fn note(&mut self, figures: &mut Figures, balancers: u8, what: &str) {
        let broken = self.broken();
        let new = (broken - self.counted) as f64;
        figures.add(&format!("fleet{balancers}.{what}.broken"), new);
        self.counted = broken;
    }
}

/// Plays it: drain and return, death and return.
///
/// # Errors
/// When a part of it does not come about.
pub(super) fn play(session: Session, plan: Plan, figures: &mut Figures) -> Result<()> {
    let Plan {
        balancers,
        connections,
        after,
    } = plan;
    let mut site = Site::set_up(session, Kind::Bird, balancers, BACKENDS)?;
    let mut traffic = Traffic::start(&site, connections)?;
    let opened = traffic.ledger.opened.load(Relaxed);
    println!("  {opened} connections are open");
    sleep(after);
    traffic.note(figures, balancers, "steady");

    let said = site.node(DRAINED).ok("node drain --wait --timeout 9s")?;
    ensure!(said.starts_with("safe"), "{said}");
    // It is safe to stop: so it is stopped, with all that it has.
    site.fleet.nodes[DRAINED].terminate()?;
    site.kill_speaker(DRAINED)?;
    site.detach(DRAINED)?;
    sleep(after);
    traffic.note(figures, balancers, "node_drain");
    let mark = site.routes.mark();
    site.fleet.start_node(DRAINED)?;
    site.node(DRAINED).ok("node undrain")?;
    site.start_speaker(DRAINED)?;
    site.wait(DRAINED, true, mark)?;
    sleep(after);
    traffic.note(figures, balancers, "node_return");

    let (from, mark) = (moment::now(), site.routes.mark());
    site.kill_node(DEAD)?;
    let gone = site.wait(DEAD, false, mark)?;
    figures.add(
        &format!("fleet{balancers}.node_kill_ms"),
        millis(from, gone),
    );
    sleep(after);
    traffic.note(figures, balancers, "node_kill");
    let mark = site.routes.mark();
    site.mute(DEAD, false)?;
    site.fleet.start_node(DEAD)?;
    site.start_speaker(DEAD)?;
    site.wait(DEAD, true, mark)?;
    sleep(after);
    // At the end every connection proves that it is alive.
    traffic.stop.send_replace(true);
    let Traffic {
        ledger, clients, ..
    } = &mut traffic;
    let ended = std::mem::replace(clients, thread::spawn(|| Ok(())));
    ended
        .join()
        .map_err(|_| anyhow!("the clients panicked"))??;
    let bytes = ledger.bytes.load(Relaxed) as f64;
    figures.add(&format!("fleet{balancers}.connections"), opened as f64);
    figures.add(&format!("fleet{balancers}.bytes_checked"), bytes);
    traffic.note(figures, balancers, "node_return");
    Ok(())
}
