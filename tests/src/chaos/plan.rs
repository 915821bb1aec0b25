//! What will happen in a run, and when: drawn from a seed before it begins, so that the same seed gives the same events.
//!
//! **Invariant.** After every event at least [`IN_SERVICE`] backends take new flows.

use std::{collections::BTreeSet, fmt, time::Duration};

/// Fewest backends in service.
pub(super) const IN_SERVICE: usize = 3;
/// Shortest and longest time between two events, in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 1_000..=3_000;
/// Weight of a backend that was added.
const WEIGHT: u16 = 100;
/// Weights that a backend may get.
const WEIGHTS: [u16; 5] = [10, 50, 100, 200, 400];
/// Limits that an upgrade chooses from: other ones than before make it replace the maps.
const BACKENDS: [u32; 3] = [1_024, 2_048, 4_096];
const FLOWS: [u32; 3] = [65_536, 131_072, 262_144];

/// A kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Kind {
    /// Drain a backend
    Drain,
    /// End the drain of a backend
    Undrain,
    /// Remove a backend
    Remove,
    /// Add a removed backend again
    Add,
    /// Change a backend's weight
    Weight,
    /// Kill a backend's server
    Fail,
    /// Start a killed server again
    Return,
    /// Kill lbd and start it again
    Restart,
    /// Stop lbd and start it with other limits, so that it replaces the maps
    Upgrade,
    /// Make lbd read its configuration again
    Reload,
}

impl Kind {
    /// All kinds.
    pub(super) const ALL: [Self; 10] = [
        Self::Drain,
        Self::Undrain,
        Self::Remove,
        Self::Add,
        Self::Weight,
        Self::Fail,
        Self::Return,
        Self::Restart,
        Self::Upgrade,
        Self::Reload,
    ];

    /// As it is written in options and in the report.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Remove => "remove",
            Self::Add => "add",
            Self::Weight => "weight",
            Self::Fail => "fail",
            Self::Return => "return",
            Self::Restart => "restart",
            Self::Upgrade => "upgrade",
            Self::Reload => "reload",
        }
    }

    /// Without kinds that need one that is left out: what is never drained is never undrained.
    pub(super) fn all_without(left_out: &[Self]) -> Vec<Self> {
        Self::ALL
            .into_iter()
            .filter(|kind| !left_out.contains(kind))
            .collect()
    }
}

/// What an event does. Backends and nodes count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Drain(usize),
    Undrain(usize),
    Remove(usize),
    Add(usize),
    Weight(usize, u16),
    Fail(usize),
    Return(usize),
    Restart(usize),
    /// Node, whether by SIGTERM (else by SIGKILL), `limits.backends`, `limits.flows`.
    Upgrade(usize, bool, u32, u32),
    Reload(usize),
}

impl Action {
    /// Its kind.
    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::Drain(_) => Kind::Drain,
            Self::Undrain(_) => Kind::Undrain,
            Self::Remove(_) => Kind::Remove,
            Self::Add(_) => Kind::Add,
            Self::Weight(..) => Kind::Weight,
            Self::Fail(_) => Kind::Fail,
            Self::Return(_) => Kind::Return,
            Self::Restart(_) => Kind::Restart,
            Self::Upgrade(..) => Kind::Upgrade,
            Self::Reload(_) => Kind::Reload,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = |index: &usize| format!("backend-{}", index + 1);
        let node = |index: &usize| format!("lbd-{}", index + 1);
        match self {
            Self::Drain(b) => write!(f, "drain {}", backend(b)),
            Self::Undrain(b) => write!(f, "end the drain of {}", backend(b)),
            Self::Remove(b) => write!(f, "remove {}", backend(b)),
            Self::Add(b) => write!(f, "add {} again", backend(b)),
            Self::Weight(b, weight) => write!(f, "give {} the weight {weight}", backend(b)),
            Self::Fail(b) => write!(f, "kill the server of {}", backend(b)),
            Self::Return(b) => write!(f, "start the server of {} again", backend(b)),
            Self::Restart(n) => write!(f, "kill -9 {} and start it again", node(n)),
            Self::Upgrade(n, gently, backends, flows) => write!(
                f,
                "{} {} and start it with limits.backends {backends}, limits.flows {flows}",
                if *gently { "stop" } else { "kill -9" },
                node(n)
            ),
            Self::Reload(n) => write!(f, "make {} read its configuration again", node(n)),
        }
    }
}

/// An event to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// When, from the first moment in which events may happen.
    pub(super) at: Duration,
    /// What.
    pub(super) action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    In,
    Draining,
    Removed,
    Failed,
}

/// The events of a run that may have events for `length`.
pub(super) fn draw(
    seed: u64,
    length: Duration,
    backends: usize,
    nodes: usize,
    kinds: &[Kind],
) -> Vec<Event> {
    let mut dice = Dice {
        random: fastrand::Rng::with_seed(seed),
        states: vec![State::In; backends],
        weights: vec![WEIGHT; backends],
        limits: vec![(BACKENDS[0], FLOWS[0]); nodes],
    };
    let mut events = Vec::new();
    let mut at = Duration::ZERO;
    // Every kind comes once a round if it can, so that a short run has seen most of them.
    let mut round = Vec::new();
    loop {
        let fresh = round.is_empty();
        if fresh {
            round = kinds.to_vec();
            if !events.is_empty() {
                // More goes out of service than comes back, down to the fewest that may be left.
                let out = [Kind::Drain, Kind::Remove];
                round.extend(kinds.iter().filter(|kind| out.contains(kind)));
            }
            dice.random.shuffle(&mut round);
        }
        let possible = round
            .iter()
            .enumerate()
            .find_map(|(place, kind)| dice.action(*kind).map(|action| (place, action)));
        let Some((place, action)) = possible else {
            if fresh {
                return events;
            }
            round.clear();
            continue;
        };
        round.remove(place);
        at += Duration::from_millis(dice.random.u64(PAUSE_MS));
        if at > length {
            return events;
        }
        dice.apply(action);
        events.push(Event { at, action });
    }
}

