//! A fleet that announces: the chaos run's network and nodes, a speaker beside each `lbd`, one on the router, and what can happen
//! to a node.

use super::routes::{Mark, Routes};
use crate::{
    chaos::fleet::{Fleet, Shape},
    node::Node,
    process::Process,
    require,
    session::Session,
    speaker::{Kind, Speaker},
    topology::{balancer_v4, router_v4, router_v6},
    wait::wait_until,
};
use anyhow::{Context, Result, ensure};
use lb_userspace::api::announce::AnnouncementView;
use std::{fs, time::Duration};

/// Longest wait for a route: sessions begin again some seconds after they have failed.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// A MAC that nobody has.
const NOBODY: &str = "02:00:00:00:00:99";

/// The whole of it. Nodes count from 0, balancers' numbers from 1. Fields are dropped in this order.
#[derive(Debug)]
pub(super) struct Site {
    kind: Kind,
    speakers: Vec<Option<Speaker>>,
    /// On the router; kept running.
    router: Speaker,
    /// What the router's kernel says of its route to the VIP.
    pub(super) routes: Routes,
    /// The network, the nodes, the servers.
    pub(super) fleet: Fleet,
}

impl Site {
    /// Builds it and waits until the router spreads packets over all nodes.
    ///
    /// # Errors
    /// What a part of it refuses.
    pub(super) fn set_up(
        session: Session,
        kind: Kind,
        balancers: u8,
        backends: u8,
    ) -> Result<Self> {
        let directory = session.directory();
        let section = |number| kind.section(&directory, number);
        let shape = Shape {
            balancers,
            backends,
            mode: "ipip",
            more: (1..=balancers).map(section).collect(),
        };
        let fleet = Fleet::set_up(session, shape)?;
        let topology = &fleet.topology;
        topology.forget_vips()?;
        let routes = Routes::watch(&topology.router, &directory)?;
        let router = kind.start_router(&topology.router, &directory)?;
        let mut site = Self {
            kind,
            speakers: (0..balancers).map(|_| None).collect(),
            router,
            routes,
            fleet,
        };
        let mark = site.routes.mark();
        for node in 0..site.speakers.len() {
            site.start_speaker(node)?;
        }
        for node in 0..site.speakers.len() {
            site.wait(node, true, mark)?;
        }
        Ok(site)
    }

    /// A balancer's number.
    pub(super) fn number(node: usize) -> u8 {
        // There are no more than sixteen.
        node as u8 + 1
    }

    /// The node's programs.
    pub(super) fn node(&self, node: usize) -> &Node {
        &self.fleet.nodes[node]
    }

    /// Waits until the router sends packets to a node, or does no more; when that was.
    ///
    /// # Errors
    /// When it does not come about; with what both speakers and `lbd` say.
    pub(super) fn wait(&self, node: usize, there: bool, mark: Mark) -> Result<f64> {
        let seen = self.routes.wait(Self::number(node), there, mark, LIMIT);
        seen.with_context(|| {
            let own = self.speakers[node].as_ref().map(Speaker::sessions);
            let list = self.node(node).ok("announce list");
            format!(
                "the router's speaker: {}\nthe node's: {}\nlbd: {}\n{}",
                self.router.sessions(),
                own.unwrap_or_else(|| "none".into()),
                list.unwrap_or_else(|error| error.to_string()),
                self.fleet.logs(20)
            )
        })
    }

    /// Starts a node's speaker.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn start_speaker(&mut self, node: usize) -> Result<()> {
        let (namespace, directory) = (self.fleet.namespace(node), self.fleet.directory());
        let speaker = self
            .kind
            .start(namespace, &directory, Self::number(node))
            .with_context(|| format!("the speaker of node {}", node + 1))?;
        self.speakers[node] = Some(speaker);
        Ok(())
    }

    /// A node's speaker.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn speaker(&self, node: usize) -> Result<&Speaker> {
        self.speakers[node].as_ref().context("no speaker runs")
    }

    /// Kills a node's speaker.
    ///
    /// # Errors
    /// When it does not run.
    pub(super) fn kill_speaker(&mut self, node: usize) -> Result<()> {
        self.speakers[node]
            .take()
            .context("no speaker runs")?
            .kill()
    }

    /// Cuts a node off from all backends, or no more: the router carries nothing of its on.
    ///
    /// # Errors
    /// What the router refuses.
    pub(super) fn cut_off(&self, node: usize, cut: bool) -> Result<()> {
        let verb = if cut { "add" } else { "del" };
        let from = balancer_v4(Self::number(node));
        self.fleet
            .topology
            .router
            .ip(&format!("rule {verb} from {from} prohibit priority 100"))
    }

    /// Makes a node's frames go to nobody, or no more: as one that has frozen, though its link stays up.
    ///
    /// # Errors
    /// What the node's kernel refuses.
    pub(super) fn mute(&self, node: usize, mute: bool) -> Result<()> {
        let namespace = self.fleet.namespace(node);
        let number = Self::number(node);
        let routers = [router_v4(number).to_string(), router_v6(number).to_string()];
        for router in routers {
            namespace.ip(&if mute {
                format!("neigh replace {router} lladdr {NOBODY} dev eth0 nud permanent")
            } else {
                format!("neigh del {router} dev eth0")
            })?;
        }
        Ok(())
    }

    /// Starts `lbd watchdog` on a node.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start_watchdog(&self, node: usize) -> Result<Process> {
        let mut command = self.fleet.namespace(node).command(require::built("lbd")?);
        command
            .arg("watchdog")
            .arg("--config")
            .arg(self.node(node).config());
        let log = self.fleet.directory().join("watchdog.log");
        Process::start("lbd watchdog", command, &log)
    }

    /// Takes the program off a node's interface, as somebody might whom nobody asked: the pin of its link is removed.
    ///
    /// # Errors
    /// When there is no such pin.
    pub(super) fn break_data_plane(&self, node: usize) -> Result<()> {
        let mut removed = 0;
        for entry in fs::read_dir(self.node(node).pins())?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("link-") {
                fs::remove_file(entry.path())?;
                removed += 1;
            }
        }
        ensure!(removed > 0, "no link is pinned");
        Ok(())
    }

    /// Ends all of a node: its frames, its speaker, its `lbd`, its program.
    ///
    /// # Errors
    /// When something of it had ended before.
    pub(super) fn kill_node(&mut self, node: usize) -> Result<()> {
        self.mute(node, true)?;
        self.kill_speaker(node)?;
        self.fleet.nodes[node].kill()?;
        self.detach(node)
    }

    /// Removes the program and all pins of a node whose `lbd` has ended.
    ///
    /// # Errors
    /// When `lbd detach` fails.
    pub(super) fn detach(&self, node: usize) -> Result<()> {
        let ended = self.node(node).lbd(self.fleet.namespace(node), "detach")?;
        ensure!(ended.code == 0, "lbd detach: {ended:?}");
        Ok(())
    }

    /// Waits until a new `lbd` of a node has decided about the VIP.
    ///
    /// # Errors
    /// When it does not.
    pub(super) fn wait_decided(&self, node: usize) -> Result<()> {
        wait_until("lbd to decide", LIMIT, || {
            // Before that the list is empty, or says what was found.
            let text = self.node(node).ok("--output json announce list")?;
            let views: Vec<AnnouncementView> = serde_json::from_str(&text)?;
            Ok(views
                .iter()
                .any(|view| view.wanted == "announced")
                .then_some(()))
        })
    }
}
