//! How a node leaves: its VIPs are announced as draining until routers have found other ways, then withdrawn, then it goes on
//! forwarding for what was under way; then it is safe to stop.
//!
//! ```text
//! Serving --drain--> Draining --announced so for `converge`--> Withdrawn --gone for `linger`--> (safe to stop)
//!    ^                  |                                         |
//!    +-----undrain------+-----------------------------------------+
//! ```
//! The phase survives a restart of `lbd`; moments do not, so that its wait begins anew.

use super::setting::DrainTimes;
use std::time::Duration;

/// Where the node stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It announces what it can serve.
    #[default]
    Serving,
    /// It announces that as draining.
    Draining,
    /// It announces nothing.
    Withdrawn,
}

impl Phase {
    /// Its name, as on disk.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Withdrawn => "withdrawn",
        }
    }

    /// The phase once the operator has begun or ended the drain. A drain that is on its way is left as it is.
    pub const fn after(self, drain: bool) -> Self {
        match (self, drain) {
            (Self::Serving, true) => Self::Draining,
            (on_its_way, true) => on_its_way,
            (_, false) => Self::Serving,
        }
    }

    /// The phase of a name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Serving, Self::Draining, Self::Withdrawn]
            .into_iter()
            .find(|phase| phase.as_str() == name)
    }
}

/// The drain of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeDrain {
    phase: Phase,
    times: DrainTimes,
    /// Since when what the phase asks for is so, CLOCK_MONOTONIC.
    since: Option<Duration>,
}

impl NodeDrain {
    /// A node in a phase.
    pub const fn new(phase: Phase, times: DrainTimes) -> Self {
        Self {
            phase,
            times,
            since: None,
        }
    }

    /// Where it stands.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes the operator's word.
    pub fn set(&mut self, drain: bool) {
        let phase = self.phase.after(drain);
        if phase != self.phase {
            *self = Self::new(phase, self.times);
        }
    }

    /// Goes on; `done`: what the phase asks for is announced. Whether the phase has changed.
    pub fn advance(&mut self, done: bool, now: Duration) -> bool {
        if self.phase == Phase::Serving {
            return false;
        }
        if !done {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        if self.phase == Phase::Draining && now >= since + self.times.converge {
            self.phase = Phase::Withdrawn;
            self.since = None;
            return true;
        }
        false
    }

    /// What is left of the phase's wait; none while that has not begun, or for a node that serves.
    pub fn left(&self, now: Duration) -> Option<Duration> {
        let span = match self.phase {
            Phase::Serving => return None,
            Phase::Draining => self.times.converge,
            Phase::Withdrawn => self.times.linger,
        };
        self.since.map(|since| (since + span).saturating_sub(now))
    }

    /// Whether the node can be stopped.
    pub fn is_safe(&self, now: Duration) -> bool {
        self.phase == Phase::Withdrawn && self.left(now).is_some_and(|left| left.is_zero())
    }
}
