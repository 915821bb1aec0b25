//! The core's state in the API's words.

use super::{core::Core, target_id};
use crate::{
    api::protocol::{
        BackendStats, BackendView, ErrorBody, FlowStats, HealthView, InterfaceStatus, QuicStats,
        QuicView, ServiceStats, ServiceView, Stats, Status, VerdictStats,
    },
    dataplane::{Attachment, DataPlane},
    health::state::HealthState,
    overlay::Availability,
    plan::{
        select::{Condition, Selection, select},
        target::{backend_id, service_key},
    },
    spec::{Backend, HealthCheck, Service, mode_name},
};
use anyhow::Result;
use lb_common::{
    flow_table::FlowEvent,
    verdict::{Action, Verdict},
};
use std::time::Duration;

/// What the last probes of a backend said.
#[derive(Clone, Debug, Default)]
pub struct ProbeMemory {
    /// Why the last probe failed; empty when it did not.
    pub detail: String,
    /// How long the last successful probe took.
    pub latency: Option<Duration>,
}

impl<P: DataPlane> Core<P> {
    /// `GET /v1/status`.
    pub fn status(&self, uptime: Duration) -> Status {
        let selections: Vec<(&Service, Selection)> = self
            .state
            .services
            .values()
            .map(|service| (service, select(service, &self.facts)))
            .collect();
        let active = selections
            .iter()
            .flat_map(|(_, selection)| selection.backends())
            .filter(|chosen| chosen.refusal.is_none());
        let backends_active = active.count() as u64;
        let warnings = self.warnings(&selections);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: uptime.as_secs(),
            condition: if warnings.is_empty() {
                "ok"
            } else {
                "degraded"
            }
            .into(),
            warnings,
            revision: self.revision,
            interfaces: self.interfaces(),
            services: self.state.services.len() as u64,
            backends: self
                .state
                .services
                .values()
                .map(|service| service.backends.len() as u64)
                .sum(),
            backends_active,
            node: self
                .announcing
                .as_ref()
                .map(|announcing| announcing.node(self.facts.now)),
        }
    }

    fn interfaces(&self) -> Vec<InterfaceStatus> {
        let view = |attachment: &Attachment| InterfaceStatus {
            name: attachment.name.clone(),
            index: attachment.index,
            mode: attachment
                .mode
                .map_or_else(|| "none".into(), |mode| mode.to_string()),
            program_id: attachment.program_id,
            note: attachment.note.clone(),
        };
        self.attachments.iter().map(view).collect()
    }

    fn warnings(&self, selections: &[(&Service, Selection)]) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .unreadable
            .iter()
            .chain(&self.failure)
            .cloned()
            .collect();
        for attachment in &self.attachments {
            if !attachment.note.is_empty() {
                warnings.push(format!(
                    "interface {}: {}",
                    attachment.name, attachment.note
                ));
            }
        }
        for (service, selection) in selections {
            let said = match selection.condition {
                Condition::Up | Condition::Starting => continue,
                Condition::AllDownOpen => {
                    "every backend is down; all get traffic (when_all_down: open)"
                }
                Condition::AllDownClosed => {
                    "every backend is down; packets are dropped (when_all_down: closed)"
                }
                Condition::NoBackends => {
                    "no backend can get traffic; packets are dropped (see `lbctl backend list`)"
                }
            };
            warnings.push(format!("service {}: {said}", service.name));
        }
        if let Some(announcing) = &self.announcing {
            warnings.extend(announcing.warnings());
        }
        warnings.extend(self.notices.iter().cloned());
        warnings
    }

    /// `GET /v1/services`.
    ///
    /// # Errors
    /// While there is no usable desired state.
    pub fn services(&self) -> Result<Vec<ServiceView>, ErrorBody> {
        self.usable()?;
        Ok(self.service_views())
    }

    fn service_views(&self) -> Vec<ServiceView> {
        self.state
            .services
            .values()
            .map(|service| self.service(service))
            .collect()
    }

    fn service(&self, service: &Service) -> ServiceView {
        let selection = select(service, &self.facts);
        let backends = service.backends.values();
        ServiceView {
            name: service.name.to_string(),
            address: service.address.to_string(),
            protocol: service.protocol.as_str().into(),
            port: service.port,
            mode: mode_name(service.mode).into(),
            gue_port: service.gue_port,
            hash: service.hash.as_str().into(),
            when_all_down: service.when_all_down.as_str().into(),
            echo: service.echo,
            quic: service.quic.map(|quic| QuicView {
                config_rotation: quic.config_rotation,
                server_id_length: quic.server_id_length,
            }),
            tracking: service.flows.tracking.as_str().into(),
            on_down: service.flows.on_down.as_str().into(),
            drain_timeout_ms: service.flows.drain_timeout.as_millis() as u64,
            udp_settle_ms: service.flows.udp_settle.as_millis() as u64,
            slow_start_ms: service.flows.slow_start.map(|span| span.as_millis() as u64),
            condition: selection.condition.as_str().into(),
            health: service.health.as_ref().map(health_view),
            backends: backends
                .map(|backend| self.backend(service, backend, &selection))
                .collect(),
        }
    }

    /// Slots of a backend as owner for new flows.
    fn slots(&self, service: &Service, backend: &Backend) -> u32 {
        let table = self.mirror.table(&service_key(service));
        let index = self.mirror.backend_index(backend_id(service, backend));
        let slots = table
            .zip(index)
            .and_then(|(table, index)| table.shares().get(&index));
        slots.copied().unwrap_or(0)
    }

    pub(super) fn backend(
        &self,
        service: &Service,
        backend: &Backend,
        selection: &Selection,
    ) -> BackendView {
        let id = target_id(service, backend);
        let memory = self.probes.get(&id).cloned().unwrap_or_default();
        let health = match (&service.health, self.facts.health.get(&id)) {
            (None, _) => "unprobed",
            (Some(_), Some(HealthState::Up)) => "up",
            (Some(_), Some(HealthState::Down)) => "down",
            (Some(_), Some(HealthState::Unknown) | None) => "unknown",
        };
        let (next_hop, next_hop_detail) = match self.facts.next_hops.get(&backend.address) {
            Some(Ok(hop)) => ("resolved", hop.to_string()),
            Some(Err(unresolved)) => ("unresolved", unresolved.to_string()),
            None => ("unresolved", "being looked up".into()),
        };
        let inactive = selection.refusal(&backend.name);
        let active = inactive.is_none();
        let inactive_reason = match inactive {
            // The verdict of the probes is the reason: what they found is the reason behind it.
            Some(reason) if reason == health && !memory.detail.is_empty() => {
                format!("{reason}: {}", memory.detail)
            }
            reason => reason.unwrap_or_default().to_owned(),
        };
        BackendView {
            service: service.name.to_string(),
            name: backend.name.to_string(),
            address: backend.address.to_string(),
            weight: backend.weight,
            drain: backend.drain,
            server_id: backend.server_id.map(|id| id.to_string()),
            health: health.into(),
            health_detail: if health == "up" {
                String::new()
            } else {
                memory.detail
            },
            probe_us: memory.latency.map(|latency| latency.as_micros() as u64),
            next_hop: next_hop.into(),
            next_hop_detail,
            slots: self.slots(service, backend),
            active,
            slow_start_percent: partial(selection.availability(&backend.name)),
            inactive_reason,
        }
    }

    /// `GET /v1/stats`.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn stats(&mut self) -> Result<Stats> {
        let packets = self.plane.verdicts()?;
        let verdicts = Verdict::ALL
            .iter()
            .zip(packets)
            .map(|(verdict, packets)| VerdictStats {
                name: verdict.name().into(),
                action: action(verdict.action()).into(),
                description: verdict.description().into(),
                packets,
            });
        let verdicts = verdicts.collect();
        let mut services = Vec::new();
        for service in self.state.services.values() {
            services.push(service_stats(service, &self.mirror, &mut self.plane)?);
        }
        Ok(Stats {
            verdicts,
            services,
            flows: self.flow_stats()?,
        })
    }
}

