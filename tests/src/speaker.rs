//! BGP speakers on balancers and on the router of [`crate::topology`], each with the file of `deploy/` that is for it.

use crate::{
    bird::{self, Bird},
    frr::{self, Frr},
    netns::Namespace,
    require,
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
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Bird, Self::Frr];

    /// As it is written in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bird => "bird",
            Self::Frr => "frr",
        }
    }

    /// What it needs that is not here: a command and its Debian package.
    pub fn lack(self) -> Option<String> {
        let (command, package) = match self {
            Self::Bird => ("bird", "bird2"),
            Self::Frr => ("vtysh", "frr"),
        };
        let lacks = !require::in_path(command);
        lacks.then(|| format!("{command} in PATH (apt-get install {package})"))
    }

    /// Whether it speaks BFD, so that a balancer that says nothing is missed soon.
    pub const fn speaks_bfd(self) -> bool {
        match self {
            Self::Bird | Self::Frr => true,
        }
    }

    /// The speaker on the router: one that can write routes with several next hops into a kernel.
    pub const fn router(self) -> Self {
        match self {
            Self::Bird => Self::Bird,
            Self::Frr => Self::Frr,
        }
    }

    /// The section `announce` of the node of balancer `number` beside this speaker, with short waits. The speaker's files are in
    /// `directory`.
    pub fn section(self, _directory: &Path, _number: u8) -> String {
        let driver = match self {
            Self::Bird | Self::Frr => "",
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
        let subnet = number - 1;
        let own = format!("10.2.{subnet}.2");
        let (v4, v6) = (format!("10.2.{subnet}.1"), format!("fd00:2:{subnet:x}::1"));
        let name = format!("{}-{number}", self.name());
        match self {
            Self::Bird => {
                let values = [("THIS_NODE", &*own), ("ROUTER_V4", &v4), ("ROUTER_V6", &v6)];
                Bird::start(namespace, directory, &name, bird::BALANCER, &values).map(Speaker::Bird)
            }
            Self::Frr => {
                let words = [
                    ("192.0.2.11", &*own),
                    ("192.0.2.1", &v4),
                    ("203.0.113.0/24", "10.0.0.0/24"),
                ];
                Frr::start(namespace, directory, &name, frr::BALANCER, &words).map(Speaker::Frr)
            }
        }
    }

    /// Starts it on the router, to which all balancers connect. Its files are in `directory`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_router(self, namespace: &Namespace, directory: &Path) -> Result<Speaker> {
        let name = format!("{}-router", self.name());
        match self {
            Self::Bird => {
                let values = [
                    ("THIS_ROUTER", "10.2.0.1"),
                    ("BALANCERS_V4", "10.2.0.0/16"),
                    ("BALANCERS_V6", "fd00:2::/32"),
                    ("VIPS_V4", "[ 10.0.0.0/24{24,32} ]"),
                    ("VIPS_V6", "[ fd00::/64{48,128} ]"),
                ];
                Bird::start(namespace, directory, &name, bird::ROUTER, &values).map(Speaker::Bird)
            }
            Self::Frr => {
                let words = [
                    ("192.0.2.1", "10.2.0.1"),
                    ("192.0.2.0/24", "10.2.0.0/16"),
                    ("2001:db8:0:1::/64", "fd00:2::/32"),
                    ("203.0.113.0/24", "10.0.0.0/24"),
                    ("2001:db8:ff::/48", "fd00::/64"),
                ];
                Frr::start(namespace, directory, &name, frr::ROUTER, &words).map(Speaker::Frr)
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
        };
        said.unwrap_or_else(|error| format!("{error:#}"))
    }
}
