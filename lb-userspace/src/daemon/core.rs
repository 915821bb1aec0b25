//! The control loop's state and what each event does to it. No clock, no sockets, no tasks: `run` feeds it,
//! tests feed it as well.
//!
//! **Invariants.** The state in force is valid and on disk. A refused change changes nothing. A failed write to the
//! data plane is said, kept as a warning and tried again; what was forwarded before is forwarded still.

use super::{drains::Rates, memory, target_id, views::ProbeMemory};
use crate::{
    announce::Announcing,
    api::protocol::{ErrorBody, ErrorCode, StateView},
    dataplane::{Attachment, DataPlane},
    desired::{Document, Loaded, Store},
    health::{
        checker::{HealthReport, Target, TargetId},
        state::HealthState,
    },
    metrics::Metrics,
    neighbour::NextHopUpdate,
    outer_source::OuterSource,
    plan::{
        Facts, Scope,
        apply::apply,
        census::{self, Census},
        departure,
        diff::{Capacity, Plan, Step, diff},
        mirror::Mirror,
        roster::Roster,
        target::wanted,
    },
    spec::{Backend, Limits, Name, Service, State, StateSpec, Tracking},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};
use tracing::{error, info, warn};

/// The commit this was built from, or `unknown`.
pub const COMMIT: &str = env!("GUIDEWAY_COMMIT");

/// Least time between two counts of the flow table.
const CENSUS_INTERVAL: Duration = Duration::from_secs(2);
/// Time that a look ahead may take.
const READY: Duration = Duration::from_millis(5);
/// A count may take this share of the time, as a divisor: a large flow table is counted less often.
const CENSUS_SHARE: u32 = 20;

/// The daemon's state.
pub struct Core<P> {
    /// The maps.
    pub plane: P,
    /// What is measured.
    pub metrics: Metrics,
    pub(super) state: State,
    /// What planning needs of the state.
    pub(super) roster: Roster,
    pub(super) revision: u64,
    pub(super) facts: Facts,
    /// Services with backends of which something has become known since the last reconcile.
    touched: BTreeSet<Name>,
    /// Whether more than that may be new.
    stale: bool,
    pub(super) probes: BTreeMap<TargetId, ProbeMemory>,
    /// Removed backends that are probed for their flows' sake.
    probed_leaving: BTreeSet<TargetId>,
    pub(super) mirror: Mirror,
    /// The last count of the flow table.
    pub(super) census: Option<Census>,
    /// When the data plane was last brought up to date, CLOCK_MONOTONIC.
    brought_up: Duration,
    /// When the flow table is counted again at the earliest.
    census_due: Duration,
    /// Flow-table entries that have vanished between two counts: put out to make room.
    pub(super) evicted: u64,
    /// Traffic of departing backends.
    pub(super) rates: Rates,
    pub(super) attachments: Vec<Attachment>,
    /// Which VIPs are announced; none: this node announces nothing.
    pub(super) announcing: Option<Announcing>,
    /// Addresses of backends that had slots when the daemon started.
    serving: BTreeSet<IpAddr>,
    /// Why the state on disk cannot be used, while it cannot: until a whole state is applied nothing is written.
    pub(super) unreadable: Option<String>,
    /// Why the last reconcile failed, until one succeeds.
    pub(super) failure: Option<String>,
    /// Something that an operator should know since start.
    pub(super) notices: Vec<String>,
    pub(super) store: Store,
    pub(super) limits: Limits,
}

