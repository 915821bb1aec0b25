//! One speaker, and all that can happen to a node beside it: two balancers and the router, and times taken from the router's
//! kernel and from the packets that it sends on.

use super::{figures::Figures, site::Site, stream::Stream};
use crate::{
    moment::{self, millis},
    session::Session,
    speaker::Kind,
    wait::wait_until,
};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// The node to which things happen.
const NODE: usize = 0;
/// Backends: each is one verdict for each of two services.
const BACKENDS: u8 = 2;
const VERDICTS: usize = 4;
/// Longest wait for verdicts.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a route is watched that is to stay.
const STAY: Duration = Duration::from_secs(3);
/// More than the hold-down of the nodes.
const HOLD_DOWN: Duration = Duration::from_millis(1_100);

/// A speaker's turn.
pub(super) struct Matrix<'a> {
    kind: Kind,
    site: Site,
    stream: Stream,
    figures: &'a mut Figures,
}

impl<'a> Matrix<'a> {
    /// Builds the network.
    ///
    /// # Errors
    /// What a part of it refuses.
    pub(super) fn set_up(session: Session, kind: Kind, figures: &'a mut Figures) -> Result<Self> {
        let site = Site::set_up(session, kind, 2, BACKENDS)?;
        let stream = Stream::start(&site.fleet.topology, 2)?;
        Ok(Self {
            kind,
            site,
            stream,
            figures,
        })
    }

    /// Everything, `rounds` times where a figure is the median of several.
    ///
    /// # Errors
    /// What does not come about.
    pub(super) fn run(&mut self, rounds: u32) -> Result<()> {
        // The stream's flows are known by then.
        sleep(Duration::from_millis(500));
        for _ in 0..rounds {
            self.withdraw_and_return().context("a dead pool")?;
        }
        for _ in 0..rounds {
            self.drain_and_undrain().context("a drained node")?;
        }
        self.undrain_at_once().context("a drain called off")?;
        self.lbd_dies().context("lbd killed")?;
        for _ in 0..rounds {
            self.speaker_dies().context("the speaker killed")?;
        }
        self.data_plane_is_sick().context("a sick data plane")?;
        if self.kind.speaks_bfd() {
            for _ in 0..rounds {
                self.speaker_freezes().context("the speaker frozen")?;
                self.node_freezes().context("the node frozen")?;
            }
        }
        Ok(())
    }

    fn note(&mut self, what: &str, value: f64) {
        self.figures
            .add(&format!("{}.{what}", self.kind.name()), value);
    }

    /// Waits until the route leads away, and notes how long after `from` that was, and the first packet at the other node.
    fn gone(&mut self, what: &str, from: f64, mark: super::routes::Mark) -> Result<()> {
        let gone = self.site.wait(NODE, false, mark)?;
        self.note(&format!("{what}_ms"), millis(from, gone));
        // The packet may still be under way to where it is noted.
        let moved = wait_until(
            "a packet of the node's flows at the other one",
            LIMIT,
            || Ok(self.stream.moved(Site::number(NODE), from)),
        )?;
        self.note(&format!("{what}_packet_ms"), moved);
        Ok(())
    }

    /// Waits until the route leads to the node again, and notes how long after `from` that was.
    fn back(&mut self, what: &str, from: f64, mark: super::routes::Mark) -> Result<()> {
        let back = self.site.wait(NODE, true, mark)?;
        self.note(what, millis(from, back));
        Ok(())
    }

    /// Moments of the verdicts about backends in the node's log after its first `skip` bytes, once there are `count`.
    fn verdicts(&self, skip: usize, words: &str, count: usize) -> Result<Vec<f64>> {
        wait_until(&format!("{count} x {words}"), LIMIT, || {
            let log = self.site.node(NODE).log();
            let new = log.get(skip..).unwrap_or_default().lines();
            let moments: Vec<f64> = new
                .filter(|line| line.contains(words))
                .filter_map(moment::in_line)
                .collect();
            Ok((moments.len() >= count).then_some(moments))
        })
    }

