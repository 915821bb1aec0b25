//! Two states compared, a line for each difference, in order of name.

use crate::{
    api::protocol::ChangeLine,
    spec::{
        export::mode_name,
        valid::{Backend, HealthCheck, Name, Service, State},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What has to be done to `old` to make it `new`; empty when they are equal.
pub fn diff(old: &State, new: &State) -> Vec<ChangeLine> {
    let mut lines = Vec::new();
    for (name, before, after) in pairs(&old.services, &new.services) {
        let none = BTreeMap::new();
        lines.extend(line(
            "service",
            name.to_string(),
            before,
            after,
            describe_service,
            service_changes,
        ));
        let before = before.map_or(&none, |service| &service.backends);
        let after = after.map_or(&none, |service| &service.backends);
        for (backend, before, after) in pairs(before, after) {
            lines.extend(line(
                "backend",
                format!("{name}/{backend}"),
                before,
                after,
                describe_backend,
                backend_changes,
            ));
        }
    }
    lines
}

/// What is in either map, by name.
fn pairs<'a, T>(
    old: &'a BTreeMap<Name, T>,
    new: &'a BTreeMap<Name, T>,
) -> impl Iterator<Item = (&'a Name, Option<&'a T>, Option<&'a T>)> {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    names
        .into_iter()
        .map(|name| (name, old.get(name), new.get(name)))
}

fn line<T>(
    kind: &str,
    name: String,
    before: Option<&T>,
    after: Option<&T>,
    describe: impl Fn(&T) -> String,
    changes: impl Fn(&T, &T) -> Vec<String>,
) -> Option<ChangeLine> {
    let (action, detail) = match (before, after) {
        (None, None) => return None,
        (None, Some(after)) => ("add", describe(after)),
        (Some(_), None) => ("remove", String::new()),
        (Some(before), Some(after)) => {
            let changes = changes(before, after);
            if changes.is_empty() {
                return None;
            }
            ("change", changes.join(", "))
        }
    };
    Some(ChangeLine {
        action: action.into(),
        kind: kind.into(),
        name,
        detail,
    })
}

fn describe_service(service: &Service) -> String {
    let count = service.backends.len();
    let plural = if count == 1 { "" } else { "s" };
    format!(
        "{}, {}, {count} backend{plural}",
        vip(service),
        mode_name(service.mode)
    )
}

fn describe_backend(backend: &Backend) -> String {
    let drain = if backend.drain { ", draining" } else { "" };
    let id = match backend.server_id {
        Some(id) => format!(", server_id {id}"),
        None => String::new(),
    };
    format!("{}, weight {}{id}{drain}", backend.address, backend.weight)
}

fn gue_port(service: &Service) -> String {
    let port = service.gue_port.map(|port| port.to_string());
    port.unwrap_or_else(|| "none".into())
}

fn quic(service: &Service) -> String {
    service.quic.map_or("none".into(), |quic| {
        let (rotation, length) = (quic.config_rotation, quic.server_id_length);
        format!("(config_rotation {rotation}, server_id_length {length})")
    })
}

fn server_id(backend: &Backend) -> String {
    backend.server_id.map_or("none".into(), |id| id.to_string())
}

fn service_changes(before: &Service, after: &Service) -> Vec<String> {
    let (old, new) = (&before.flows, &after.flows);
    [
        changed("vip", vip(before), vip(after)),
        changed(
            "mode",
            mode_name(before.mode).into(),
            mode_name(after.mode).into(),
        ),
        changed("gue_port", gue_port(before), gue_port(after)),
        changed(
            "hash",
            before.hash.as_str().into(),
            after.hash.as_str().into(),
        ),
        changed(
            "when_all_down",
            before.when_all_down.as_str().into(),
            after.when_all_down.as_str().into(),
        ),
        changed("quic", quic(before), quic(after)),
        changed("echo", before.echo.to_string(), after.echo.to_string()),
        changed(
            "health",
            probe(before.health.as_ref()),
            probe(after.health.as_ref()),
        ),
        changed(
            "tracking",
            old.tracking.as_str().into(),
            new.tracking.as_str().into(),
        ),
        changed(
            "on_down",
            old.on_down.as_str().into(),
            new.on_down.as_str().into(),
        ),
        changed(
            "drain_timeout",
            time(old.drain_timeout),
            time(new.drain_timeout),
        ),
        changed("udp_settle", time(old.udp_settle), time(new.udp_settle)),
        changed(
            "slow_start",
            old.slow_start.map_or("none".into(), time),
            new.slow_start.map_or("none".into(), time),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn backend_changes(before: &Backend, after: &Backend) -> Vec<String> {
    [
        changed(
            "address",
            before.address.to_string(),
            after.address.to_string(),
        ),
        changed(
            "weight",
            before.weight.to_string(),
            after.weight.to_string(),
        ),
        changed("server_id", server_id(before), server_id(after)),
        match (before.drain, after.drain) {
            (false, true) => Some("drain begins".into()),
            (true, false) => Some("drain ends".into()),
            (true, true) | (false, false) => None,
        },
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn changed(what: &str, before: String, after: String) -> Option<String> {
    (before != after).then(|| format!("{what} {before} -> {after}"))
}

fn vip(service: &Service) -> String {
    let port = if service.port == 0 {
        "any".to_owned()
    } else {
        service.port.to_string()
    };
    format!("{} {}/{port}", service.address, service.protocol.as_str())
}

fn probe(check: Option<&HealthCheck>) -> String {
    let Some(check) = check else {
        return "none".into();
    };
    let (interval, timeout) = (time(check.interval), time(check.timeout));
    let HealthCheck {
        port,
        rise,
        fall,
        jitter_percent,
        ..
    } = check;
    format!(
        "(tcp/{port} every {interval}, timeout {timeout}, rise {rise}, fall {fall}, jitter {jitter_percent}%)"
    )
}

fn time(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}