impl<P: DataPlane> Core<P> {
    /// A core that continues from the state on disk and from what the data plane holds. `now`: CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// When the disk or the maps cannot be read.
    pub fn new(
        mut plane: P,
        running: bool,
        store: Store,
        limits: Limits,
        now: Duration,
    ) -> Result<Self> {
        let mirror = Mirror::new(plane.installed().context("reading the data plane")?);
        let mut core = Self {
            plane,
            metrics: Metrics::new(COMMIT, SystemTime::now()),
            state: State::default(),
            roster: Roster::default(),
            revision: 0,
            facts: Facts::default(),
            touched: BTreeSet::new(),
            stale: true,
            probes: BTreeMap::new(),
            probed_leaving: BTreeSet::new(),
            mirror,
            census: None,
            brought_up: Duration::ZERO,
            census_due: Duration::ZERO,
            evicted: 0,
            rates: Rates::default(),
            attachments: Vec::new(),
            announcing: None,
            serving: BTreeSet::new(),
            unreadable: None,
            failure: None,
            notices: Vec::new(),
            store,
            limits,
        };
        match core.store.load() {
            Loaded::Nothing if running => {
                let directory = core.store.directory().display();
                core.refuse_state(format!(
                    "state_directory {directory} holds no state, but a data plane with services is running; is the \
                     directory mounted, and the right one"
                ));
            }
            Loaded::Nothing => info!("no desired state yet: a new node"),
            Loaded::Good(document) => core.adopt(document),
            Loaded::Recovered(document, said) => {
                error!(problem = %said, "the state file was damaged");
                core.notices.push(said);
                core.adopt(document);
            }
            Loaded::Unreadable(said) => core.refuse_state(said),
        }
        core.seed_health()?;
        core.advance(now);
        // Who is leaving already, so that they are followed from the start.
        let (facts, all) = (&mut core.facts, Scope::All);
        wanted(&core.state, &core.roster, facts, &core.mirror, &all);
        Ok(core)
    }

    fn adopt(&mut self, document: Document) {
        match State::parse(&document.state, &self.limits) {
            Ok(state) => {
                info!(
                    revision = document.revision,
                    services = state.services.len(),
                    "desired state loaded"
                );
                let roster = Roster::new(&state, &self.roster);
                self.take_state(state, roster);
                self.revision = document.revision;
            }
            Err(problems) => {
                self.refuse_state(format!("the state on disk is not valid here: {problems}"))
            }
        }
    }

    /// Takes a desired state with its roster; the one before it, and its roster.
    pub(super) fn take_state(&mut self, state: State, roster: Roster) -> (State, Roster) {
        self.stale = true;
        (
            std::mem::replace(&mut self.state, state),
            std::mem::replace(&mut self.roster, roster),
        )
    }

    fn refuse_state(&mut self, said: String) {
        let said = format!(
            "{said}; the data plane is left as it is and probes are off until a whole state is given with \
             `lbctl apply -f FILE`, or an earlier one (`lbctl history`) is brought back with `lbctl rollback REVISION`"
        );
        error!(problem = %said, "no usable desired state");
        self.unreadable = Some(said);
        // The revisions of the lost state marked the indexes in use; new ones must be told apart from them.
        let generations = self.mirror.backends.values().map(|entry| entry.generation);
        self.revision = generations.max().unwrap_or(0).into();
    }

    /// Backends that have slots in the data plane start as up: they were when the last daemon stored them. Those that only
    /// old flows go to may be down.
    pub(super) fn seed_health(&mut self) -> Result<()> {
        for (service, enrolled) in self
            .state
            .services
            .values()
            .zip(self.roster.services.values())
        {
            let Some(index) = self.mirror.service_index(&enrolled.key) else {
                continue;
            };
            let owners: BTreeSet<u32> = self
                .plane
                .read_slots(index)?
                .iter()
                .map(|slot| slot.new_owner())
                .collect();
            for (backend, id) in service.backends.values().zip(&enrolled.ids) {
                let owner = self.mirror.backend_index(*id);
                if owner.is_some_and(|owner| owners.contains(&owner)) {
                    self.serving.insert(backend.address);
                    if service.health.is_some() {
                        self.facts
                            .health
                            .insert(target_id(service, backend), HealthState::Up);
                    }
                }
            }
        }
        Ok(())
    }

    /// What is attached where.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// Takes the source address of outer headers, for all that is written from now on.
    pub const fn set_outer_source(&mut self, outer_source: OuterSource) {
        self.facts.outer_source = outer_source;
    }

