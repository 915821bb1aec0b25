//! The daemon and its node: what never changes while it runs, and its status.

use crate::api::{announce::AnnouncementView, protocol::Status};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use std::{sync::atomic::AtomicU64, time::SystemTime};

type Count = Gauge<u64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
    commit: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabels {
    interface: String,
    mode: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AddressLabels {
    address: String,
}

/// The node as a whole.
#[derive(Debug, Default)]
pub(super) struct NodeMetrics {
    interface_attached: Family<InterfaceLabels, Gauge>,
    services: Count,
    backends: Count,
    backends_active: Count,
    state_revision: Count,
    draining: Gauge,
    announced: Family<AddressLabels, Gauge>,
    announce_failing: Family<AddressLabels, Gauge>,
}

/// Registers what never changes while the daemon runs.
pub(super) fn register_process(registry: &mut Registry, commit: &str, started: SystemTime) {
    let build = BuildLabels {
        version: env!("CARGO_PKG_VERSION"),
        commit: commit.into(),
    };
    registry.register(
        "build",
        "Version and commit of the running lbd",
        Info::new(build),
    );
    let start_time: Gauge<f64, AtomicU64> = Gauge::default();
    // A clock before 1970 is shown as 1970.
    start_time.set(
        started
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64(),
    );
    registry.register_with_unit(
        "start_time",
        "When lbd started, in Unix time",
        Unit::Seconds,
        start_time,
    );
}

impl NodeMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let node = Self::default();
        let attached = node.interface_attached.clone();
        registry.register(
            "interface_attached",
            "1 if the XDP program is attached to the interface",
            attached,
        );
        registry.register("services", "Services", node.services.clone());
        registry.register(
            "backends",
            "Backends over all services",
            node.backends.clone(),
        );
        registry.register(
            "backends_active",
            "Backends that get traffic",
            node.backends_active.clone(),
        );
        registry.register(
            "state_revision",
            "Revision of the desired state",
            node.state_revision.clone(),
        );
        registry.register(
            "node_draining",
            "1 if the node is drained or on its way there",
            node.draining.clone(),
        );
        registry.register(
            "announced",
            "1 if the VIP is announced, 0 if it is withdrawn",
            node.announced.clone(),
        );
        registry.register(
            "announce_failing",
            "1 if the driver could not do what is wanted for the VIP",
            node.announce_failing.clone(),
        );
        node
    }

    pub(super) fn set(&self, status: &Status) {
        self.interface_attached.clear();
        for interface in &status.interfaces {
            let labels = InterfaceLabels {
                interface: interface.name.clone(),
                mode: interface.mode.clone(),
            };
            self.interface_attached
                .get_or_create(&labels)
                .set(i64::from(interface.mode != "none"));
        }
        self.services.set(status.services);
        self.backends.set(status.backends);
        self.backends_active.set(status.backends_active);
        self.state_revision.set(status.revision);
        let node = status.node.as_ref();
        self.draining
            .set(node.is_some_and(|node| node.state != "serving").into());
    }

    pub(super) fn set_announcements(&self, views: &[AnnouncementView]) {
        self.announced.clear();
        self.announce_failing.clear();
        for view in views {
            let labels = AddressLabels {
                address: view.address.clone(),
            };
            let is_announced = view.state != "withdrawn";
            self.announced
                .get_or_create(&labels)
                .set(is_announced.into());
            self.announce_failing
                .get_or_create(&labels)
                .set((!view.problem.is_empty()).into());
        }
    }
}
