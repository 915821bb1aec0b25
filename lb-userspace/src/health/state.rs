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
/// state; one that agrees sets it back to 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    state: HealthState,
    against: u32,
    failure: String,
    latency: Option<Duration>,
}

impl Health {
    /// A target in a given state: `Unknown` when it is new, another one when it is adopted.
    pub const fn new(state: HealthState) -> Self {
        Self {
            state,
            against: 0,
            failure: String::new(),
            latency: None,
        }
    }

    /// Takes in how a probe ended, its latency or the reason of its failure. Says whether the state has changed.
    pub fn record(&mut self, result: Result<Duration, String>, check: &HealthCheck) -> bool {
        let before = self.state;
        let outcome = match result {
            Ok(latency) => {
                self.latency = Some(latency);
                Outcome::Success
            }
            Err(reason) => {
                self.failure = reason;
                Outcome::Failure
            }
        };
        (self.state, self.against) = next(before, self.against, outcome, check.rise, check.fall);
        if (self.state, outcome) == (HealthState::Up, Outcome::Success) {
            self.failure.clear();
        }
        self.state != before
    }

    /// The state.
    pub const fn state(&self) -> HealthState {
        self.state
    }

    /// Why the last failed probe failed; empty once a probe of an up target has succeeded since.
    pub fn failure(&self) -> &str {
        &self.failure
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
    use Outcome::{Failure, Success};
    let against = against.saturating_add(1);
    match (state, outcome) {
        (Unknown, Success) => (Up, 0),
        (Unknown, Failure) => (Down, 0),
        (Up, Success) => (Up, 0),
        (Up, Failure) if against >= fall => (Down, 0),
        (Up, Failure) => (Up, against),
        (Down, Success) if against >= rise => (Up, 0),
        (Down, Success) => (Down, against),
        (Down, Failure) => (Down, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HealthState::{Down, Unknown, Up};
    use Outcome::{Failure, Success};

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

    #[test]
    fn an_adopted_target_needs_as_many_failures_as_any_other() {
        let mut health = Health::new(Up);
        let refused = || Err("connection refused".to_owned());
        assert!(!health.record(refused(), &check()));
        assert!(!health.record(refused(), &check()));
        assert!(health.record(refused(), &check()));
        assert_eq!(health.state(), Down);
    }

    #[test]
    fn the_reason_stays_until_a_probe_of_an_up_target_succeeds() {
        let mut health = Health::new(Unknown);
        let latency = Duration::from_millis(3);
        assert!(health.record(Err("no route to host".into()), &check()));
        assert!(!health.record(Ok(latency), &check()));
        assert_eq!(
            (health.state(), health.failure()),
            (Down, "no route to host")
        );
        assert!(health.record(Ok(latency), &check()));
        assert_eq!(
            (health.state(), health.failure(), health.latency()),
            (Up, "", Some(latency))
        );
        assert!(!health.record(Err("timed out after 1s".into()), &check()));
        assert_eq!(
            (health.state(), health.failure(), health.latency()),
            (Up, "timed out after 1s", Some(latency))
        );
    }
}