    /// Takes the time, CLOCK_MONOTONIC.
    pub const fn advance(&mut self, now: Duration) {
        self.facts.now = now;
    }

    /// Ids of the removed backends whose flows stay with them.
    pub fn leaving(&self) -> BTreeSet<u64> {
        let departures = self.facts.departures.iter();
        let removed = departures.filter(|(_, d)| d.reason == departure::Reason::Removed);
        removed.map(|(id, _)| *id).collect()
    }

    /// What is to be probed.
    pub fn targets(&self) -> BTreeMap<TargetId, Target> {
        let mut targets = BTreeMap::new();
        for service in self.state.services.values() {
            let Some(check) = &service.health else {
                continue;
            };
            for backend in service.backends.values() {
                let id = target_id(service, backend);
                let initial = self
                    .facts
                    .health
                    .get(&id)
                    .copied()
                    .unwrap_or(HealthState::Unknown);
                targets.insert(
                    id,
                    Target {
                        address: backend.address,
                        check: check.clone(),
                        initial,
                    },
                );
            }
        }
        // A removed backend is probed for as long as its flows stay with it.
        let leaving = self
            .facts
            .departures
            .values()
            .filter_map(|departure| departure.probe.as_ref());
        for (id, target) in leaving {
            targets.entry(id.clone()).or_insert_with(|| target.clone());
        }
        targets
    }

