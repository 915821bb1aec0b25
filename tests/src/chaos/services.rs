//! The services of a run, as one file for `lbctl apply`, and the commands that change them.

use super::server::{TCP_PORT, UDP_PORT};
use crate::topology::{Backend, VIP_V4};
use std::{net::Ipv4Addr, time::Duration};

/// The service over TCP, and the one over UDP.
pub(super) const NAMES: [&str; 2] = ["www", "quic"];

/// How long flows stay with a backend that gets no new ones: longer than a run.
pub(super) const DRAIN: Duration = Duration::from_secs(300);

/// Both services in this mode, with every backend: name and address. Flows stay with a backend that gets no new ones for
/// `drain`.
pub(super) fn yaml(mode: &str, backends: &[(&str, Ipv4Addr)], drain: Duration) -> String {
    let drain = drain.as_secs();
    let settle = format!("    udp_settle: {}s\n", drain.min(10));
    // A machine that is busy, or stands still for a second, must not take backends down: their connections would be
    // counted as broken. Five probes are lost only to a server that is dead.
    let health = format!(
        "{{ type: tcp, port: {TCP_PORT}, interval: 500ms, timeout: 500ms, rise: 2, fall: 5 }}"
    );
    let backends: String = backends
        .iter()
        .map(|(name, v4)| format!("      - {{ name: {name}, address: {v4} }}\n"))
        .collect();
    let service = |name, protocol, port, settle| {
        format!(
            "  - name: {name}
    address: {VIP_V4}
    protocol: {protocol}
    port: {port}
    mode: {mode}
    drain_timeout: {drain}s
{settle}    health: {health}
    backends:
{backends}"
        )
    };
    let [tcp, udp] = NAMES;
    format!(
        "services:\n{}{}",
        service(tcp, "tcp", TCP_PORT, ""),
        service(udp, "udp", UDP_PORT, &settle)
    )
}

/// The `lbctl` command that adds a backend again.
pub(super) fn add(backend: &Backend, service: &str) -> String {
    let Backend { name, v4, .. } = backend;
    format!("backend add {name} --service {service} --address {v4}")
}

/// The `lbctl` command that removes a backend.
pub(super) fn remove(backend: &Backend, service: &str) -> String {
    format!("backend remove {} --service {service}", backend.name)
}

/// The `lbctl` command that drains a backend.
pub(super) fn drain(backend: &Backend, service: &str) -> String {
    format!("backend drain {} --service {service}", backend.name)
}

/// The `lbctl` command that ends the drain of a backend.
pub(super) fn undrain(backend: &Backend, service: &str) -> String {
    format!("backend undrain {} --service {service}", backend.name)
}

/// The `lbctl` command that changes a backend's weight.
pub(super) fn weight(backend: &Backend, service: &str, weight: u16) -> String {
    format!(
        "backend set {} --service {service} --weight {weight}",
        backend.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_userspace::spec::{Limits, State, yaml as spec_yaml};

    #[test]
    fn the_file_is_valid() {
        let limits = Limits::default();
        for drain in [Duration::from_secs(1), DRAIN] {
            let text = yaml("ipip", &[("backend-1", Ipv4Addr::new(10, 3, 1, 2))], drain);
            let spec = spec_yaml::state_from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            let state = State::parse(&spec, &limits).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(state.services.len(), NAMES.len());
        }
    }
}
