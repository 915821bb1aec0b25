//! The services of a run, as one file for `lbctl apply`, and the commands that change them.

use super::server::{TCP_PORT, UDP_PORT};
use crate::topology::{Backend, VIP_V4};
use std::time::Duration;

/// The service over TCP, and the one over UDP.
pub(super) const NAMES: [&str; 2] = ["www", "quic"];

/// How long flows stay with a backend that gets no new ones: longer than a run.
pub(super) const DRAIN: Duration = Duration::from_secs(300);

/// How services are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// Without the fields of drain: an `lbd` that knows none of them takes it.
    Plain,
    /// Flows stay for this long.
    Draining(Duration),
}

/// Both services, with every backend.
pub(super) fn yaml(backends: &[Backend], form: Form) -> String {
    let flows = |udp: bool| match form {
        Form::Plain => String::new(),
        Form::Draining(time) => {
            let seconds = time.as_secs();
            let settle = if udp {
                format!("    udp_settle: {}s\n", seconds.min(10))
            } else {
                String::new()
            };
            format!("    drain_timeout: {seconds}s\n{settle}")
        }
    };
    // A refused probe fails at once. The timeout is for lost ones, and as long as it may be: a busy machine must not take
    // backends down.
    let health = format!(
        "{{ type: tcp, port: {TCP_PORT}, interval: 200ms, timeout: 200ms, rise: 2, fall: 2 }}"
    );
    let backends: String = backends
        .iter()
        .map(|backend| {
            format!(
                "      - {{ name: {}, address: {} }}\n",
                backend.name, backend.v4
            )
        })
        .collect();
    let service = |name, protocol, port, udp| {
        format!(
            "  - name: {name}
    address: {VIP_V4}
    protocol: {protocol}
    port: {port}
    mode: ipip
{}    health: {health}
    backends:
{backends}",
            flows(udp)
        )
    };
    let [tcp, udp] = NAMES;
    format!(
        "services:\n{}{}",
        service(tcp, "tcp", TCP_PORT, false),
        service(udp, "udp", UDP_PORT, true)
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

    #[test]
    fn the_file_is_valid_in_both_forms() {
        for form in [Form::Plain, Form::Draining(DRAIN)] {
            let text = yaml(&[], form);
            assert_eq!(
                text.contains("drain_timeout"),
                matches!(form, Form::Draining(_)),
                "{text}"
            );
        }
    }
}