    /// Addresses whose next hop is to be known.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let backends = self
            .state
            .services
            .values()
            .flat_map(|service| service.backends.values());
        let leaving = self
            .facts
            .departures
            .values()
            .map(|departure| departure.address);
        backends
            .map(|backend| backend.address)
            .chain(leaving)
            .collect()
    }

    /// Whether every backend has a first verdict and a first next-hop look-up behind it.
    pub fn knows_all(&self) -> bool {
        let found = |address: &IpAddr| self.facts.next_hops.get(address).is_some_and(Result::is_ok);
        let known = |id: &TargetId, address: &IpAddr| {
            let verdict = self.facts.health.get(id);
            // Without a next hop the probe has nobody to reach, and its verdict changes nothing.
            verdict.is_some_and(|state| *state != HealthState::Unknown)
                || self.is_unreachable(address)
        };
        // This is asked again with each report: the first that is not known is enough.
        let is_known = |service: &Service, backend: &Backend| {
            let address = &backend.address;
            let probed = service.health.is_some();
            (found(address) || self.is_unreachable(address))
                && (!probed || known(&target_id(service, backend), address))
        };
        let mut services = self.state.services.values();
        let mut leaving = self.facts.departures.values();
        services.all(|service| {
            let mut backends = service.backends.values();
            backends.all(|backend| is_known(service, backend))
        }) && leaving.all(|departure| {
            let address = &departure.address;
            let probe = departure.probe.as_ref();
            // A configured backend is probed at its own address.
            let probe = probe.filter(|(id, _)| !self.is_configured(id));
            (found(address) || self.is_unreachable(address))
                && probe.is_none_or(|(id, target)| known(id, &target.address))
        })
    }

    /// Whether there is no next hop for an address, as far as that can be said at once: one that was in service before
    /// is given the time that the kernel takes to find its neighbour again.
    fn is_unreachable(&self, address: &IpAddr) -> bool {
        let lost = self
            .facts
            .next_hops
            .get(address)
            .is_some_and(Result::is_err);
        lost && !self.serving.contains(address)
    }

    /// Takes a probe's report at a moment of CLOCK_MONOTONIC; whether a reconcile of what is new is due.
    pub fn on_health(&mut self, report: HealthReport, now: Duration) -> bool {
        let target = &report.target;
        if !self.is_configured(target) && !self.probed_leaving.contains(target) {
            return false;
        }
        let service = report.target.service.as_str();
        self.metrics
            .observe_probe(service, report.outcome, report.latency);
        let memory = self.probes.entry(report.target.clone()).or_default();
        memory.detail.clone_from(&report.detail);
        memory.latency = report.latency.or(memory.latency);
        if self.facts.health.get(&report.target) == Some(&report.state) {
            return false;
        }
        let TargetId { service, backend } = &report.target;
        match report.state {
            HealthState::Up => info!(%service, %backend, "backend is up"),
            HealthState::Down => {
                warn!(%service, %backend, reason = %report.detail, "backend is down")
            }
            HealthState::Unknown => info!(%service, %backend, "backend is not known any more"),
        }
        if report.state == HealthState::Up {
            self.facts.risen.insert(report.target.clone(), now);
        } else {
            self.facts.risen.remove(&report.target);
        }
        self.touched.insert(report.target.service.clone());
        self.facts.health.insert(report.target, report.state);
        true
    }

    /// Whether this is a backend of the desired state that is probed.
    fn is_configured(&self, id: &TargetId) -> bool {
        let service = self.state.services.get(&id.service);
        service.is_some_and(|service| {
            service.health.is_some() && service.backends.contains_key(&id.backend)
        })
    }

    /// Takes which removed backends are probed. Reports ask for them one by one, and there may be thousands of both.
    pub(super) fn note_leaving(&mut self) {
        let departures = self.facts.departures.values();
        let probes = departures.filter_map(|departure| departure.probe.as_ref());
        self.probed_leaving = probes.map(|(id, _)| id.clone()).collect();
    }

    /// Takes a next hop's change; whether a reconcile is due.
    pub fn on_next_hop(&mut self, update: NextHopUpdate) -> bool {
        let NextHopUpdate {
            address,
            resolution,
        } = update;
        match &resolution {
            Ok(hop) => info!(%address, next_hop = %hop, "next hop"),
            Err(unresolved) => warn!(%address, reason = %unresolved, "no next hop"),
        }
        self.facts.next_hops.insert(address, resolution);
        self.stale = true;
        true
    }

    /// Takes what is attached where; whether a reconcile is due. `activated`: the program was brought onto the interfaces,
    /// so that one without it is none to send through.
    pub fn on_attachments(&mut self, attachments: Vec<Attachment>, activated: bool) -> bool {
        for attachment in attachments
            .iter()
            .filter(|attachment| !self.attachments.contains(attachment))
        {
            let Attachment {
                name,
                note,
                program_id,
                ..
            } = attachment;
            match attachment.mode {
                Some(mode) if note.is_empty() => {
                    info!(interface = %name, %mode, program_id, "attached")
                }
                Some(mode) => {
                    warn!(interface = %name, %mode, program_id, %note, "attached, but not as hoped")
                }
                None => warn!(interface = %name, %note, "not attached"),
            }
        }
        self.attachments = attachments;
        let indexes = self
            .attachments
            .iter()
            .filter(|attachment| attachment.index != 0 && (attachment.mode.is_some() || !activated))
            .map(|attachment| attachment.index)
            .collect();
        let changed = self.facts.interfaces != indexes;
        self.facts.interfaces = indexes;
        self.stale |= changed;
        changed
    }

    /// Makes the data plane true at a moment of CLOCK_MONOTONIC. Does nothing while there is no usable desired state.
    pub fn reconcile(&mut self, now: Duration) {
        self.reconcile_scope(&Scope::All, now);
    }

    /// As [`Core::reconcile`], but looks only at what something has become known of since the last one, if that is all that can
    /// have changed. What follows from the time alone is left to the next [`Core::reconcile`].
    pub fn reconcile_new(&mut self, now: Duration) {
        if self.stale || self.must_retry() {
            return self.reconcile(now);
        }
        let touched = std::mem::take(&mut self.touched);
        match Scope::of(touched, &self.facts) {
            Scope::All => self.reconcile(now),
            some => self.reconcile_scope(&some, now),
        }
    }

    fn reconcile_scope(&mut self, scope: &Scope, now: Duration) {
        if self.unreadable.is_some() {
            return;
        }
        let started = Instant::now();
        self.advance(now);
        self.touched.clear();
        if *scope == Scope::All {
            self.stale = false;
            self.brought_up = now;
        }
        let result = self.plan(scope).and_then(|plan| {
            apply(&plan.steps, &mut self.plane, &mut self.mirror)?;
            Ok(plan)
        });
        self.metrics.observe_reconcile(started.elapsed());
        let is_much = result
            .as_ref()
            .is_ok_and(|plan| memory::is_much(&plan.steps));
        match result.and_then(|plan| self.make_room(plan)) {
            Ok(steps) => self.reconciled(&steps, started),
            Err(problem) => {
                let said = format!("the data plane could not be brought up to date: {problem:#}");
                if self.failure.as_ref() != Some(&said) {
                    error!(problem = %said, "reconcile failed; trying again every second");
                }
                self.failure = Some(said);
            }
        }
        if is_much {
            memory::give_back();
        }
    }

    /// When indexes have run out because removed backends still have theirs, gives those up: configured backends go first.
    fn make_room(&mut self, plan: Plan) -> Result<Vec<Step>> {
        if plan.left_out.is_empty() {
            return Ok(plan.steps);
        }
        let now = self.facts.now;
        let mut leaving: Vec<_> = self.facts.departures.values_mut().collect();
        leaving.retain(|departure| departure.reason == departure::Reason::Removed);
        leaving.sort_by_key(|departure| departure.until);
        // What is given up already makes room, too.
        leaving.truncate(plan.left_out.len());
        let mut given_up = 0;
        for departure in leaving {
            if departure.until > now {
                departure.until = now;
                given_up += 1;
            }
        }
        if given_up > 0 {
            warn!(
                given_up,
                "the backends map is full: flows of removed backends are given up before their drain timeout"
            );
        }
        bail!(
            "the backends map is full, so that {} gets no traffic: raise `limits.backends` in the node config",
            plan.left_out.join(", ")
        );
    }

    /// Whether the last reconcile failed and is to be tried again.
    pub fn must_retry(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether a [`Core::reconcile`] is due although nothing has happened: the last one failed, or left something for later.
    pub fn has_more_to_do(&self) -> bool {
        self.must_retry()
            || self.mirror.has_unused_tables()
            || self.mirror.is_waiting()
            || self.is_leaving_due()
            || self.is_rising()
    }

    /// Whether [`Core::has_more_to_do`], so that the next reconcile looks at all.
    pub fn look_for_more(&mut self) -> bool {
        let more = self.has_more_to_do();
        self.stale |= more;
        more
    }

    /// Computes stand-ins while nothing else is to be done, for a few milliseconds; whether some are left. A host that fails takes
    /// part in many services perhaps, and then all of them are needed at once.
    pub fn make_ready(&self) -> bool {
        let started = Instant::now();
        let inputs = self
            .mirror
            .known
            .values()
            .filter_map(|table| table.inputs());
        let overlays = inputs.map(|inputs| inputs.members.overlay());
        let mut worked = false;
        for overlay in overlays.filter(|overlay| !overlay.is_ready()) {
            if started.elapsed() > READY {
                return true;
            }
            overlay.make_ready();
            worked = true;
        }
        if worked {
            memory::give_back();
        }
        false
    }

    /// Whether flows of a departing backend are to be given up at a moment after the last reconcile.
    fn is_leaving_due(&self) -> bool {
        let mut departures = self.facts.departures.values();
        departures.any(|departure| departure.until > self.brought_up)
    }

    /// Whether a backend was in its slow start at the last reconcile: requests move the time on between two.
    fn is_rising(&self) -> bool {
        let rises = |service: &Service| {
            let Some(span) = service.flows.slow_start else {
                return false;
            };
            let mut backends = service.backends.values();
            backends.any(|backend| {
                let risen = self.facts.risen.get(&target_id(service, backend));
                risen.is_some_and(|risen| *risen + span > self.brought_up)
            })
        };
        self.state.services.values().any(rises)
    }

    /// Counts the flow table, and what departing backends still get, if it is time to.
    pub fn count_flows(&mut self, now: Duration) {
        self.measure_rates(now);
        let mut services = self.state.services.values();
        let any = self.mirror.is_waiting()
            || services.any(|service| service.flows.tracking == Tracking::All)
            || self.census.as_ref().is_none_or(|census| census.entries > 0);
        if now < self.census_due || !any || self.unreadable.is_some() {
            return;
        }
        let started = Instant::now();
        let taken = census::take(&mut self.plane, &self.mirror, now);
        match taken {
            Ok(census) => {
                if let Some(last) = &self.census {
                    let recorded = census.recorded.saturating_sub(last.recorded);
                    self.evicted += (last.left() + recorded).saturating_sub(census.entries);
                }
                self.census = Some(census);
            }
            Err(problem) => {
                warn!(problem = %format!("{problem:#}"), "the flow table could not be counted")
            }
        }
        self.census_due = now + CENSUS_INTERVAL.max(started.elapsed() * CENSUS_SHARE);
    }

    /// Whether there is no usable desired state.
    pub fn is_frozen(&self) -> bool {
        self.unreadable.is_some()
    }

    /// The steps that are due.
    fn plan(&mut self, scope: &Scope) -> Result<Plan> {
        let plane = &mut self.plane;
        // A counter that cannot be read is taken for one that has counted.
        let mut is_unused = |index: u32| {
            let counter = plane.service_counter(index);
            counter.is_ok_and(|counter| counter.packets == 0)
        };
        match scope {
            Scope::All => self.mirror.unused.retain(|index| is_unused(*index)),
            Scope::Services(names) => {
                for enrolled in names
                    .iter()
                    .filter_map(|name| self.roster.services.get(name))
                {
                    let index = self.mirror.service_index(&enrolled.key);
                    let unused = index.filter(|index| self.mirror.unused.contains(index));
                    if let Some(index) = unused.filter(|index| !is_unused(*index)) {
                        self.mirror.unused.remove(&index);
                    }
                }
            }
        }
        let capacity = Capacity {
            services: self.plane.service_capacity(),
            backends: self.plane.backend_capacity(),
        };
        let facts = &mut self.facts;
        let target = wanted(&self.state, &self.roster, facts, &self.mirror, scope);
        let plane = &mut self.plane;
        // An index takes another meaning only by a change of the desired state, so its revision tells the uses apart.
        let generation = self.revision as u32;
        let plan = diff(
            &target,
            &self.mirror,
            capacity,
            generation,
            self.census.as_ref(),
            &mut |service, slots| plane.read_some_slots(service, slots),
        );
        // A plan of less is made only while no removed backend is left.
        if *scope == Scope::All {
            self.note_leaving();
        }
        plan
    }

    fn reconciled(&mut self, steps: &[Step], started: Instant) {
        if self.failure.take().is_some() {
            info!("the data plane is up to date again");
        }
        if let Some(announcing) = self.announcing.as_mut().filter(|_| !steps.is_empty()) {
            announcing.published();
        }
        for step in steps {
            if let Step::StoreSlots {
                name, moved, table, ..
            } = step
                && *moved > 0
            {
                self.metrics.table_changed(name, u64::from(*moved));
                let micros = started.elapsed().as_micros() as u64;
                info!(service = %name, slots = moved, waiting = table.waiting(), micros, "table changed");
            }
            if let Step::RemoveService { key } = step {
                let (address, port) = (IpAddr::from(key.address), u16::from_be(key.port));
                info!(%address, port, protocol = key.protocol, "service removed from the data plane");
            }
        }
    }

    /// The desired state.
    ///
    /// # Errors
    /// While there is no usable one.
    pub fn state_view(&self) -> Result<StateView, ErrorBody> {
        self.usable()?;
        Ok(StateView {
            revision: self.revision,
            state: StateSpec::from(&self.state),
        })
    }

    /// An error while there is no usable desired state: what would be shown is not what is in force.
    pub(super) fn usable(&self) -> Result<(), ErrorBody> {
        match &self.unreadable {
            None => Ok(()),
            Some(said) => Err(ErrorBody::new(ErrorCode::Failed, said.clone())),
        }
    }
}
