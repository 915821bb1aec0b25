//! The flow table. Set afresh as a whole, like traffic.

use crate::api::protocol::FlowStats;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::sync::atomic::{AtomicU64, Ordering};

type Count = Gauge<u64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    event: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// The flow table as it was last counted, and what the program did with it.
#[derive(Debug, Default)]
pub(super) struct FlowMetrics {
    entries: Count,
    capacity: Count,
    slots_waiting: Count,
    events: Family<EventLabels, Counter>,
    quic: Family<ResultLabels, Counter>,
}

impl FlowMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let flows = Self::default();
        registry.register(
            "flow_entries",
            "Entries of the flow table when it was last counted",
            flows.entries.clone(),
        );
        registry.register(
            "flow_capacity",
            "Flows that the flow table is made for (limits.flows)",
            flows.capacity.clone(),
        );
        let waiting = "Slots that were moved and wait until no flow depends on that any more";
        registry.register("slots_waiting", waiting, flows.slots_waiting.clone());
        let events = "What happened in the flow table: hit (a packet followed an entry), recorded, replaced, failed, \
                      evicted (put out to make room, as far as counting tells)";
        registry.register("flow_events", events, flows.events.clone());
        let quic = "Packets of services with quic: routed (where the connection ID says); by their flows since the ID was \
                    short, other_config, unknown (nobody's server ID) or gone (its backend's flows are given up)";
        registry.register("quic_packets", quic, flows.quic.clone());
        flows
    }

    pub(super) fn set(&self, flows: &FlowStats) {
        self.entries.set(flows.entries);
        self.capacity.set(flows.capacity);
        self.slots_waiting.set(flows.slots_waiting);
        let events = [
            ("hit", flows.hits),
            ("recorded", flows.recorded),
            ("replaced", flows.replaced),
            ("failed", flows.failed),
            ("evicted", flows.evicted),
        ];
        for (event, count) in events {
            let counter = self.events.get_or_create(&EventLabels { event });
            counter.inner().store(count, Ordering::Relaxed);
        }
        let results = [
            ("routed", flows.quic.routed),
            ("short", flows.quic.short),
            ("other_config", flows.quic.other_config),
            ("unknown", flows.quic.unknown),
            ("gone", flows.quic.gone),
        ];
        for (result, count) in results {
            let counter = self.quic.get_or_create(&ResultLabels { result });
            counter.inner().store(count, Ordering::Relaxed);
        }
    }
}
