//! Traffic as the kernel counts it, and the backends that get it. Set afresh as a whole: what is gone leaves no series.

use super::{ServiceLabels, service_labels};
use crate::api::protocol::{BackendView, Stats};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::atomic::Ordering;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerdictLabels {
    verdict: String,
    action: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    service: String,
    backend: String,
}

/// Counters of the data plane: absolute values, kept by the kernel.
#[derive(Debug, Default)]
pub(super) struct TrafficMetrics {
    verdicts: Family<VerdictLabels, Counter>,
    service_packets: Family<ServiceLabels, Counter>,
    service_bytes: Family<ServiceLabels, Counter>,
    backend_packets: Family<BackendLabels, Counter>,
    backend_bytes: Family<BackendLabels, Counter>,
}

/// Each backend as it is now.
#[derive(Debug, Default)]
pub(super) struct BackendMetrics {
    up: Family<BackendLabels, Gauge>,
    resolved: Family<BackendLabels, Gauge>,
    active: Family<BackendLabels, Gauge>,
    slots: Family<BackendLabels, Gauge>,
    weight: Family<BackendLabels, Gauge>,
}

impl TrafficMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let traffic = Self::default();
        let verdicts = "Packets by what became of them and why";
        registry.register("verdict_packets", verdicts, traffic.verdicts.clone());
        let bytes = "Their bytes as received, Ethernet header included";
        registry.register(
            "service_packets",
            "Packets forwarded for a service",
            traffic.service_packets.clone(),
        );
        registry.register("service_bytes", bytes, traffic.service_bytes.clone());
        registry.register(
            "backend_packets",
            "Packets forwarded to a backend",
            traffic.backend_packets.clone(),
        );
        registry.register("backend_bytes", bytes, traffic.backend_bytes.clone());
        traffic
    }

    pub(super) fn set(&self, stats: &Stats) {
        self.service_packets.clear();
        self.service_bytes.clear();
        self.backend_packets.clear();
        self.backend_bytes.clear();
        for verdict in &stats.verdicts {
            let labels = VerdictLabels {
                verdict: verdict.name.clone(),
                action: verdict.action.clone(),
            };
            set(&self.verdicts.get_or_create(&labels), verdict.packets);
        }
        for service in &stats.services {
            let name = &service.name;
            set(
                &self.service_packets.get_or_create(&service_labels(name)),
                service.packets,
            );
            set(
                &self.service_bytes.get_or_create(&service_labels(name)),
                service.bytes,
            );
            for backend in &service.backends {
                let labels = BackendLabels {
                    service: name.clone(),
                    backend: backend.name.clone(),
                };
                set(
                    &self.backend_packets.get_or_create(&labels),
                    backend.packets,
                );
                set(&self.backend_bytes.get_or_create(&labels), backend.bytes);
            }
        }
    }
}

impl BackendMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let backends = Self::default();
        let up = "1 if the backend is up or is not probed, 0 if it is down or not known yet";
        registry.register("backend_up", up, backends.up.clone());
        let resolved = "1 if the MAC address of the way to the backend is known";
        registry.register(
            "backend_next_hop_resolved",
            resolved,
            backends.resolved.clone(),
        );
        registry.register(
            "backend_active",
            "1 if the backend gets traffic",
            backends.active.clone(),
        );
        registry.register(
            "backend_slots",
            "Slots the backend owns, of 65537",
            backends.slots.clone(),
        );
        registry.register(
            "backend_weight",
            "The backend's weight",
            backends.weight.clone(),
        );
        backends
    }

    pub(super) fn set<'a>(&self, views: impl Iterator<Item = &'a BackendView>) {
        for family in [
            &self.up,
            &self.resolved,
            &self.active,
            &self.slots,
            &self.weight,
        ] {
            family.clear();
        }
        for view in views {
            let labels = BackendLabels {
                service: view.service.clone(),
                backend: view.name.clone(),
            };
            let up = matches!(view.health.as_str(), "up" | "unprobed");
            self.up.get_or_create(&labels).set(i64::from(up));
            self.resolved
                .get_or_create(&labels)
                .set(i64::from(view.next_hop == "resolved"));
            self.active
                .get_or_create(&labels)
                .set(i64::from(view.active));
            self.slots.get_or_create(&labels).set(i64::from(view.slots));
            self.weight
                .get_or_create(&labels)
                .set(i64::from(view.weight));
        }
    }
}

/// Sets a counter to the absolute value that the kernel keeps.
fn set(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}
