//! Prometheus metrics of the daemon, and how they are kept true. The modules have the families, each with its meaning;
//! [`serve`] answers scrapes. Names in the code lack what the registry adds: the prefix `guideway_`, the `_total` of
//! counters, and the unit.
//!
//! Two kinds. What the kernel or the state knows (traffic, health, slots) is set afresh by [`Metrics::set_views`] before
//! each scrape; what only happens (probes, table changes) is counted when it happens.
//!
//! **Invariant.** After [`Metrics::set_views`] no series names a service or a backend that is not in the views.

mod events;
mod flows;
mod node;
mod server;
mod traffic;

pub use server::serve;

use crate::{
    api::{
        announce::AnnouncementView,
        protocol::{ServiceView, Stats, Status},
    },
    health::state::Outcome,
};
use events::EventMetrics;
use flows::FlowMetrics;
use node::{NodeMetrics, register_process};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    registry::Registry,
};
use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};
use traffic::{BackendMetrics, TrafficMetrics};

/// Prefix of every name.
const PREFIX: &str = "guideway";

/// All metrics of the daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    node: NodeMetrics,
    traffic: TrafficMetrics,
    flows: FlowMetrics,
    backends: BackendMetrics,
    events: EventMetrics,
    /// Services that a series of `events` may name.
    seen: BTreeSet<String>,
}

impl Metrics {
    /// Metrics of a daemon built from `commit` that started at `started`.
    pub fn new(commit: &str, started: SystemTime) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        register_process(&mut registry, commit, started);
        Self {
            node: NodeMetrics::register(&mut registry),
            traffic: TrafficMetrics::register(&mut registry),
            flows: FlowMetrics::register(&mut registry),
            backends: BackendMetrics::register(&mut registry),
            events: EventMetrics::register(&mut registry),
            seen: BTreeSet::new(),
            registry,
        }
    }

    /// Sets everything that is a view of the present. Series of services, backends and interfaces that are no longer
    /// there vanish.
    pub fn set_views(&mut self, services: &[ServiceView], stats: &Stats, status: &Status) {
        self.node.set(status);
        self.traffic.set(stats);
        self.flows.set(&stats.flows);
        self.backends
            .set(services.iter().flat_map(|service| &service.backends));
        let present: BTreeSet<_> = services
            .iter()
            .map(|service| service.name.clone())
            .collect();
        for gone in self.seen.difference(&present) {
            self.events.forget(gone);
        }
        for service in &present {
            self.events.begin(service);
        }
        self.seen = present;
    }

    /// Sets what is announced.
    pub fn set_announcements(&self, views: &[AnnouncementView]) {
        self.node.set_announcements(views);
    }

    /// Counts a probe; `latency` is how long the last successful one took.
    pub fn observe_probe(&mut self, service: &str, outcome: Outcome, latency: Option<Duration>) {
        self.seen.insert(service.into());
        self.events.probe(service, outcome, latency);
    }

    /// Counts a run of the reconciler.
    pub fn observe_reconcile(&self, took: Duration) {
        self.events.reconcile(took);
    }

    /// Counts a change of a service's table that gave `slots` slots another owner.
    pub fn table_changed(&mut self, service: &str, slots: u64) {
        self.seen.insert(service.into());
        self.events.table_changed(service, slots);
    }

    /// Counts a change of the desired state that was refused.
    pub fn change_refused(&self) {
        self.events.change_refused();
    }

    /// All metrics as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // A String takes all that is written to it. Were this to fail, the missing `# EOF` would tell the scraper.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabels {
    service: String,
}

fn service_labels(service: &str) -> ServiceLabels {
    ServiceLabels {
        service: service.into(),
    }
}

#[cfg(test)]
mod tests;
