//! A service's probe: what was written, with the defaults for what was not.

use super::Reader;
use crate::spec::{
    field,
    raw::HealthSpec,
    valid::{HealthCheck, Protocol},
};
use std::time::Duration;

const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(3_600);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
const MIN_TIMEOUT: Duration = Duration::from_millis(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_RISE: u32 = 2;
const DEFAULT_FALL: u32 = 3;
const DEFAULT_JITTER_PERCENT: u32 = 10;

impl HealthCheck {
    /// The probe of a service that says nothing about probes: none when there is no TCP port to try.
    pub(in crate::spec) fn default_of(protocol: Protocol, port: u16) -> Option<Self> {
        (protocol == Protocol::Tcp && port != 0).then_some(Self {
            port,
            interval: DEFAULT_INTERVAL,
            timeout: DEFAULT_TIMEOUT,
            rise: DEFAULT_RISE,
            fall: DEFAULT_FALL,
            jitter_percent: DEFAULT_JITTER_PERCENT,
        })
    }
}

impl Reader {
    /// The outer option is none when something is wrong, the inner one when the service is not probed.
    pub(super) fn health(
        &mut self,
        path: &str,
        spec: Option<&HealthSpec>,
        protocol: Option<Protocol>,
        service_port: Option<u16>,
    ) -> Option<Option<HealthCheck>> {
        let Some(spec) = spec else {
            return Some(HealthCheck::default_of(protocol?, service_port?));
        };
        let at = |field: &str| format!("{path}.{field}");
        let kind = spec.kind.as_deref().unwrap_or("tcp");
        let probed = self.take(at("type"), kind, field::probed(kind));
        let mut count = |name: &str, value: Option<i64>, least, most, default| match value {
            Some(value) => self.take(at(name), value, field::number::<u32>(value, least, most)),
            None => Some(default),
        };
        let rise = count("rise", spec.rise, 1, 100, DEFAULT_RISE);
        let fall = count("fall", spec.fall, 1, 100, DEFAULT_FALL);
        let jitter_percent = count(
            "jitter_percent",
            spec.jitter_percent,
            0,
            50,
            DEFAULT_JITTER_PERCENT,
        );
        let times = self.times(path, spec);
        let port = match spec.port {
            Some(port) => self.take(at("port"), port, field::number(port, 1, u16::MAX)),
            None if probed == Some(false) => Some(0),
            None => self.default_probe_port(path, protocol?, service_port?),
        };
        let (interval, timeout) = times?;
        let check = HealthCheck {
            port: port?,
            interval,
            timeout,
            rise: rise?,
            fall: fall?,
            jitter_percent: jitter_percent?,
        };
        Some(probed?.then_some(check))
    }

    fn times(&mut self, path: &str, spec: &HealthSpec) -> Option<(Duration, Duration)> {
        let interval = match &spec.interval {
            Some(text) => {
                let parsed = field::duration(text, MIN_INTERVAL, MAX_INTERVAL);
                self.take(format!("{path}.interval"), text, parsed)
            }
            None => Some(DEFAULT_INTERVAL),
        };
        // A bad interval must not make a good timeout look bad.
        let most = interval.unwrap_or(MAX_INTERVAL);
        let timeout = match &spec.timeout {
            Some(text) => {
                let parsed = field::duration(text, MIN_TIMEOUT, most);
                self.take(format!("{path}.timeout"), text, parsed)
            }
            None => Some(DEFAULT_TIMEOUT.min(most)),
        };
        Some((interval?, timeout?))
    }

    fn default_probe_port(
        &mut self,
        path: &str,
        protocol: Protocol,
        service_port: u16,
    ) -> Option<u16> {
        let lack = match (protocol, service_port) {
            (Protocol::Udp, _) => "is missing: a TCP probe cannot try a UDP port",
            (Protocol::Tcp, 0) => "is missing: the service has no single port to try",
            (Protocol::Tcp, port) => return Some(port),
        };
        self.refuse(
            format!("{path}.port"),
            "",
            lack,
            "name a TCP port of the backends, or set `type: none`",
        );
        None
    }
}