struct Dice {
    random: fastrand::Rng,
    states: Vec<State>,
    weights: Vec<u16>,
    limits: Vec<(u32, u32)>,
}

impl Dice {
    /// An action of this kind that is possible now.
    fn action(&mut self, kind: Kind) -> Option<Action> {
        let spare = self.count(State::In) > IN_SERVICE;
        match kind {
            Kind::Drain if spare => self.backend(&[State::In]).map(Action::Drain),
            Kind::Undrain => self.backend(&[State::Draining]).map(Action::Undrain),
            Kind::Remove if spare => self
                .backend(&[State::In, State::Draining])
                .map(Action::Remove),
            Kind::Add => self.backend(&[State::Removed]).map(Action::Add),
            Kind::Weight => {
                let backend = self.backend(&[State::In])?;
                let weight = self.other(&WEIGHTS, self.weights[backend]);
                Some(Action::Weight(backend, weight))
            }
            Kind::Fail if spare => self.backend(&[State::In]).map(Action::Fail),
            Kind::Return => self.backend(&[State::Failed]).map(Action::Return),
            Kind::Drain | Kind::Remove | Kind::Fail => None,
            Kind::Restart => Some(Action::Restart(self.node())),
            Kind::Reload => Some(Action::Reload(self.node())),
            Kind::Upgrade => {
                let node = self.node();
                let (backends, flows) = self.limits[node];
                let gently = self.random.bool();
                let backends = self.other(&BACKENDS, backends);
                let flows = self.other(&FLOWS, flows);
                Some(Action::Upgrade(node, gently, backends, flows))
            }
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Drain(backend) => self.states[backend] = State::Draining,
            Action::Remove(backend) => {
                self.states[backend] = State::Removed;
                self.weights[backend] = WEIGHT;
            }
            Action::Fail(backend) => self.states[backend] = State::Failed,
            Action::Undrain(backend) | Action::Add(backend) | Action::Return(backend) => {
                self.states[backend] = State::In;
            }
            Action::Upgrade(node, _, backends, flows) => self.limits[node] = (backends, flows),
            Action::Weight(backend, weight) => self.weights[backend] = weight,
            Action::Restart(_) | Action::Reload(_) => {}
        }
    }

    fn count(&self, wanted: State) -> usize {
        self.states.iter().filter(|state| **state == wanted).count()
    }

    fn backend(&mut self, among: &[State]) -> Option<usize> {
        let all: BTreeSet<usize> = (0..self.states.len())
            .filter(|backend| among.contains(&self.states[*backend]))
            .collect();
        self.random.choice(all)
    }

    fn node(&mut self) -> usize {
        self.random.usize(..self.limits.len())
    }

    fn other<T: Copy + PartialEq>(&mut self, values: &[T], than: T) -> T {
        let others = values.iter().copied().filter(|value| *value != than);
        self.random
            .choice(others.collect::<Vec<_>>())
            .unwrap_or(than)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(180);

    fn events(seed: u64) -> Vec<Event> {
        draw(seed, LENGTH, 8, 2, &Kind::ALL)
    }

    #[test]
    fn the_same_seed_gives_the_same_events_and_another_seed_others() {
        assert_eq!(events(7), events(7));
        assert_ne!(events(7), events(8));
    }

    #[test]
    fn whatever_the_seed_every_kind_comes_in_time_and_enough_backends_stay_in_service() {
        for seed in 0..200 {
            let events = events(seed);
            let kinds: BTreeSet<Kind> = events.iter().map(|event| event.action.kind()).collect();
            assert_eq!(kinds.len(), Kind::ALL.len(), "seed {seed}: {kinds:?}");
            let mut out = BTreeSet::new();
            let mut last = Duration::ZERO;
            for Event { at, action } in events {
                let pause = at - last;
                last = at;
                assert!(
                    PAUSE_MS.contains(&(pause.as_millis() as u64)) && at <= LENGTH,
                    "seed {seed}: {action} after {pause:?}"
                );
                let sound = match action {
                    Action::Drain(b) | Action::Fail(b) => out.insert(b),
                    Action::Remove(b) => {
                        out.insert(b);
                        true
                    }
                    Action::Undrain(b) | Action::Add(b) | Action::Return(b) => out.remove(&b),
                    Action::Weight(b, _) => !out.contains(&b),
                    Action::Restart(n) | Action::Reload(n) | Action::Upgrade(n, ..) => n < 2,
                };
                assert!(sound, "seed {seed}: {action}");
                assert!(8 - out.len() >= IN_SERVICE, "seed {seed}: {action}");
            }
        }
    }

    #[test]
    fn kinds_that_are_left_out_do_not_come() {
        let kinds = Kind::all_without(&[Kind::Drain, Kind::Fail]);
        for Event { action, .. } in draw(3, LENGTH, 8, 2, &kinds) {
            assert!(
                !matches!(
                    action.kind(),
                    Kind::Drain | Kind::Undrain | Kind::Fail | Kind::Return
                ),
                "{action}"
            );
        }
        assert_eq!(draw(3, LENGTH, 8, 2, &[Kind::Undrain]), []);
    }
}
