//! What is announced, and why or why not: from facts alone, with what was decided before as the only memory.
//!
//! **Invariants.** A VIP is announced at most once per hold-down, however its backends flap; it is withdrawn at once, but for what is not
//! known yet. Nothing outside the allowed prefixes is ever announced, and nothing anew by a node that is leaving.

use super::{
    Announced, Role,
    drain::Phase,
    setting::{Settings, WHOLE, Watermarks},
};
use crate::prefix::Prefix;
use std::{collections::BTreeMap, time::Duration};

/// All that a decision follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether packets for services are balanced on this node's interfaces, or why not.
    pub plane: Result<(), String>,
    /// Whether the node is leaving.
    pub node: Phase,
    /// Whether tables are about to be written: what is not announced yet waits for that, what must go does not, and what is announced
    /// does not go for a table that is about to be there.
    pub pending: bool,
    /// The VIPs of all services.
    pub vips: BTreeMap<Prefix, Vec<ServiceFacts>>,
}

/// What is known of one service of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Its name.
    pub name: String,
    /// Weight of its backends that are up and can be reached.
    pub healthy: u64,
    /// Weight of its backends of which that is not known yet: a next hop or a first verdict is awaited.
    pub awaited: u64,
    /// Weight of all its backends.
    pub total: u64,
    /// Whether its table is in the data plane.
    pub published: bool,
    /// What became of the last packet that tried it out.
    pub test: Test,
}

/// What a packet through the installed program has shown of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// None has been sent yet.
    Untested,
    /// It came out right, or none can be sent here, which is said elsewhere.
    Passed,
    /// It did not, for this reason.
    Failed(String),
}

/// The decision for one VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// How it is announced; none: it is not.
    pub role: Option<Role>,
    /// Why, in words.
    pub reason: String,
    /// Whether it is one that this node may not announce at all.
    pub refused: bool,
    /// Names of its services.
    pub services: Vec<String>,
    /// Weight of its services' backends that counts as healthy; of what is announced, with that of which nothing is known yet.
    pub healthy: u64,
    /// Weight of all of them.
    pub total: u64,
}

/// Decides, and remembers what it has decided.
#[derive(Clone, Debug)]
pub struct Decider {
    allow: Vec<Prefix>,
    watermarks: Watermarks,
    hold_down: Duration,
    vips: BTreeMap<Prefix, Memory>,
}

/// What is remembered of a VIP.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    announced: bool,
    /// When it was last announced, CLOCK_MONOTONIC; none: not by this daemon.
    last: Option<Duration>,
}

impl Memory {
    /// What is left of the hold-down.
    fn held(&self, hold_down: Duration, now: Duration) -> Duration {
        self.last.map_or(Duration::ZERO, |last| {
            (last + hold_down).saturating_sub(now)
        })
    }
}

impl Decider {
    /// One that continues from what is announced already.
    pub fn new(settings: &Settings, announced: &Announced) -> Self {
        let known = Memory {
            announced: true,
            last: None,
        };
        Self {
            allow: settings.allow.clone(),
            watermarks: settings.watermarks,
            hold_down: settings.hold_down,
            vips: announced.keys().map(|prefix| (*prefix, known)).collect(),
        }
    }

    /// The decisions at a moment of CLOCK_MONOTONIC, for each VIP in the facts.
    pub fn decide(&mut self, facts: &Facts, now: Duration) -> BTreeMap<Prefix, Decision> {
        let hold_down = self.hold_down;
        // One that is added again soon must not evade its hold-down.
        self.vips.retain(|prefix, memory| {
            memory.announced &= facts.vips.contains_key(prefix);
            memory.announced || !memory.held(hold_down, now).is_zero()
        });
        let mut decisions = BTreeMap::new();
        for (prefix, services) in &facts.vips {
            let mut memory = self.vips.get(prefix).copied().unwrap_or_default();
            let decision = self.judge(*prefix, services, &memory, facts, now);
            let announced = decision.role.is_some();
            if announced && !memory.announced {
                memory.last = Some(now);
            }
            memory.announced = announced;
            self.vips.insert(*prefix, memory);
            decisions.insert(*prefix, decision);
        }
        decisions
    }

