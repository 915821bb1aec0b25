//! Answers as text for people: plain columns, no lines, no colour, readable at 100 columns and with `awk`.

use super::report::grouped;
use crate::api::protocol::{
    BackendView, DrainView, FlowStats, HealthView, QuicStats, RevisionView, ServiceView, Stats,
    Status,
};
use crate::digest::DigestView;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use std::{fmt::Write, time::Duration};

/// `lbctl status`.
pub(super) fn status(status: &Status) -> String {
    let up = humantime::format_duration(Duration::from_secs(status.uptime_seconds));
    let mut text = format!("lbd {} (pid {}), up {up}\n", status.version, status.pid);
    let mut facts = Table::new();
    facts.add_row(["condition", &status.condition]);
    facts.add_row(["revision", &status.revision.to_string()]);
    facts.add_row(["services", &status.services.to_string()]);
    facts.add_row([
        "backends",
        &format!(
            "{}, {} with traffic",
            status.backends, status.backends_active
        ),
    ]);
    if let Some(node) = &status.node {
        facts.add_row([
            "node",
            &format!(
                "{}, {} announced by {}",
                node.state, node.announced, node.driver
            ),
        ]);
    }
    text += &plain(facts, &[]);
    for warning in &status.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let mut interfaces = Table::new();
    interfaces.set_header(["INTERFACE", "INDEX", "MODE", "PROGRAM", "NOTE"]);
    for interface in &status.interfaces {
        interfaces.add_row([
            interface.name.clone(),
            or_dash(interface.index != 0, interface.index),
            interface.mode.clone(),
            or_dash(interface.program_id != 0, interface.program_id),
            interface.note.clone(),
        ]);
    }
    text + "\n"
        + &listing(
            interfaces,
            &[1, 3],
            "no interfaces: lbd is not attached to any",
        )
}

/// `lbctl stats`; `all` shows verdicts without packets, too.
pub(super) fn stats(stats: &Stats, all: bool) -> String {
    let mut traffic = Table::new();
    traffic.set_header(["SERVICE", "BACKEND", "PACKETS", "BYTES"]);
    for service in &stats.services {
        traffic.add_row([
            &service.name,
            "(all)",
            &grouped(service.packets),
            &grouped(service.bytes),
        ]);
        for backend in &service.backends {
            traffic.add_row([
                &service.name,
                &backend.name,
                &grouped(backend.packets),
                &grouped(backend.bytes),
            ]);
        }
    }
    let mut verdicts = Table::new();
    verdicts.set_header(["VERDICT", "PACKETS", "MEANING"]);
    for verdict in stats
        .verdicts
        .iter()
        .filter(|verdict| all || verdict.packets > 0)
    {
        verdicts.add_row([
            &verdict.name,
            &grouped(verdict.packets),
            &verdict.description,
        ]);
    }
    let verdicts = listing(verdicts, &[1], "no packets yet");
    let flows = &stats.flows;
    let flow_table = format!(
        "Flow table: {} of {} entries, {} slots waiting; {} hits, {} recorded, {} evicted\n",
        grouped(flows.entries),
        grouped(flows.capacity),
        grouped(flows.slots_waiting),
        grouped(flows.hits),
        grouped(flows.recorded),
        grouped(flows.evicted),
    );
    listing(traffic, &[2, 3], "no services") + "\n" + &verdicts + "\n" + &flow_table + &quic(flows)
}

/// A line about connection IDs, if any has been read.
fn quic(flows: &FlowStats) -> String {
    let QuicStats {
        routed,
        short,
        other_config,
        unknown,
        gone,
    } = flows.quic;
    if routed + short + other_config + unknown + gone == 0 {
        return String::new();
    }
    format!(
        "QUIC: {} packets by connection ID; by flow: {} ID too short, {} of another config rotation, {} unknown, {} backend \
         gone\n",
        grouped(routed),
        grouped(short),
        grouped(other_config),
        grouped(unknown),
        grouped(gone),
    )
}

