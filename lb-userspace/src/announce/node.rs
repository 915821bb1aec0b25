//! What the daemon keeps of announcing: decisions, the node's drain, self-tests, and what the driver says. Pure.

use super::{
    Announced, Outcome, Role, Wanted,
    decide::{Decider, Decision, Facts, Test},
    drain::{NodeDrain, Phase},
    setting::{Settings, WHOLE},
    worker::Report,
};
use crate::{
    api::announce::{AnnouncementView, NodeView},
    prefix::Prefix,
    spec::Name,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tracing::{error, info, warn};

/// How long interfaces must have been well again before VIPs are announced again.
const SETTLED: Duration = Duration::from_secs(1);
/// Between two self-tests of a service.
const TEST_INTERVAL: Duration = Duration::from_secs(5);
/// Self-tests in a row that have to fail: one may meet a change that is half made.
const TEST_FAILURES: u32 = 2;

/// What is known of a service's self-test.
#[derive(Clone, Debug, Default)]
struct Tested {
    /// When the last one was, CLOCK_MONOTONIC.
    last: Duration,
    /// When the next one is due, CLOCK_MONOTONIC.
    due: Duration,
    /// Failures in a row.
    failures: u32,
    /// Whether one has passed since the last that counted as failed.
    passed: bool,
    /// What was wrong with the last one.
    fault: String,
}

/// Announcing, as the daemon sees it.
#[derive(Debug)]
pub struct Announcing {
    settings: Settings,
    /// None until it is known what is announced already.
    decider: Option<Decider>,
    drain: NodeDrain,
    decisions: BTreeMap<Prefix, Decision>,
    /// None until anything is decided.
    wanted: Option<Arc<Wanted>>,
    outcome: Outcome,
    /// Whether packets were balanced at the last look, and until when they must go on to be before that counts.
    well: Option<(bool, Duration)>,
    tests: BTreeMap<Name, Tested>,
    /// Why packets cannot be sent through the program here.
    untestable: Option<String>,
}

/// What follows from a decision.
#[derive(Debug, Default)]
pub struct Next {
    /// What the driver is to do now.
    pub order: Option<Arc<Wanted>>,
    /// The phase of the node's drain, if it has changed.
    pub phase: Option<Phase>,
}

impl Announcing {
    /// Announcing of a node that is in a phase of its drain.
    pub fn new(settings: Settings, phase: Phase) -> Self {
        Self {
            drain: NodeDrain::new(phase, settings.drain),
            settings,
            decider: None,
            decisions: BTreeMap::new(),
            wanted: None,
            outcome: Outcome::default(),
            well: None,
            tests: BTreeMap::new(),
            untestable: None,
        }
    }

    /// Where the node stands.
    pub const fn phase(&self) -> Phase {
        self.drain.phase()
    }

    /// Begins or ends the node's drain.
    pub fn set_drain(&mut self, drain: bool) {
        self.drain.set(drain);
    }

    /// Takes what the driver says.
    pub fn on_report(&mut self, report: Report) {
        match report {
            Report::Adopted(Ok(found)) => {
                let prefixes: Vec<String> = found.keys().map(ToString::to_string).collect();
                info!(driver = self.settings.driver.as_str(), found = ?prefixes, "announcing begins");
                self.decider = Some(Decider::new(&self.settings, &found));
                self.outcome = Outcome {
                    announced: found,
                    ..Outcome::default()
                };
            }
            Report::Adopted(Err(problem)) => {
                self.take(Outcome {
                    problem: Some(problem),
                    ..Outcome::default()
                });
            }
            Report::Done(outcome) => self.take(outcome),
        }
    }

    fn take(&mut self, mut outcome: Outcome) {
        if let Some(problem) = outcome
            .problem
            .as_ref()
            .filter(|_| self.outcome.problem != outcome.problem)
        {
            error!(%problem, "announcing fails; it is tried again");
        }
        for (prefix, problem) in &outcome.failed {
            if self.outcome.failed.get(prefix) != Some(problem) {
                error!(%prefix, %problem, "announcing fails; it is tried again");
            }
        }
        // A driver that could do nothing has taken nothing away.
        if outcome.problem.is_some() && outcome.announced.is_empty() {
            outcome.announced = std::mem::take(&mut self.outcome.announced);
        }
        self.outcome = outcome;
    }

    /// Whether what the phase of the node's drain asks for is so. Orders on their way do not matter: one that withdraws a VIP, or fails to announce it,
    /// keeps no router from finding another way.
    fn has_left(&self) -> bool {
        let announced = &self.outcome.announced;
        let is_so = match self.phase() {
            Phase::Serving => false,
            Phase::Draining => announced.values().all(|role| *role == Role::Draining),
            Phase::Withdrawn => announced.is_empty(),
        };
        is_so && self.has_decided() && self.outcome.problem.is_none()
    }

    /// Decides at a moment of CLOCK_MONOTONIC; `facts.node` is filled in here.
    pub fn decide(&mut self, mut facts: Facts, now: Duration) -> Next {
        let mut next = Next::default();
        if self.decider.is_none() {
            return next;
        }
        facts.plane = self.settled(facts.plane, now);
        facts.node = self.phase();
        self.redecide(&facts, now, &mut next);
        if self.drain.advance(self.has_left(), now) {
            facts.node = self.phase();
            next.phase = Some(facts.node);
            self.redecide(&facts, now, &mut next);
        }
        next
    }

    fn redecide(&mut self, facts: &Facts, now: Duration, next: &mut Next) {
        let Some(decider) = &mut self.decider else {
            return;
        };
        let decisions = decider.decide(facts, now);
        for (prefix, decision) in &decisions {
            let before = self.decisions.get(prefix);
            if before.is_none_or(|before| before.role != decision.role) {
                say(*prefix, decision);
            }
        }
        let wanted: Wanted = decisions
            .iter()
            .map(|(prefix, decision)| (*prefix, decision.role))
            .collect();
        self.decisions = decisions;
        if self.wanted.as_deref() != Some(&wanted) {
            let wanted = Arc::new(wanted);
            next.order = Some(Arc::clone(&wanted));
            self.wanted = Some(wanted);
        }
    }

    /// Whether packets are balanced, and have been for a while since they last were not.
    fn settled(&mut self, plane: Result<(), String>, now: Duration) -> Result<(), String> {
        let until = match (self.well, plane.is_ok()) {
            // What is well at the first look was well before.
            (None, true) => Duration::ZERO,
            (Some((false, _)), true) => now + SETTLED,
            (Some((true, until)), true) => until,
            (_, false) => Duration::ZERO,
        };
        self.well = Some((plane.is_ok(), until));
        plane?;
        if now < until {
            return Err("the interfaces have been well again for less than a second".into());
        }
        Ok(())
    }

    /// Whether anything has been decided.
    pub const fn has_decided(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether self-tests are possible here as far as is known.
    pub const fn is_testable(&self) -> bool {
        self.untestable.is_none()
    }

    /// Self-tests are not possible here.
    pub fn set_untestable(&mut self, why: String) {
        warn!(%why, "services cannot be tested, and are announced without");
        self.untestable = Some(why);
    }

    /// Self-tests are possible here after all.
    pub fn set_testable(&mut self) {
        if self.untestable.take().is_some() {
            info!("services can be tested again");
        }
    }

    /// Tables have changed: every service is to be tested again.
    pub fn published(&mut self) {
        for tested in self.tests.values_mut() {
            tested.due = Duration::ZERO;
        }
    }

    /// When the self-test of a service is due, CLOCK_MONOTONIC.
    pub fn test_due(&self, service: &Name) -> Duration {
        self.tests
            .get(service)
            .map_or(Duration::ZERO, |tested| tested.due)
    }

    /// When a service was last tested, CLOCK_MONOTONIC; 0: not yet.
    pub fn last_test(&self, service: &Name) -> Duration {
        self.tests
            .get(service)
            .map_or(Duration::ZERO, |tested| tested.last)
    }

    /// Forgets the self-tests of services that are gone.
    pub fn keep_tests(&mut self, is_there: impl Fn(&Name) -> bool) {
        self.tests.retain(|name, _| is_there(name));
    }

    /// Takes the result of a self-test.
    pub fn on_test(&mut self, service: &Name, result: Result<(), String>, now: Duration) {
        let tested = self.tests.entry(service.clone()).or_default();
        (tested.last, tested.due) = (now, now + TEST_INTERVAL);
        match result {
            Ok(()) => {
                if tested.failures >= TEST_FAILURES {
                    info!(%service, "the self-test passes again");
                }
                (tested.failures, tested.passed) = (0, true);
                tested.fault.clear();
            }
            Err(fault) => {
                tested.failures += 1;
                if tested.failures < TEST_FAILURES {
                    tested.due = now;
                } else {
                    tested.passed = false;
                    if tested.failures == TEST_FAILURES {
                        error!(%service, %fault, "the self-test fails");
                    }
                }
                tested.fault = fault;
            }
        }
    }

    /// What is known of a service by its self-tests.
    pub fn test_of(&self, service: &Name) -> Test {
        match self.tests.get(service) {
            _ if self.untestable.is_some() => Test::Passed,
            Some(tested) if tested.passed => Test::Passed,
            Some(tested) if tested.failures >= TEST_FAILURES => Test::Failed(tested.fault.clone()),
            Some(_) | None => Test::Untested,
        }
    }

    /// `GET /v1/announcements`: the VIPs of services, and what is announced beside them.
    pub fn views(&self) -> Vec<AnnouncementView> {
        let mut views: Vec<AnnouncementView> = self
            .decisions
            .iter()
            .map(|(prefix, decision)| self.view(*prefix, decision))
            .collect();
        if self.has_decided() {
            return views;
        }
        for (prefix, role) in &self.outcome.announced {
            views.push(AnnouncementView {
                state: state(Some(*role)).into(),
                reason: "adopted from an earlier lbd; nothing is decided yet".into(),
                ..self.undecided(prefix.to_string())
            });
        }
        views
    }

    /// The view of a VIP before anything is decided.
    pub fn undecided(&self, address: String) -> AnnouncementView {
        AnnouncementView {
            address,
            wanted: state(None).into(),
            state: state(None).into(),
            reason: "nothing is decided yet".into(),
            problem: self.outcome.problem.clone().unwrap_or_default(),
            ..AnnouncementView::default()
        }
    }

    fn view(&self, prefix: Prefix, decision: &Decision) -> AnnouncementView {
        let problem = self
            .outcome
            .failed
            .get(&prefix)
            .or(self.outcome.problem.as_ref());
        let share = decision.healthy * WHOLE / decision.total.max(1);
        AnnouncementView {
            address: prefix.to_string(),
            services: decision.services.clone(),
            wanted: state(decision.role).into(),
            state: state(self.outcome.announced.get(&prefix).copied()).into(),
            reason: decision.reason.clone(),
            healthy_weight: decision.healthy,
            total_weight: decision.total,
            healthy_percent: share as f64 / 100.0,
            problem: problem.cloned().unwrap_or_default(),
        }
    }

    /// `GET /v1/node`, at a moment of CLOCK_MONOTONIC.
    pub fn node(&self, now: Duration) -> NodeView {
        let is_safe = self.drain.is_safe(now);
        let state = match self.phase() {
            Phase::Serving => "serving",
            Phase::Draining => "draining",
            Phase::Withdrawn if is_safe => "safe",
            Phase::Withdrawn => "lingering",
        };
        let left = self.drain.left(now).filter(|_| !is_safe);
        let problem = self
            .outcome
            .problem
            .as_ref()
            .or(self.outcome.failed.values().next());
        NodeView {
            state: state.into(),
            driver: self.settings.driver.as_str().into(),
            announced: self.outcome.announced.len() as u64,
            // Rounded up: 0 is said once nothing is left.
            seconds_left: left.map(|left| left.as_millis().div_ceil(1_000) as u64),
            problem: problem.cloned().unwrap_or_default(),
        }
    }

    /// What an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(problem) = &self.outcome.problem {
            warnings.push(format!(
                "announcing ({}): {problem}",
                self.settings.driver.as_str()
            ));
        }
        let failed = self.outcome.failed.iter();
        warnings.extend(failed.map(|(prefix, problem)| format!("announcing {prefix}: {problem}")));
        match self.phase() {
            Phase::Serving => {
                let missing = self
                    .decisions
                    .iter()
                    .filter(|(_, decision)| decision.role.is_none());
                warnings.extend(missing.map(|(prefix, decision)| {
                    format!(
                        "{prefix} ({}) is not announced: {}",
                        decision.services.join(", "),
                        decision.reason
                    )
                }));
            }
            Phase::Draining | Phase::Withdrawn => {
                warnings.push("the node is drained; `lbctl node undrain` ends that".into());
            }
        }
        let untestable = self.untestable.iter();
        warnings.extend(
            untestable.map(|why| format!("services are announced without a self-test: {why}")),
        );
        warnings
    }

    /// What is announced, as far as the driver knows.
    pub const fn announced(&self) -> &Announced {
        &self.outcome.announced
    }
}

/// The word for how a VIP is announced.
const fn state(role: Option<Role>) -> &'static str {
    match role {
        Some(Role::Serving) => "announced",
        Some(Role::Draining) => "draining",
        None => "withdrawn",
    }
}

fn say(prefix: Prefix, decision: &Decision) {
    let reason = &decision.reason;
    match decision.role {
        Some(Role::Serving) => info!(%prefix, %reason, "announced"),
        Some(Role::Draining) => info!(%prefix, %reason, "announced as draining"),
        None if decision.refused => error!(%prefix, %reason, "not announced"),
        None => warn!(%prefix, %reason, "not announced"),
    }
}
