//! The VIPs of a pair move: the node that holds them dies, returns, is drained, and loses its way to the backends, while every
//! byte of long-lived connections is compared.

use super::{
    clients::{self, Load},
    ledger::{Ledger, locked},
    pair::{LIMIT, Pair},
    raise_open_files, server,
};
use crate::{
    keepalived::holds, netns::Namespace, session::Session, silence::Probe, topology::VIP_V4,
    wait::wait_until,
};
use anyhow::{Result, anyhow, ensure};
use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Time with traffic after an event, so that what it breaks is seen.
const AFTER: Duration = Duration::from_secs(3);

/// What a run has shown.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Long-lived connections.
    pub connections: u64,
    /// Those that broke.
    pub broken: usize,
    /// Bytes of theirs that were compared.
    pub bytes: u64,
    /// Longest time without an answer when the node that holds the VIPs dies.
    pub failover: Duration,
    /// When it returns.
    pub come_back: Duration,
    /// When it is drained.
    pub drain: Duration,
    /// When it loses its way to the backends, with the time in which its probes find out.
    pub lost_backends: Duration,
}

impl Figures {
    /// Names and values, times in milliseconds.
    pub fn named(&self) -> [(&'static str, f64); 7] {
        let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
        [
            ("keepalived.connections", self.connections as f64),
            ("keepalived.broken", self.broken as f64),
            ("keepalived.bytes_checked", self.bytes as f64),
            ("keepalived.failover_ms", ms(self.failover)),
            ("keepalived.return_ms", ms(self.come_back)),
            ("keepalived.drain_ms", ms(self.drain)),
            ("keepalived.lost_backends_ms", ms(self.lost_backends)),
        ]
    }
}

/// Long-lived connections to the service, until they are stopped.
struct Clients {
    ledger: Arc<Ledger>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<()>>,
    asked: u64,
}

impl Clients {
    fn start(client: &Namespace, connections: u64) -> Result<Self> {
        let ledger = Arc::new(Ledger::new());
        let (stop, stopped) = watch::channel(false);
        let load = Load {
            connections,
            workers: 0,
            flows: 0,
        };
        let thread = client.spawn({
            let ledger = Arc::clone(&ledger);
            move || clients::run(VIP_V4, load, 1, &ledger, &stopped)
        });
        let clients = Self {
            ledger,
            stop,
            thread,
            asked: connections,
        };
        wait_until("all connections to be open", LIMIT, || {
            Ok((clients.open() == connections).then_some(()))
        })?;
        Ok(clients)
    }

    fn open(&self) -> u64 {
        self.ledger.open.load(Relaxed) as u64
    }

    /// Ends them, each with one more proof that it lives; how many broke, and how many bytes were compared.
    fn end(self) -> Result<(usize, u64)> {
        self.stop.send_replace(true);
        self.thread
            .join()
            .map_err(|_| anyhow!("the clients panicked"))??;
        let broken = locked(&self.ledger.broken).len();
        let opened = self.ledger.opened.load(Relaxed);
        ensure!(
            broken > 0 || opened == self.asked,
            "{opened} connections were opened, not {}",
            self.asked
        );
        Ok((broken, self.ledger.bytes.load(Relaxed)))
    }
}

/// Has a pair in this mode (`l2` or `ipip`) play it all with so many connections. `program` is the servers': one that knows
/// `serve NAME VIP`.
///
/// # Errors
/// When a part of it cannot be set up, or a VIP does not go where it should.
pub fn perform(session: Session, program: &Path, mode: &str, connections: u64) -> Result<Figures> {
    raise_open_files()?;
    let pair = Pair::set_up(session, program, mode)?;
    let clients = Clients::start(&pair.topology.client, connections)?;
    let udp = SocketAddr::from((VIP_V4, server::UDP_PORT));
    let probe = Probe::start(&pair.topology.client, udp)?;
    let first = pair.holder()?;
    let mut play = Play {
        pair,
        clients,
        probe,
        first,
        other: 1 - first,
    };
    let failover = play.death()?;
    let come_back = play.return_of_the_dead()?;
    let drain = play.drain()?;
    let lost_backends = play.loss_of_backends()?;
    let (broken, bytes) = play.clients.end()?;
    Ok(Figures {
        connections,
        broken,
        bytes,
        failover,
        come_back,
        drain,
        lost_backends,
    })
}

/// A pair at play. Each part returns the longest time without an answer.
struct Play {
    clients: Clients,
    probe: Probe,
    pair: Pair,
    /// The node that holds the VIPs at first.
    first: usize,
    other: usize,
}

impl Play {
    fn begin(&self, kind: &'static str, words: &str) -> Instant {
        self.clients.ledger.happens(kind, words.into());
        Instant::now()
    }

    /// Traffic for a while, and then how long there was no answer.
    fn silence(&self, from: Instant) -> Duration {
        thread::sleep(AFTER);
        self.probe.longest_silence(from)
    }

    fn death(&mut self) -> Result<Duration> {
        let from = self.begin("death", "the holder dies");
        self.pair.kill(self.first)?;
        wait_until("the other node to hold the VIP", LIMIT, || {
            let there = holds(self.pair.namespace(self.other), VIP_V4.into())?;
            Ok(there.then_some(()))
        })?;
        let silence = self.silence(from);
        self.pair.ask_v6()?;
        Ok(silence)
    }

    fn return_of_the_dead(&mut self) -> Result<Duration> {
        let from = self.begin("return", "it returns");
        self.pair.revive(self.first)?;
        self.pair.wait_announced(self.first)?;
        let silence = self.silence(from);
        self.stays_at_the_other()?;
        Ok(silence)
    }

    fn drain(&mut self) -> Result<Duration> {
        let from = self.begin("drain", "the holder is drained");
        let node = &self.pair.sides[self.other].node;
        let said = node.ok("node drain --wait --timeout 9s")?;
        ensure!(said.contains("safe to stop"), "{said}");
        self.pair.wait_holder(self.first)?;
        let silence = self.silence(from);
        self.pair.ask_v6()?;
        node.ok("node undrain")?;
        self.pair.wait_announced(self.other)?;
        Ok(silence)
    }

    fn loss_of_backends(&mut self) -> Result<Duration> {
        let from = self.begin("loss", "the holder loses its way to the backends");
        self.pair.cut_off(self.first, true)?;
        self.pair.wait_holder(self.other)?;
        let silence = self.silence(from);
        self.pair.ask_v6()?;
        self.pair.cut_off(self.first, false)?;
        self.pair.wait_announced(self.first)?;
        self.stays_at_the_other()?;
        thread::sleep(AFTER);
        Ok(silence)
    }

    /// The first node is well again, and takes nothing back.
    fn stays_at_the_other(&self) -> Result<()> {
        self.pair.wait_steady(self.first)?;
        let holder = self.pair.holder()?;
        ensure!(holder == self.other, "it took the VIPs back");
        Ok(())
    }
}