/// `lbctl service list`.
pub(super) fn services(services: &[ServiceView]) -> String {
    let mut table = Table::new();
    table.set_header([
        "NAME",
        "ADDRESS",
        "PROTOCOL",
        "PORT",
        "MODE",
        "CONDITION",
        "BACKENDS",
    ]);
    for service in services {
        let active = service
            .backends
            .iter()
            .filter(|backend| backend.active)
            .count();
        table.add_row([
            service.name.clone(),
            service.address.clone(),
            service.protocol.clone(),
            port(service.port),
            service.mode.clone(),
            service.condition.clone(),
            format!("{}, {active} with traffic", service.backends.len()),
        ]);
    }
    listing(
        table,
        &[3],
        "no services; `lbctl service add --help` says how to add one",
    )
}

/// `lbctl service show`.
pub(super) fn service(service: &ServiceView) -> String {
    let mut facts = Table::new();
    facts.add_row(["name", &service.name]);
    facts.add_row(["address", &service.address]);
    facts.add_row(["protocol", &service.protocol]);
    facts.add_row(["port", &port(service.port)]);
    facts.add_row(["mode", &service.mode]);
    if let Some(quic) = service.quic {
        let (rotation, length) = (quic.config_rotation, quic.server_id_length);
        let plural = if length == 1 { "" } else { "s" };
        let text = format!("config rotation {rotation}, server IDs of {length} octet{plural}");
        facts.add_row(["quic", &text]);
    }
    if let Some(port) = service.gue_port {
        facts.add_row(["gue port", &port.to_string()]);
    }
    if !service.hash.is_empty() {
        facts.add_row(["hash", &service.hash]);
    }
    facts.add_row(["when all down", &service.when_all_down]);
    // An lbd that is older than these does not tell them.
    if !service.tracking.is_empty() {
        facts.add_row(["echo", if service.echo { "on" } else { "off" }]);
        let time = |ms| humantime::format_duration(Duration::from_millis(ms)).to_string();
        facts.add_row(["tracking", &service.tracking]);
        facts.add_row(["on down", &service.on_down]);
        facts.add_row(["drain timeout", &time(service.drain_timeout_ms)]);
        facts.add_row(["udp settle", &time(service.udp_settle_ms)]);
        facts.add_row([
            "slow start",
            &service.slow_start_ms.map_or("off".into(), time),
        ]);
    }
    facts.add_row([
        "health",
        &service.health.as_ref().map_or("not probed".into(), probe),
    ]);
    facts.add_row(["condition", &service.condition]);
    plain(facts, &[]) + "\n" + &backends(&service.backends)
}

/// `lbctl backend list`.
pub(super) fn backends(backends: &[BackendView]) -> String {
    let mut table = Table::new();
    let mut header = vec![
        "SERVICE", "NAME", "ADDRESS", "WEIGHT", "HEALTH", "SLOTS", "TRAFFIC",
    ];
    let has_ids = backends.iter().any(|backend| backend.server_id.is_some());
    if has_ids {
        header.push("SERVER ID");
    }
    table.set_header(header);
    for backend in backends {
        let traffic = match (backend.active, backend.slow_start_percent) {
            (true, Some(percent)) => format!("yes: {percent} % (slow start)"),
            (true, None) => "yes".into(),
            (false, _) if backend.inactive_reason.is_empty() => "no".into(),
            (false, _) => format!("no: {}", backend.inactive_reason),
        };
        let mut row = vec![
            backend.service.clone(),
            backend.name.clone(),
            backend.address.clone(),
            backend.weight.to_string(),
            backend.health.clone(),
            grouped(u64::from(backend.slots)),
            traffic,
        ];
        if has_ids {
            row.push(backend.server_id.clone().unwrap_or_default());
        }
        table.add_row(row);
    }
    listing(
        table,
        &[3, 5],
        "no backends; `lbctl backend add --help` says how to add one",
    )
}

