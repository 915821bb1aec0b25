//! What happened since the daemon started, counted when it happens.

use super::{ServiceLabels, service_labels};
use crate::health::state::Outcome;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::time::Duration;

/// Upper bounds in seconds: from a probe on the same switch to one that nearly timed out.
const PROBE_BUCKETS: [f64; 12] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0,
];
/// Upper bounds in seconds: from nothing to do to thousands of backends.
const RECONCILE_BUCKETS: [f64; 9] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    service: String,
    result: &'static str,
}

/// What happened since the daemon started.
#[derive(Debug)]
pub(super) struct EventMetrics {
    table_changes: Family<ServiceLabels, Counter>,
    table_slots_changed: Family<ServiceLabels, Counter>,
    probe_duration: Family<ServiceLabels, Histogram, fn() -> Histogram>,
    probes: Family<ProbeLabels, Counter>,
    reconcile_duration: Histogram,
    changes_refused: Counter,
}

impl EventMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let events = Self {
            table_changes: Family::default(),
            table_slots_changed: Family::default(),
            probe_duration: Family::new_with_constructor(|| Histogram::new(PROBE_BUCKETS)),
            probes: Family::default(),
            reconcile_duration: Histogram::new(RECONCILE_BUCKETS),
            changes_refused: Counter::default(),
        };
        registry.register(
            "table_changes",
            "Changes of a service's table",
            events.table_changes.clone(),
        );
        let slots = "Slots that got another owner";
        registry.register(
            "table_slots_changed",
            slots,
            events.table_slots_changed.clone(),
        );
        let probe = "Time that successful probes took";
        registry.register_with_unit(
            "probe_duration",
            probe,
            Unit::Seconds,
            events.probe_duration.clone(),
        );
        let probes = "Probes by result; not_probed: this host could not ask, which says nothing of the backend";
        registry.register("probes", probes, events.probes.clone());
        let reconcile = "Time from facts to a written data plane";
        let duration = events.reconcile_duration.clone();
        registry.register_with_unit("reconcile_duration", reconcile, Unit::Seconds, duration);
        let refused = "Changes of the desired state that were refused";
        registry.register("changes_refused", refused, events.changes_refused.clone());
        events
    }

    /// Starts a service's counters at zero, so that the first increase is seen as one.
    pub(super) fn begin(&self, service: &str) {
        self.table_changed_by(service, 0, 0);
        for outcome in Outcome::ALL {
            self.probed(service, outcome, 0);
        }
    }

    pub(super) fn probe(&self, service: &str, outcome: Outcome, latency: Option<Duration>) {
        self.probed(service, outcome, 1);
        if let (Outcome::Success, Some(latency)) = (outcome, latency) {
            self.probe_duration
                .get_or_create(&service_labels(service))
                .observe(latency.as_secs_f64());
        }
    }

    pub(super) fn reconcile(&self, took: Duration) {
        self.reconcile_duration.observe(took.as_secs_f64());
    }

    pub(super) fn table_changed(&self, service: &str, slots: u64) {
        self.table_changed_by(service, 1, slots);
    }

    pub(super) fn change_refused(&self) {
        self.changes_refused.inc();
    }

    pub(super) fn forget(&self, service: &str) {
        self.table_changes.remove(&service_labels(service));
        self.table_slots_changed.remove(&service_labels(service));
        self.probe_duration.remove(&service_labels(service));
        for outcome in Outcome::ALL {
            self.probes.remove(&ProbeLabels {
                service: service.into(),
                result: outcome.as_str(),
            });
        }
    }

    fn table_changed_by(&self, service: &str, changes: u64, slots: u64) {
        self.table_changes
            .get_or_create(&service_labels(service))
            .inc_by(changes);
        self.table_slots_changed
            .get_or_create(&service_labels(service))
            .inc_by(slots);
    }

    fn probed(&self, service: &str, outcome: Outcome, probes: u64) {
        self.probes
            .get_or_create(&ProbeLabels {
                service: service.into(),
                result: outcome.as_str(),
            })
            .inc_by(probes);
    }
}
