//! From what is valid back to what is written: in order of name, so that equal states are equal texts. A probe that
//! a service would have anyway is left out; any other is written in full.

use super::{
    raw::{BackendSpec, HealthSpec, ServiceSpec, StateSpec},
    valid::{AllDown, Backend, HealthCheck, Service, State},
};
use lb_common::backend::Mode;
use std::time::Duration;

/// `ipip` or `l2`.
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Ipip => "ipip",
        Mode::L2 => "l2",
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

impl From<&State> for StateSpec {
    fn from(state: &State) -> Self {
        Self {
            services: state.services.values().map(ServiceSpec::from).collect(),
        }
    }
}

impl From<&Service> for ServiceSpec {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.to_string(),
            address: service.address.to_string(),
            protocol: service.protocol.as_str().into(),
            port: service.port.into(),
            mode: mode_name(service.mode).into(),
            when_all_down: service.when_all_down.as_str().into(),
            health: health(service),
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
        }
    }
}

fn health(service: &Service) -> Option<HealthSpec> {
    if service.health == HealthCheck::default_of(service.protocol, service.port) {
        return None;
    }
    let text = |span: Duration| Some(humantime::format_duration(span).to_string());
    Some(match &service.health {
        None => HealthSpec {
            kind: Some("none".into()),
            ..HealthSpec::default()
        },
        Some(check) => HealthSpec {
            kind: Some("tcp".into()),
            port: Some(check.port.into()),
            interval: text(check.interval),
            timeout: text(check.timeout),
            rise: Some(check.rise.into()),
            fall: Some(check.fall.into()),
            jitter_percent: Some(check.jitter_percent.into()),
        },
    })
}

#[cfg(test)]
mod tests;