    fn judge(
        &self,
        prefix: Prefix,
        services: &[ServiceFacts],
        memory: &Memory,
        facts: &Facts,
        now: Duration,
    ) -> Decision {
        // What is announced already was right when it was: it is withdrawn for what is known, not for what is awaited.
        let stays = memory.announced;
        let weight = |service: &ServiceFacts| {
            let is_there = service.published || (facts.pending && stays);
            let counts = match service.test {
                Test::Passed => is_there,
                Test::Untested => is_there && stays,
                Test::Failed(_) => false,
            };
            let awaited = if stays { service.awaited } else { 0 };
            if counts { service.healthy + awaited } else { 0 }
        };
        let healthy = services.iter().map(weight).sum();
        let total = services.iter().map(|service| service.total).sum();
        let verdict = self.verdict(prefix, facts, (healthy, total), memory, now);
        let (role, reason) = match verdict {
            Ok(said) => {
                let leaving = facts.node == Phase::Draining;
                (
                    Some(if leaving {
                        Role::Draining
                    } else {
                        Role::Serving
                    }),
                    said,
                )
            }
            Err(said) => (None, blame(services, said)),
        };
        Decision {
            role,
            reason,
            refused: !self.is_allowed(prefix),
            services: services
                .iter()
                .map(|service| service.name.clone())
                .collect(),
            healthy,
            total,
        }
    }

    fn is_allowed(&self, prefix: Prefix) -> bool {
        self.allow.iter().any(|allowed| allowed.contains(prefix))
    }

    /// Whether it is announced, and why or why not.
    fn verdict(
        &self,
        prefix: Prefix,
        facts: &Facts,
        (healthy, total): (u64, u64),
        memory: &Memory,
        now: Duration,
    ) -> Result<String, String> {
        if !self.is_allowed(prefix) {
            let allowed: Vec<String> = self.allow.iter().map(ToString::to_string).collect();
            return Err(format!(
                "{prefix} is outside `announce.allow` in the node config ({}); add it there, or give the service another \
                 address",
                allowed.join(", ")
            ));
        }
        facts.plane.clone()?;
        if facts.node == Phase::Withdrawn {
            return Err("the node is drained; `lbctl node undrain` ends that".into());
        }
        let Watermarks { up, down } = self.watermarks;
        let share = format!("{healthy} of {total} weight is healthy");
        // Without weight the share is none.
        let above = |mark: u64| healthy * WHOLE > mark * total;
        let reaches = |mark: u64| healthy * WHOLE >= mark * total;
        if !above(down) {
            let mark = if down == 0 {
                String::new()
            } else {
                format!(", not above {} %", percent(down))
            };
            return Err(format!("{share}{mark}"));
        }
        if memory.announced {
            let leaving = facts.node == Phase::Draining;
            let end = if leaving {
                ", and the node is draining"
            } else {
                ""
            };
            return Ok(format!("{share}{end}"));
        }
        if !reaches(up) {
            return Err(format!("{share}, less than {} %", percent(up)));
        }
        if facts.pending {
            return Err(format!("{share}, and tables are about to be written"));
        }
        if facts.node == Phase::Draining {
            return Err(format!("{share}, but the node is draining"));
        }
        let held = memory.held(self.hold_down, now);
        if !held.is_zero() {
            return Err(format!(
                "{share}, but it was announced less than {} ago (hold_down): {} s left",
                humantime::format_duration(self.hold_down),
                held.as_millis().div_ceil(1_000)
            ));
        }
        Ok(share)
    }
}

/// Adds to why a VIP is not announced what is wrong with its services, if something but their health is.
fn blame(services: &[ServiceFacts], said: String) -> String {
    let fault = services.iter().find_map(|service| match &service.test {
        _ if !service.published => Some(format!(
            "the table of {} is not in the data plane yet",
            service.name
        )),
        Test::Failed(why) => Some(format!("the self-test of {} failed: {why}", service.name)),
        Test::Untested => Some(format!("{} is not tested yet", service.name)),
        Test::Passed => None,
    });
    match fault {
        Some(fault) => format!("{said}; {fault}"),
        None => said,
    }
}

/// A share as text.
fn percent(share: u64) -> String {
    let (whole, rest) = (share / 100, share % 100);
    if rest == 0 {
        whole.to_string()
    } else {
        format!("{whole}.{rest:02}")
    }
}
