//! BGP speakers on balancers and on the router of [`crate::topology`], each with the file of `deploy/` that is for it.

use crate::{
    bird::{self, Bird},
    exabgp::{self, Exabgp},
    frr::{self, Frr},
    gobgp::{self, Gobgp},
    netns::Namespace,
    require,
    topology::{balancer_v4, balancer_v6, router_v4, router_v6},
};
use anyhow::Result;
use nix::sys::signal::Signal;
use std::path::Path;

/// A program that speaks BGP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// BIRD 2
    Bird,
    /// FRR
    Frr,
    /// ExaBGP
    Exabgp,
    /// GoBGP
    Gobgp,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bird, Self::Frr, Self::Exabgp, Self::Gobgp];

    /// As it is written in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bird => "bird",
            Self::Frr => "frr",
            Self::Exabgp => "exabgp",
            Self::Gobgp => "gobgp",
        }
    }

    /// What it needs that is not here: a command and its Debian package.
    pub fn lack(self) -> Option<String> {
        let (command, package) = match self {
            Self::Bird => ("bird", "bird2"),
            Self::Frr => ("vtysh", "frr"),
            Self::Exabgp => ("exabgp", "exabgp"),
            Self::Gobgp => ("gobgpd", "gobgpd"),
        };
        let lacks = !require::in_path(command);
        lacks.then(|| format!("{command} in PATH (apt-get install {package})"))
    }

    /// Whether it speaks BFD, so that a balancer that says nothing is missed soon.
    pub const fn speaks_bfd(self) -> bool {
        match self {
            Self::Bird | Self::Frr => true,
            Self::Exabgp | Self::Gobgp => false,
        }
    }

    /// The speaker on the router: one that can write routes with several next hops into a kernel.
    pub const fn router(self) -> Self {
        match self {
            Self::Frr => Self::Frr,
            Self::Bird | Self::Exabgp | Self::Gobgp => Self::Bird,
        }
    }

    /// The section `announce` of the node of balancer `number` beside this speaker, with short waits. The speaker's files are in
    /// `directory`.
    pub fn section(self, directory: &Path, number: u8) -> String {
        let driver = match self {
            Self::Bird | Self::Frr => String::new(),
            Self::Exabgp => exabgp::settings(directory, &self.name_on(number)),
            Self::Gobgp => gobgp::SETTINGS.into(),
        };
        format!(
            "announce:
  allow: [10.0.0.0/24, \"fd00::/64\"]
  hold_down: 1s
  drain: {{ converge: 2s, linger: 1s }}
{driver}"
        )
    }

    /// Starts it on balancer `number`, from 1. Its files are in `directory`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(self, namespace: &Namespace, directory: &Path, number: u8) -> Result<Speaker> {
        let (own_v4, own_v6) = (
            balancer_v4(number).to_string(),
            balancer_v6(number).to_string(),
        );
        let (v4, v6) = (router_v4(number).to_string(), router_v6(number).to_string());
        let name = self.name_on(number);
        let values = [
            ("192.0.2.11", &*own_v4),
            ("192.0.2.1", &v4),
            ("203.0.113.0/24", "10.0.0.0/24"),
            ("2001:db8:0:1::11", &own_v6),
            ("2001:db8:0:1::1", &v6),
        ];
        let (both, v4_only) = ([values[0], values[1], values[3], values[4]], &values[..3]);
        match self {
            Self::Bird => {
                let defines = [
                    ("THIS_NODE", &*own_v4),
                    ("ROUTER_V4", &v4),
                    ("ROUTER_V6", &v6),
                ];
                Bird::start(namespace, directory, &name, bird::BALANCER, &defines)
                    .map(Speaker::Bird)
            }
            Self::Frr => {
                Frr::start(namespace, directory, &name, frr::BALANCER, v4_only).map(Speaker::Frr)
            }
            Self::Exabgp => Exabgp::start(namespace, directory, &name, &both).map(Speaker::Exabgp),
            Self::Gobgp => Gobgp::start(namespace, directory, &name, &both).map(Speaker::Gobgp),
        }
    }

    fn name_on(self, number: u8) -> String {
        format!("{}-{number}", self.name())
    }

    /// Starts the speaker of the router, to which all balancers connect: one that can write routes with several next hops into a
    /// kernel. Its files are in `directory`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_router(self, namespace: &Namespace, directory: &Path) -> Result<Speaker> {
        match self.router() {
            Self::Frr => {
                let values = [
                    ("192.0.2.1", "10.2.0.1"),
                    ("192.0.2.0/24", "10.2.0.0/16"),
                    ("2001:db8:0:1::/64", "fd00:2::/32"),
                    ("203.0.113.0/24", "10.0.0.0/24"),
                    ("2001:db8:ff::/48", "fd00::/64"),
                ];
                Frr::start(namespace, directory, "frr-router", frr::ROUTER, &values)
                    .map(Speaker::Frr)
            }
            Self::Bird | Self::Exabgp | Self::Gobgp => {
                let values = [
                    ("THIS_ROUTER", "10.2.0.1"),
                    ("BALANCERS_V4", "10.2.0.0/16"),
                    ("BALANCERS_V6", "fd00:2::/32"),
                    ("VIPS_V4", "[ 10.0.0.0/24{24,32} ]"),
                    ("VIPS_V6", "[ fd00::/64{48,128} ]"),
                ];
                Bird::start(namespace, directory, "bird-router", bird::ROUTER, &values)
                    .map(Speaker::Bird)
            }
        }
    }
}

/// A running speaker.
#[derive(Debug)]
pub enum Speaker {
    /// BIRD 2.
    Bird(Bird),
    /// FRR.
    Frr(Frr),
    /// ExaBGP.
    Exabgp(Exabgp),
    /// GoBGP.
    Gobgp(Gobgp),
}

impl Speaker {
    /// Sends a signal to all its processes.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match self {
            Self::Bird(bird) => bird.signal(signal),
            Self::Frr(frr) => frr.signal(signal),
            Self::Exabgp(exabgp) => exabgp.process().signal(signal),
            Self::Gobgp(gobgp) => gobgp.process().signal(signal),
        }
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(self) -> Result<()> {
        match self {
            Self::Bird(bird) => bird.kill(),
            Self::Frr(frr) => frr.kill(),
            Self::Exabgp(exabgp) => exabgp.kill(),
            Self::Gobgp(gobgp) => gobgp.kill(),
        }
    }

    /// What it says of its sessions, for a person.
    pub fn sessions(&self) -> String {
        let said = match self {
            Self::Bird(bird) => bird.ask("show protocols all"),
            Self::Frr(frr) => {
                let questions = ["bgp summary", "ip route", "ip route table 179"];
                let said = questions.map(|what| frr.ask(&format!("show {what}")));
                said.into_iter().collect()
            }
            Self::Exabgp(exabgp) => Ok(exabgp.process().log()),
            Self::Gobgp(gobgp) => Ok(gobgp.process().log()),
        };
        said.unwrap_or_else(|error| format!("{error:#}"))
    }
}
