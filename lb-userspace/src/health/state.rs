//! The state machine of one target: what probes say goes in, whether the target is up comes out. Pure: it neither
//! probes nor looks at a clock.

use crate::spec::HealthCheck;
use std::{fmt, time::Duration};

/// What is known of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HealthState {
    /// No probe has finished yet.
    Unknown,
    /// The target answers.
    Up,
    /// The target does not answer.
    Down,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::NotProbed];

    /// `success`, `failure` or `not_probed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::NotProbed => "not_probed",
        }
    }
}

impl HealthState {
    /// `unknown`, `up` or `down`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How one probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target answered in time.
    Success,
    /// It did not.
    Failure,
    /// This host could not ask it, which says nothing of the target.
    NotProbed,
}

/// Why a probe brought no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The target is to blame, or the way to it.
    Failed(String),
    /// This host could not probe: it lacks a resource, or does not let the probe out.
    NotProbed(String),
}

/// Health of one target.
///
/// ```text
///              success                        failure
///       +------------------- Unknown -------------------+
///       v                                               v
///      Up  ------------ `fall` failures in a row --->  Down
///          <----------- `rise` successes in a row ---
/// ```
///
/// The first probe decides at once: a daemon that has just started must neither wait `rise` probes before it sends
/// traffic nor send it to a target that is known to refuse. `against` counts the probes in a row that contradict the
/// state; one that agrees sets it back to 0. A probe that this host could not carry out changes neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    state: HealthState,
    against: u32,
    failure: String,
    /// Why the last probe could not be carried out; empty when it was.
    obstacle: String,
    latency: Option<Duration>,
}

impl Health {
    /// A target in a given state: `Unknown` when it is new, another one when it is adopted.
    pub const fn new(state: HealthState) -> Self {
        Self {
            state,
            against: 0,
            failure: String::new(),
            obstacle: String::new(),
            latency: None,
        }
    }

    /// Takes in a probe's latency, or why it brought no answer. Says how it counts; the state may have changed.
    pub fn record(&mut self, result: Result<Duration, NoAnswer>, check: &HealthCheck) -> Outcome {
        self.obstacle.clear();
        let outcome = match result {
            Ok(latency) => {
                self.latency = Some(latency);
                Outcome::Success
            }
            Err(NoAnswer::Failed(reason)) => {
                self.failure = reason;
                Outcome::Failure
            }
            Err(NoAnswer::NotProbed(reason)) => {
                self.obstacle = format!("could not probe: {reason}");
                Outcome::NotProbed
            }
        };
        (self.state, self.against) =
            next(self.state, self.against, outcome, check.rise, check.fall);
        if (self.state, outcome) == (HealthState::Up, Outcome::Success) {
            self.failure.clear();
        }
        outcome
    }

    /// The state.
    pub const fn state(&self) -> HealthState {
        self.state
    }

    /// Why the last probe could not be carried out, if it could not; else why the last failed probe failed, empty once a
    /// probe of an up target has succeeded since.
    pub fn detail(&self) -> &str {
        if self.obstacle.is_empty() {
            &self.failure
        } else {
            &self.obstacle
        }
    }

    /// How long the last successful probe took.
    pub const fn latency(&self) -> Option<Duration> {
        self.latency
    }
}

