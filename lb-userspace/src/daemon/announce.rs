//! Announcing in the control loop: facts from the state in force, decisions to the driver, the node's drain to the disk.

use super::{core::Core, run::Daemon, self_test};
use crate::{
    announce::{
        Announcing, Wanted, balances,
        decide::{Facts, ServiceFacts},
        drain::Phase,
        exabgp::ExabgpDriver,
        exec::ExecDriver,
        gobgp::GobgpDriver,
        route::RouteDriver,
        setting::{Driver, Settings},
        worker::{self, Report, Worker},
    },
    api::{
        announce::{AnnouncementView, NodeView},
        protocol::{ErrorBody, ErrorCode},
    },
    dataplane::{DataPlane, clock::monotonic},
    plan::{
        select::{Condition, select},
        target::service_key,
    },
    spec::Service,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tracing::{error, info};

impl<P: DataPlane> Core<P> {
    /// Begins to announce as the settings say. The node's drain goes on where it was.
    pub fn begin_announcing(&mut self, settings: Settings) {
        let phase = match self.store.node_drain() {
            Ok(phase) => phase.unwrap_or_default(),
            Err(problem) => {
                error!(%problem, "the node's drain");
                self.notices.push(problem);
                Phase::Withdrawn
            }
        };
        if phase != Phase::Serving {
            info!(phase = phase.as_str(), "the node is drained, as before");
        }
        self.announcing = Some(Announcing::new(settings, phase));
    }

    /// Takes what the driver says.
    pub fn on_announced(&mut self, report: Report) {
        if let Some(announcing) = &mut self.announcing {
            announcing.on_report(report);
        }
    }

    /// Decides what is announced; what the driver is to do, if that differs. Nothing is decided without a usable state.
    /// `pending`: tables are about to be written.
    pub fn announce(&mut self, pending: bool, now: Duration) -> Option<Arc<Wanted>> {
        if self.unreadable.is_some() {
            return None;
        }
        let mut announcing = self.announcing.take()?;
        let facts = self.announce_facts(&announcing, pending);
        let next = announcing.decide(facts, now);
        self.announcing = Some(announcing);
        if let Some(phase) = next.phase {
            self.remember(phase);
        }
        next.order
    }

    fn announce_facts(&self, announcing: &Announcing, pending: bool) -> Facts {
        let mut facts = Facts {
            plane: balances(&self.attachments),
            node: announcing.phase(),
            pending,
            vips: Default::default(),
        };
        for service in self.state.services.values() {
            let (healthy, awaited, total) = self.weights(service);
            facts
                .vips
                .entry(service.address)
                .or_default()
                .push(ServiceFacts {
                    name: service.name.to_string(),
                    healthy,
                    awaited,
                    total,
                    // Its entry is what is written last.
                    published: self.mirror.service_index(&service_key(service)).is_some(),
                    test: announcing.test_of(&service.name),
                });
        }
        facts
    }

    /// Weight of a service's backends that are up and can be reached, of those of which that is not known yet, and of all.
    fn weights(&self, service: &Service) -> (u64, u64, u64) {
        let selection = select(service, &self.facts);
        let is_up = selection.condition == Condition::Up;
        let (mut healthy, mut awaited, mut total) = (0, 0, 0);
        // Both are in order of name.
        for (backend, chosen) in service.backends.values().zip(selection.backends()) {
            let weight = u64::from(backend.weight);
            total += weight;
            if chosen.is_awaited {
                awaited += weight;
            } else if is_up && chosen.refusal.is_none() {
                healthy += weight;
            }
        }
        (healthy, awaited, total)
    }

    /// Begins or ends the node's drain; how it stands then.
    ///
    /// # Errors
    /// When the node announces nothing, or the disk refuses: then all stays as it was.
    pub fn drain_node(&mut self, drain: bool) -> Result<NodeView, ErrorBody> {
        let announcing = self.announcing.as_mut().ok_or_else(nothing_announced)?;
        let phase = announcing.phase().after(drain);
        if phase != announcing.phase() {
            self.store.remember_node_drain(phase).map_err(|problem| {
                let said = format!("the node's drain could not be written down: {problem:#}");
                ErrorBody::new(ErrorCode::Failed, said)
            })?;
            announcing.set_drain(drain);
            info!(phase = phase.as_str(), "the node's drain");
            self.notices
                .retain(|notice| !notice.contains("whether this node was drained"));
        }
        self.node()
    }

    /// How the node stands.
    ///
    /// # Errors
    /// When it announces nothing.
    pub fn node(&self) -> Result<NodeView, ErrorBody> {
        let announcing = self.announcing.as_ref().ok_or_else(nothing_announced)?;
        Ok(announcing.node(self.facts.now))
    }

    /// VIPs and whether they are announced.
    ///
    /// # Errors
    /// When the node announces nothing.
    pub fn announcements(&self) -> Result<Vec<AnnouncementView>, ErrorBody> {
        let announcing = self.announcing.as_ref().ok_or_else(nothing_announced)?;
        let mut views = announcing.views();
        if !announcing.has_decided() {
            for service in self.state.services.values() {
                let address = service.address.to_string();
                if !views.iter().any(|view| view.address == address) {
                    views.push(announcing.undecided(address.clone()));
                }
                let view = views.iter_mut().find(|view| view.address == address);
                if let Some(view) = view {
                    view.services.push(service.name.to_string());
                }
            }
        }
        Ok(views)
    }

    /// Takes that no packet can be sent through the program here.
    pub fn set_untestable(&mut self, problem: &anyhow::Error) {
        if let Some(announcing) = &mut self.announcing {
            announcing.set_untestable(format!("{problem:#}"));
        }
    }

    /// Takes that packets can be sent through the program here.
    pub fn set_testable(&mut self) {
        if let Some(announcing) = &mut self.announcing {
            announcing.set_testable();
        }
    }

    /// Writes the phase of the node's drain down. When that fails, the next daemon starts from an earlier phase, which
    /// only takes longer.
    fn remember(&self, phase: Phase) {
        info!(phase = phase.as_str(), "the node's drain goes on");
        if let Err(problem) = self.store.remember_node_drain(phase) {
            error!(problem = %format!("{problem:#}"), "the node's drain could not be written down");
        }
    }
}

fn nothing_announced() -> ErrorBody {
    let said = "this node announces nothing: its config has no `announce` section (see deploy/lbd.yaml), and lbd reads that \
                at its start";
    ErrorBody::new(ErrorCode::Conflict, said)
}

/// Starts the driver that the settings name.
pub(super) fn start(
    settings: &Settings,
    state_directory: &Path,
    reports: mpsc::Sender<Report>,
) -> Worker {
    match &settings.driver {
        Driver::Route(route) => worker::start(RouteDriver::new(*route), reports),
        Driver::Exec(exec) => {
            worker::start(ExecDriver::new(exec.clone(), state_directory), reports)
        }
        Driver::Exabgp(exabgp) => worker::start(ExabgpDriver::new(exabgp.clone()), reports),
        Driver::Gobgp(gobgp) => worker::start(GobgpDriver::new(gobgp.clone()), reports),
    }
}

impl Daemon {
    /// Tests services that are due, decides what is announced, and has the driver do it.
    pub(super) fn announce(&mut self) {
        if self.settling.is_none() {
            self_test::run(self);
            self.decide(false);
        }
    }

    /// Withdraws what must go before tables are written, which may take a while.
    pub(super) fn withdraw(&mut self) {
        if self.settling.is_none() {
            self.decide(true);
        }
    }

    fn decide(&mut self, pending: bool) {
        let order = self.core.announce(pending, monotonic());
        let Some((worker, _)) = &self.announcer else {
            return;
        };
        match order {
            Some(wanted) => worker.order(wanted),
            None => worker.confirm(),
        }
    }

    /// Begins or ends the node's drain.
    pub(super) fn drain_node(&mut self, drain: bool) -> Result<NodeView, ErrorBody> {
        let answer = self.core.drain_node(drain);
        self.announce();
        answer
    }

    /// Starts the driver again if it has died, which only a defect can bring about.
    pub(super) fn revive_announcer(&mut self) {
        let Some((worker, reports)) = &mut self.announcer else {
            return;
        };
        if let (true, Some(settings)) = (worker.has_died(), &self.config.announce) {
            error!("the driver that announces died, which is a defect; it is started again");
            *worker = start(settings, &self.config.state_directory, reports.clone());
            self.core.begin_announcing(settings.clone());
        }
    }
}