impl<P: DataPlane> Core<P> {
    fn flow_stats(&mut self) -> Result<FlowStats> {
        let events = self.plane.flow_events()?;
        let count = |event: FlowEvent| events.get(event as usize).copied().unwrap_or(0);
        Ok(FlowStats {
            entries: self.census.as_ref().map_or(0, |census| census.left()),
            capacity: self.plane.flow_capacity().into(),
            slots_waiting: self.mirror.waiting(),
            hits: count(FlowEvent::Hit),
            recorded: count(FlowEvent::Recorded),
            replaced: count(FlowEvent::Replaced),
            failed: count(FlowEvent::Failed),
            evicted: self.evicted,
            quic: QuicStats {
                routed: count(FlowEvent::QuicRouted),
                short: count(FlowEvent::QuicShort),
                other_config: count(FlowEvent::QuicOtherConfig),
                unknown: count(FlowEvent::QuicUnknown),
                gone: count(FlowEvent::QuicGone),
            },
        })
    }

    /// Metrics in Prometheus text format. Counters that cannot be read keep their last value, which is said in the log.
    pub fn metrics_text(&mut self, uptime: Duration) -> String {
        match self.stats() {
            Ok(stats) => {
                let (services, status) = (self.service_views(), self.status(uptime));
                self.metrics.set_views(&services, &stats, &status);
                let views = self
                    .announcing
                    .as_ref()
                    .map(|announcing| announcing.views());
                self.metrics.set_announcements(&views.unwrap_or_default());
            }
            Err(problem) => {
                tracing::warn!(problem = %format!("{problem:#}"), "the counters could not be read")
            }
        }
        self.metrics.encode()
    }
}

fn service_stats(
    service: &Service,
    mirror: &crate::plan::mirror::Mirror,
    plane: &mut impl DataPlane,
) -> Result<ServiceStats> {
    let counter = match mirror.service_index(&service_key(service)) {
        Some(index) => plane.service_counter(index)?,
        None => Default::default(),
    };
    let mut backends = Vec::new();
    for backend in service.backends.values() {
        let counter = match mirror.backend_index(backend_id(service, backend)) {
            Some(index) => plane.backend_counter(index)?,
            None => Default::default(),
        };
        let name = backend.name.to_string();
        backends.push(BackendStats {
            name,
            packets: counter.packets,
            bytes: counter.bytes,
        });
    }
    Ok(ServiceStats {
        name: service.name.to_string(),
        packets: counter.packets,
        bytes: counter.bytes,
        backends,
    })
}

/// An availability between none and full, in percent.
fn partial(availability: Availability) -> Option<u8> {
    if availability == Availability::NONE || availability == Availability::FULL {
        return None;
    }
    let percent = availability.parts() * 100 / Availability::FULL.parts();
    Some(percent.clamp(1, 99) as u8)
}

fn health_view(check: &HealthCheck) -> HealthView {
    HealthView {
        kind: "tcp".into(),
        port: check.port,
        interval_ms: check.interval.as_millis() as u64,
        timeout_ms: check.timeout.as_millis() as u64,
        rise: check.rise,
        fall: check.fall,
        jitter_percent: check.jitter_percent,
    }
}

pub(super) const fn action(action: Action) -> &'static str {
    match action {
        Action::Forward => "forward",
        Action::Pass => "pass",
        Action::Drop => "drop",
        Action::Answer => "answer",
    }
}