/// The transitions: the state and the count of contradicting probes after one more probe.
fn next(
    state: HealthState,
    against: u32,
    outcome: Outcome,
    rise: u32,
    fall: u32,
) -> (HealthState, u32) {
    use HealthState::{Down, Unknown, Up};
    use Outcome::{Failure, NotProbed, Success};
    let more = against.saturating_add(1);
    match (state, outcome) {
        (_, NotProbed) => (state, against),
        (Unknown, Success) => (Up, 0),
        (Unknown, Failure) => (Down, 0),
        (Up, Success) => (Up, 0),
        (Up, Failure) if more >= fall => (Down, 0),
        (Up, Failure) => (Up, more),
        (Down, Success) if more >= rise => (Up, 0),
        (Down, Success) => (Down, more),
        (Down, Failure) => (Down, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthState::{Down, Unknown, Up};
    use Outcome::{Failure, NotProbed, Success};

    /// rise 2, fall 3.
    fn check() -> HealthCheck {
        let second = Duration::from_secs(1);
        HealthCheck {
            port: 80,
            interval: second,
            timeout: second,
            rise: 2,
            fall: 3,
            jitter_percent: 0,
        }
    }

    #[test]
    fn every_transition() {
        let table = [
            ((Unknown, 0, Success), (Up, 0)),
            ((Unknown, 0, Failure), (Down, 0)),
            ((Up, 0, Success), (Up, 0)),
            ((Up, 1, Success), (Up, 0)),
            ((Up, 2, Success), (Up, 0)),
            ((Up, 0, Failure), (Up, 1)),
            ((Up, 1, Failure), (Up, 2)),
            ((Up, 2, Failure), (Down, 0)),
            ((Down, 0, Success), (Down, 1)),
            ((Down, 1, Success), (Up, 0)),
            ((Down, 0, Failure), (Down, 0)),
            ((Down, 1, Failure), (Down, 0)),
            ((Unknown, 0, NotProbed), (Unknown, 0)),
            ((Up, 0, NotProbed), (Up, 0)),
            ((Up, 2, NotProbed), (Up, 2)),
            ((Up, 7, NotProbed), (Up, 7)),
            ((Down, 0, NotProbed), (Down, 0)),
            ((Down, 1, NotProbed), (Down, 1)),
            ((Down, 7, NotProbed), (Down, 7)),
            // `rise` and `fall` were lowered while a count was already above them.
            ((Up, u32::MAX, Failure), (Down, 0)),
            ((Down, 7, Success), (Up, 0)),
        ];
        for ((state, against, outcome), after) in table {
            assert_eq!(
                next(state, against, outcome, 2, 3),
                after,
                "{state} {against} {outcome:?}"
            );
        }
    }

    #[test]
    fn rise_and_fall_of_one_follow_every_probe() {
        assert_eq!(next(Up, 0, Failure, 1, 1), (Down, 0));
        assert_eq!(next(Down, 0, Success, 1, 1), (Up, 0));
    }

    fn failed(reason: &str) -> Result<Duration, NoAnswer> {
        Err(NoAnswer::Failed(reason.into()))
    }

    #[test]
    fn an_adopted_target_needs_as_many_failures_as_any_other() {
        let mut health = Health::new(Up);
        for state in [Up, Up, Down] {
            health.record(failed("connection refused"), &check());
            assert_eq!(health.state(), state);
        }
    }

    #[test]
    fn the_reason_stays_until_a_probe_of_an_up_target_succeeds() {
        let mut health = Health::new(Unknown);
        let latency = Duration::from_millis(3);
        health.record(failed("no route to host"), &check());
        health.record(Ok(latency), &check());
        assert_eq!(
            (health.state(), health.detail()),
            (Down, "no route to host")
        );
        health.record(Ok(latency), &check());
        assert_eq!(
            (health.state(), health.detail(), health.latency()),
            (Up, "", Some(latency))
        );
        health.record(failed("timed out after 1s"), &check());
        assert_eq!(
            (health.state(), health.detail(), health.latency()),
            (Up, "timed out after 1s", Some(latency))
        );
    }

    #[test]
    fn a_probe_that_was_not_carried_out_is_said_and_changes_nothing() {
        let mut health = Health::new(Up);
        health.record(failed("connection refused"), &check());
        let before = health.clone();
        for _ in 0..9 {
            let not_probed = Err(NoAnswer::NotProbed("Too many open files".into()));
            assert_eq!(health.record(not_probed, &check()), NotProbed);
        }
        assert_eq!(
            (health.state(), health.detail()),
            (Up, "could not probe: Too many open files")
        );
        assert_eq!(health.against, before.against);
        health.record(failed("connection refused"), &check());
        assert_eq!(
            (health.state(), health.detail()),
            (Up, "connection refused")
        );
    }
}
