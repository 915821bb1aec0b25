//! A node with real maps and many services: the daemon's core, told of health and next hops by hand. Nothing is attached, and no packet comes.

use crate::session::Session;
use anyhow::{Result, anyhow, ensure};
use lb_userspace::{
    api::{
        handle::{Change, ChangeOptions},
        protocol::ErrorBody,
    },
    daemon::core::Core,
    dataplane::{Attachment, AyaDataPlane, Settings, aya, clock::monotonic},
    desired::Store,
    health::{HealthReport, HealthState, TargetId, state::Outcome},
    neighbour::{NextHopUpdate, ResolvedHop},
    spec::{Limits, Name, StateSpec, yaml},
};
use std::{fmt::Write as _, fs, path::Path, time::Duration};

/// How many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    pub(super) services: usize,
    /// Of each service.
    pub(super) backends: usize,
    /// Whose they are.
    pub(super) hosts: Hosts,
}

/// Whose backends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hosts {
    /// The same hosts serve all services.
    Shared,
    /// Each service has hosts of its own.
    Own,
}

/// A node whose files and maps are a session's.
pub(super) struct Node<'a> {
    session: &'a Session,
    pool: Pool,
    pub(super) core: Core<AyaDataPlane>,
}

impl<'a> Node<'a> {
    /// A new node, without services.
    pub(super) fn new(session: &'a Session, pool: Pool) -> Result<Self> {
        fs::create_dir_all(session.directory())?;
        let core = core(session, pool)?;
        Ok(Self {
            session,
            pool,
            core,
        })
    }

    /// Gives it its services, all backends of which are up.
    pub(super) fn fill(&mut self) -> Result<()> {
        let make = ChangeOptions {
            dry_run: false,
            if_revision: None,
            max_move: None,
            now: false,
        };
        let refused = |error: ErrorBody| anyhow!("{}", error.message);
        let change = Change::Apply(self.pool.spec()?);
        self.core.change(&change, &make).map_err(refused)?;
        self.learn()
    }

    /// Ends the daemon and starts it again: its services do not count as new any more, so that changes follow flows.
    pub(super) fn restart(self) -> Result<Self> {
        let Self {
            session,
            pool,
            core,
        } = self;
        drop(core);
        let mut node = Self::new(session, pool)?;
        node.learn()?;
        Ok(node)
    }

    /// Tells it that all is well.
    fn learn(&mut self) -> Result<()> {
        let core = &mut self.core;
        // Nothing is attached to it: next hops behind it count, and no packet comes.
        let lo = Attachment {
            name: "lo".into(),
            index: 1,
            up: true,
            mode: None,
            program_id: 0,
            note: String::new(),
        };
        core.on_attachments(vec![lo], false);
        for address in core.addresses() {
            core.on_next_hop(NextHopUpdate {
                address,
                resolution: Ok(ResolvedHop {
                    mac: [2, 0, 0, 0, 0, 1],
                    interface: 1,
                    interface_name: "lo".into(),
                    gateway: None,
                    source: [10, 2, 0, 1].into(),
                    mtu: 1_500,
                }),
            });
        }
        for service in 0..self.pool.services {
            for backend in 0..self.pool.backends {
                let report = self.pool.report(service, backend, HealthState::Up)?;
                core.on_health(report, monotonic());
            }
        }
        core.reconcile(monotonic());
        ensure!(!core.must_retry(), "the data plane could not be filled");
        Ok(())
    }

    /// A backend of the first so many services goes up or down at a moment of CLOCK_MONOTONIC; from the verdicts to the last
    /// slot stored.
    pub(super) fn verdict(
        &mut self,
        services: usize,
        backend: usize,
        state: HealthState,
        now: Duration,
    ) -> Result<()> {
        for service in 0..services {
            let report = self.pool.report(service, backend, state)?;
            self.core.on_health(report, now);
        }
        self.core.reconcile_new(now);
        ensure!(
            !self.core.must_retry(),
            "the data plane could not be written"
        );
        Ok(())
    }

    /// Lets it do what the loop does when nothing else is to be done, until nothing is left of that.
    pub(super) fn make_ready(&self) {
        while self.core.make_ready() {}
    }

    /// Takes its maps away.
    pub(super) fn remove(self) -> Result<()> {
        let Self { session, core, .. } = self;
        drop(core);
        aya::detach(&session.pins()).map(drop)
    }
}

impl Pool {
    fn limits(self) -> Limits {
        let services = self.services.max(64) as u32;
        Limits {
            services: 2 * services,
            backends: 2 * services * self.backends as u32,
        }
    }

    fn spec(self) -> Result<StateSpec> {
        let mut text = String::from("services:\n");
        for service in 0..self.services {
            let (high, low) = (service / 256, service % 256);
            writeln!(
                text,
                "  - name: service-{service}\n    address: 10.0.{high}.{low}\n    protocol: tcp\n    port: 80\n    health: {{}}\n    backends:"
            )?;
            for backend in 0..self.backends {
                let name = self.name(service, backend);
                writeln!(
                    text,
                    "      - {{ name: {name}, address: 10.1.0.{backend} }}"
                )?;
            }
        }
        Ok(yaml::parse(&text, "bench")?)
    }

    fn name(self, service: usize, backend: usize) -> String {
        match self.hosts {
            Hosts::Shared => format!("backend-{backend}"),
            Hosts::Own => format!("backend-{service}-{backend}"),
        }
    }

    fn report(self, service: usize, backend: usize, state: HealthState) -> Result<HealthReport> {
        let name = |text: String| Name::parse(&text).ok_or_else(|| anyhow!("{text} is no name"));
        Ok(HealthReport {
            target: TargetId {
                service: name(format!("service-{service}"))?,
                backend: name(self.name(service, backend))?,
            },
            state,
            changed: true,
            outcome: match state {
                HealthState::Up => Outcome::Success,
                HealthState::Unknown | HealthState::Down => Outcome::Failure,
            },
            detail: String::new(),
            latency: None,
        })
    }
}

fn core(session: &Session, pool: Pool) -> Result<Core<AyaDataPlane>> {
    let limits = pool.limits();
    let settings = Settings {
        pin_directory: session.pins(),
        interfaces: Vec::new(),
        hash_seed: 7,
        services: 2 * limits.services,
        backends: 2 * limits.backends,
        flows: 1 << 16,
    };
    let directory: &Path = &session.directory();
    let (plane, _) = aya::open(&settings)?;
    Core::new(plane, false, Store::open(directory)?, limits, monotonic())
}