/// `lbctl drains`.
pub(super) fn drains(drains: &[DrainView]) -> String {
    let mut table = Table::new();
    table.set_header([
        "SERVICE",
        "BACKEND",
        "ADDRESS",
        "REASON",
        "SINCE",
        "LEFT",
        "FLOWS",
        "PACKETS/S",
        "SAFE",
    ]);
    let time = |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string();
    for drain in drains {
        table.add_row([
            known(&drain.service),
            known(&drain.backend),
            drain.address.clone(),
            drain.reason.clone(),
            time(drain.since_seconds),
            drain.seconds_left.map_or("-".into(), time),
            grouped(drain.flows),
            format!("{:.1}", drain.packets_per_second),
            if drain.safe { "yes" } else { "not yet" }.into(),
        ]);
    }
    listing(table, &[4, 5, 6, 7], "no backend is on its way out")
}

/// `lbctl digest`.
pub(super) fn digest(digest: &DigestView) -> String {
    let mut facts = Table::new();
    facts.add_row(["hash seed", &digest.node.hash_seed.to_string()]);
    facts.add_row(["version", &digest.node.version]);
    facts.add_row(["layout of maps", &digest.node.layout.to_string()]);
    let mut services = Table::new();
    services.set_header(["SERVICE", "TABLE", "INPUTS", "BACKENDS"]);
    for service in &digest.services {
        services.add_row([
            service.name.clone(),
            service.table.clone(),
            service.inputs.clone(),
            service.backends.len().to_string(),
        ]);
    }
    plain(facts, &[]) + "\n" + &listing(services, &[3], "no services")
}

/// `lbctl history`.
pub(super) fn history(revisions: &[RevisionView]) -> String {
    let mut table = Table::new();
    table.set_header(["REVISION", "TIME", "CHANGE", "SUMMARY"]);
    for revision in revisions {
        let number = match revision.current {
            true => format!("* {}", revision.revision),
            false => revision.revision.to_string(),
        };
        table.add_row([
            number,
            known(&revision.time),
            known(&revision.change),
            if revision.problem.is_empty() {
                known(&revision.summary)
            } else {
                format!("cannot be restored: {}", revision.problem)
            },
        ]);
    }
    listing(table, &[0], "no revision yet: nothing was ever changed")
}

fn probe(health: &HealthView) -> String {
    let time = |ms| humantime::format_duration(Duration::from_millis(ms));
    format!(
        "{} to port {} every {} +-{} %, timeout {}, up after {}, down after {}",
        health.kind,
        health.port,
        time(health.interval_ms),
        health.jitter_percent,
        time(health.timeout_ms),
        health.rise,
        health.fall
    )
}

fn port(port: u16) -> String {
    if port == 0 {
        "any".into()
    } else {
        port.to_string()
    }
}

fn or_dash(known: bool, number: u32) -> String {
    if known {
        number.to_string()
    } else {
        "-".into()
    }
}

/// The text, or a dash for what is not known.
fn known(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

/// A table with a header, or what to say when it has no rows.
pub(super) fn listing(table: Table, numbers: &[usize], when_empty: &str) -> String {
    if table.is_empty() {
        format!("{when_empty}\n")
    } else {
        plain(table, numbers)
    }
}

/// The table as lines without trailing blanks; the columns `numbers` are aligned to the right.
pub(super) fn plain(mut table: Table, numbers: &[usize]) -> String {
    table.load_style(NOTHING);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_lbd_says_nothing_of_flows() {
        let json = r#"{"name": "www", "address": "192.0.2.1", "protocol": "tcp", "port": 80, "mode": "ipip",
            "when_all_down": "open", "condition": "up", "backends": [{
                "service": "www", "name": "web-1", "address": "198.51.100.11", "weight": 100, "health": "unprobed",
                "health_detail": "", "next_hop": "resolved", "next_hop_detail": "", "slots": 65537, "active": true,
                "inactive_reason": ""}]}"#;
        let expected = "\
name           www
address        192.0.2.1
protocol       tcp
port           80
mode           ipip
when all down  open
health         not probed
condition      up

SERVICE  NAME   ADDRESS        WEIGHT  HEALTH     SLOTS  TRAFFIC
www      web-1  198.51.100.11     100  unprobed  65,537  yes
";
        assert_eq!(service(&serde_json::from_str(json).unwrap()), expected);
    }
}
