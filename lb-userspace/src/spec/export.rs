//! From what is valid back to what is written: in order of name, so that equal states are equal texts. A probe that
//! a service would have anyway is left out; any other is written in full. What becomes of flows is left out field by
//! field where it is the default.

use super::{
    raw::{BackendSpec, HealthSpec, QuicSpec, ServiceSpec, StateSpec},
    valid::{AllDown, Backend, FlowPolicy, Hash, HealthCheck, OnDown, Service, State, Tracking},
};
use lb_common::{backend::Mode, gue};
use std::time::Duration;

/// `ipip`, `l2` or `gue`.
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Ipip => "ipip",
        Mode::L2 => "l2",
        Mode::Gue => "gue",
    }
}

impl Hash {
    /// `5-tuple`, `source-ip` or `source-ip-port`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FiveTuple => "5-tuple",
            Self::SourceIp => "source-ip",
            Self::SourceIpPort => "source-ip-port",
        }
    }
}

impl AllDown {
    /// `open` or `closed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

impl Tracking {
    /// `moved`, `all` or `none`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

impl OnDown {
    /// `reset` or `keep`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Keep => "keep",
        }
    }
}

impl From<&State> for StateSpec {
    fn from(state: &State) -> Self {
        Self {
            services: state.services.values().map(ServiceSpec::from).collect(),
        }
    }
}

impl From<&Service> for ServiceSpec {
    fn from(service: &Service) -> Self {
        let (flows, usual) = (&service.flows, FlowPolicy::default());
        let unusual = |span: Duration, usual| (span != usual).then(|| time(span));
        Self {
            name: service.name.to_string(),
            address: service.address.to_string(),
            protocol: service.protocol.as_str().into(),
            port: service.port.into(),
            mode: mode_name(service.mode).into(),
            gue_port: service
                .gue_port
                .filter(|port| *port != gue::DEFAULT_PORT)
                .map(i64::from),
            hash: (service.hash != Hash::default()).then(|| service.hash.as_str().into()),
            when_all_down: service.when_all_down.as_str().into(),
            health: health(service),
            tracking: (flows.tracking != usual.tracking).then(|| flows.tracking.as_str().into()),
            on_down: (flows.on_down != usual.on_down).then(|| flows.on_down.as_str().into()),
            drain_timeout: unusual(flows.drain_timeout, usual.drain_timeout),
            udp_settle: unusual(flows.udp_settle, usual.udp_settle),
            slow_start: flows.slow_start.map(time),
            echo: service.echo,
            quic: service.quic.map(|quic| QuicSpec {
                config_rotation: quic.config_rotation.into(),
                server_id_length: quic.server_id_length.into(),
            }),
            backends: service.backends.values().map(BackendSpec::from).collect(),
        }
    }
}

impl From<&Backend> for BackendSpec {
    fn from(backend: &Backend) -> Self {
        Self {
            name: backend.name.to_string(),
            address: backend.address.to_string(),
            weight: backend.weight.into(),
            drain: backend.drain,
            server_id: backend.server_id.map(|id| id.to_string()),
        }
    }
}

fn health(service: &Service) -> Option<HealthSpec> {
    if service.health == HealthCheck::default_of(service.protocol, service.port) {
        return None;
    }
    Some(match &service.health {
        None => HealthSpec {
            kind: Some("none".into()),
            ..HealthSpec::default()
        },
        Some(check) => HealthSpec {
            kind: Some("tcp".into()),
            port: Some(check.port.into()),
            interval: Some(time(check.interval)),
            timeout: Some(time(check.timeout)),
            rise: Some(check.rise.into()),
            fall: Some(check.fall.into()),
            jitter_percent: Some(check.jitter_percent.into()),
        },
    })
}

fn time(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

#[cfg(test)]
mod tests;