    fn withdraw_and_return(&mut self) -> Result<()> {
        sleep(HOLD_DOWN);
        let (log, mark) = (self.site.node(NODE).log().len(), self.site.routes.mark());
        self.site.cut_off(NODE, true)?;
        let verdicts = self.verdicts(log, "backend is down", VERDICTS)?;
        // With the last healthy backend.
        let last = *verdicts.last().context("no verdict")?;
        self.gone("withdraw", last, mark)?;
        let (log, mark) = (self.site.node(NODE).log().len(), self.site.routes.mark());
        self.site.cut_off(NODE, false)?;
        let first = self.verdicts(log, "backend is up", 1)?[0];
        self.back("return_ms", first, mark)?;
        self.verdicts(log, "backend is up", VERDICTS).map(drop)
    }

    fn drain_and_undrain(&mut self) -> Result<()> {
        sleep(HOLD_DOWN);
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.node(NODE).ok("node drain")?;
        self.gone("drain", from, mark)?;
        let said = self.site.node(NODE).ok("node drain --wait --timeout 9s")?;
        ensure!(said.starts_with("safe"), "{said}");
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.node(NODE).ok("node undrain")?;
        self.back("announce_ms", from, mark)
    }

    fn undrain_at_once(&mut self) -> Result<()> {
        let mark = self.site.routes.mark();
        self.site.node(NODE).ok("node drain")?;
        self.site.wait(NODE, false, mark)?;
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.node(NODE).ok("node undrain")?;
        self.back("undrain_ms", from, mark)
    }

    /// The route stays while `lbd` is gone, and when it comes again.
    fn lbd_dies(&mut self) -> Result<()> {
        let mark = self.site.routes.mark();
        self.site.fleet.nodes[NODE].kill()?;
        sleep(STAY);
        self.site.fleet.start_node(NODE)?;
        self.site.wait_decided(NODE)?;
        let losses = self.site.routes.losses(Site::number(NODE), mark);
        self.note("lbd_killed_losses", losses as f64);
        let leads = self.site.routes.leads_to(Site::number(NODE));
        ensure!(leads, "the route is gone");
        Ok(())
    }

    fn speaker_dies(&mut self) -> Result<()> {
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.kill_speaker(NODE)?;
        self.gone("speaker_killed", from, mark)?;
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.start_speaker(NODE)?;
        self.back("speaker_restarted_ms", from, mark)
    }

    /// `lbd` is gone, and somebody takes the program off.
    fn data_plane_is_sick(&mut self) -> Result<()> {
        let watchdog = self.site.start_watchdog(NODE)?;
        self.site.fleet.nodes[NODE].kill()?;
        sleep(Duration::from_secs(1));
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.break_data_plane(NODE)?;
        self.gone("sick", from, mark)?;
        watchdog.kill()?;
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.fleet.start_node(NODE)?;
        self.back("lbd_started_ms", from, mark)
    }

    /// The speaker says nothing any more, although packets are forwarded.
    fn speaker_freezes(&mut self) -> Result<()> {
        self.settled()?;
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.speaker(NODE)?.signal(Signal::SIGSTOP)?;
        self.gone("frozen_speaker", from, mark)?;
        let mark = self.site.routes.mark();
        self.site.speaker(NODE)?.signal(Signal::SIGCONT)?;
        self.site.wait(NODE, true, mark).map(drop)
    }

    /// Nothing that the node sends arrives, although its link is up.
    fn node_freezes(&mut self) -> Result<()> {
        self.settled()?;
        let (from, mark) = (moment::now(), self.site.routes.mark());
        self.site.mute(NODE, true)?;
        self.gone("frozen", from, mark)?;
        let mark = self.site.routes.mark();
        self.site.mute(NODE, false)?;
        self.site.wait(NODE, true, mark).map(drop)
    }

    /// BFD takes a while after a session has begun: until then a frozen node is missed only after the hold time.
    fn settled(&self) -> Result<()> {
        let start = Instant::now();
        let mark = self.site.routes.mark();
        sleep(Duration::from_secs(3));
        let losses = self.site.routes.losses(Site::number(NODE), mark);
        ensure!(losses == 0, "the route was lost in {:?}", start.elapsed());
        Ok(())
    }
}
