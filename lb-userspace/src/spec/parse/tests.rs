//! What is refused, and in which words.

use super::*;
use crate::spec::{AllDown, FlowPolicy, HealthCheck, Tracking, yaml};
use lb_common::backend::Mode;
use lb_common::quic::QuicConfig;
use proptest::prelude::*;
use std::time::Duration;

const LIMITS: Limits = Limits {
    services: 3,
    backends: 4,
};

const GOOD: &str = "\
services:
  - name: www
    address: 192.0.2.1
    protocol: tcp
    port: 80
    health: { interval: 500ms, port: 8080 }
    backends:
      - { name: a, address: 198.51.100.1 }
      - { name: b, address: 198.51.100.2, weight: 0 }
  - name: dns
    address: 2001:db8::1
    protocol: udp
    port: 53
    mode: l2
    when_all_down: closed
    backends:
      - { name: a, address: 198.51.100.1 }
";

fn parse(text: &str) -> Result<State, Problems> {
    State::parse(&yaml::state_from_str(text).unwrap(), &LIMITS)
}

/// What is said of the good state once `from` has become `to`.
fn said(from: &str, to: &str) -> Vec<String> {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replacen(from, to, 1);
    let mut problems = parse(&text).expect_err(to);
    yaml::locate(&text, &mut problems);
    problems.0.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_state() {
    let state = parse(GOOD).unwrap();
    let services: Vec<_> = state.services.values().collect();
    let (dns, www) = (services[0], services[1]);
    assert_eq!(
        (dns.protocol, dns.port, dns.mode, dns.when_all_down),
        (Protocol::Udp, 53, Mode::L2, AllDown::Closed)
    );
    assert_eq!(dns.health, None);
    let half = Duration::from_millis(500);
    let check = HealthCheck {
        port: 8080,
        interval: half,
        timeout: half,
        rise: 2,
        fall: 3,
        jitter_percent: 10,
    };
    assert_eq!(www.health, Some(check));
    let weights: Vec<_> = www
        .backends
        .values()
        .map(|backend| (backend.name.as_str(), backend.weight))
        .collect();
    assert_eq!(weights, [("a", 100), ("b", 0)]);
}

#[test]
fn probes_that_nobody_asked_for() {
    let health = |protocol: &str, port: u16| {
        let text = format!(
            "services: [{{ name: s, address: 192.0.2.1, protocol: {protocol}, port: {port} }}]"
        );
        let state = parse(&text).unwrap();
        state
            .services
            .into_values()
            .next()
            .and_then(|service| service.health)
    };
    assert_eq!(
        health("tcp", 443).map(|check| (check.port, check.interval)),
        Some((443, Duration::from_secs(2)))
    );
    assert_eq!(health("tcp", 0), None);
    assert_eq!(health("udp", 53), None);
}

#[test]
fn each_bad_value_is_named_with_its_line_and_a_way_out() {
    let table: &[(&str, &str, &str)] = &[
        (
            "port: 80\n",
            "port: 70000\n",
            "line 5: services[0].port: is out of range (given: 70000); use 0 to 65535",
        ),
        (
            "name: www",
            "name: w/w",
            "line 2: services[0].name: is not a name (given: w/w); use 1-63 letters, digits, `.`, `_` or `-`, starting \
             with a letter or digit",
        ),
        (
            "port: 80\n",
            "port: 80\n    hash: source\n",
            "line 6: services[0].hash: is nothing that flows are hashed by (given: source); use `5-tuple`, `source-ip` or \
             `source-ip-port`",
        ),
        (
            "protocol: tcp",
            "protocol: sctp",
            "line 4: services[0].protocol: is not a protocol (given: sctp); use `tcp` or `udp`",
        ),
        (
            "mode: l2",
            "mode: nat",
            "line 14: services[1].mode: is not a forwarding mode (given: nat); use `ipip`, `gue` or `l2`",
        ),
        (
            "mode: l2",
            "mode: l2\n    gue_port: 6080",
            "line 15: services[1].gue_port: is only for mode gue, and this is l2 (given: 6080); remove it, or use \
             `mode: gue`",
        ),
        (
            "mode: l2",
            "mode: gue\n    gue_port: 0",
            "line 15: services[1].gue_port: is out of range (given: 0); use 1 to 65535",
        ),
        (
            "closed",
            "shut",
            "line 15: services[1].when_all_down: is not a policy (given: shut); use `open` or `closed`",
        ),
        (
            "name: dns",
            "name: www",
            "line 10: services[1].name: services[0] has this name already (given: www); give each service its own name",
        ),
        (
            "address: 2001:db8::1\n    protocol: udp\n    port: 53",
            "address: 192.0.2.1\n    protocol: tcp\n    port: 80",
            "line 10: services[1]: service `www` has this address, protocol and port already (given: `dns`: 192.0.2.1 tcp/80); \
             change one, or add the backends to `www`",
        ),
        (
            "weight: 0",
            "weight: 1001",
            "line 9: services[0].backends[1].weight: is out of range (given: 1001); use 0 to 1000",
        ),
        (
            "name: b",
            "name: a",
            "line 9: services[0].backends[1].name: another backend of this service has this name (given: a); give each \
             backend of a service its own name",
        ),
        (
            "198.51.100.2",
            "198.51.100.1",
            "line 9: services[0].backends[1].address: backend `a` of this service has this address already (given: \
             198.51.100.1); use weights to give a host more",
        ),
        (
            "198.51.100.2",
            "192.0.2.1",
            "line 9: services[0].backends[1].address: is the service's own address: packets would come back here \
             (given: 192.0.2.1); give the backend's own address",
        ),
        (
            "- { name: a, address: 198.51.100.1 }\n      - { name: b",
            "- { name: a, address: 198.51.100.9 }\n      - { name: b",
            "line 17: services[1].backends[0].address: backend `a` of service `www` is 198.51.100.9 (given: \
             198.51.100.1); one name is one host: use that address or another name",
        ),
    ];
    for (from, to, expected) in table {
        assert_eq!(said(from, to), [*expected]);
    }
}

#[test]
fn each_bad_probe_is_named_with_a_way_out() {
    let table = [
        (
            "{ type: http }",
            "line 6: services[0].health.type: is not a kind of probe (given: http); use `tcp` or `none`",
        ),
        (
            "{ port: 0 }",
            "line 6: services[0].health.port: is out of range (given: 0); use 1 to 65535",
        ),
        (
            "{ rise: 0 }",
            "line 6: services[0].health.rise: is out of range (given: 0); use 1 to 100",
        ),
        (
            "{ fall: 101 }",
            "line 6: services[0].health.fall: is out of range (given: 101); use 1 to 100",
        ),
        (
            "{ jitter_percent: 51 }",
            "line 6: services[0].health.jitter_percent: is out of range (given: 51); use 0 to 50",
        ),
        (
            "{ interval: 50ms }",
            "line 6: services[0].health.interval: is out of range (given: 50ms); use 100ms to 1h, written like `500ms`, \
             `2s` or `1m`",
        ),
        (
            "{ interval: 1s, timeout: 2s }",
            "line 6: services[0].health.timeout: is out of range (given: 2s); use 10ms to 1s, written like `500ms`, `2s` \
             or `1m`",
        ),
    ];
    for (health, expected) in table {
        assert_eq!(said("{ interval: 500ms, port: 8080 }", health), [expected]);
    }
    let no_port = ": is missing: a TCP probe cannot try a UDP port; name a TCP port of the backends, or set `type: none`";
    assert_eq!(
        said("mode: l2", "health: {}"),
        [format!("line 14: services[1].health.port{no_port}")]
    );
}

#[test]
fn each_bad_flow_policy_is_named_with_a_way_out() {
    let written = "written like `500ms`, `2s` or `1m`";
    let table = [
        (
            "tracking: some",
            "tracking: is not a kind of tracking (given: some); use `moved`, `all` or `none`"
                .to_owned(),
        ),
        (
            "on_down: drop",
            "on_down: is not a policy (given: drop); use `reset` or `keep`".to_owned(),
        ),
        (
            "drain_timeout: 999ms",
            format!("drain_timeout: is out of range (given: 999ms); use 1s to 1day, {written}"),
        ),
        (
            "drain_timeout: 25h",
            format!("drain_timeout: is out of range (given: 25h); use 1s to 1day, {written}"),
        ),
        (
            "udp_settle: 61m",
            format!("udp_settle: is out of range (given: 61m); use 0s to 1h, {written}"),
        ),
        (
            "slow_start: '5'",
            format!("slow_start: is not a time span (given: 5); use 0s to 1h, {written}"),
        ),
    ];
    for (field, expected) in table {
        let expected = format!("line 14: services[1].{expected}");
        assert_eq!(said("mode: l2", field), [expected]);
    }
    let text = GOOD.replace("weight: 0", "drain: maybe");
    let said = yaml::state_from_str(&text).unwrap_err().to_string();
    assert_eq!(
        said,
        "line 9: services[0].backends[1].drain: must be `true` or `false` (given: maybe)"
    );
}

#[test]
fn overlapping_services_are_allowed_and_equal_ones_are_not() {
    let text = |addresses: [&str; 3]| {
        let [a, b, c] = addresses;
        format!(
            "services:\n\
             - {{ name: a, address: {a}, protocol: tcp, port: 80 }}\n\
             - {{ name: b, address: {b}, protocol: tcp, port: 80 }}\n\
             - {{ name: c, address: {c}, protocol: tcp, port: 0 }}\n"
        )
    };
    assert!(parse(&text(["192.0.2.1", "192.0.2.0/24", "192.0.2.0/24"])).is_ok());
    assert!(parse(&text(["192.0.2.0/24", "192.0.2.0/25", "192.0.0.0/16"])).is_ok());
    for (first, second, written) in [
        ("192.0.2.0/24", "192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.1", "192.0.2.1/32", "192.0.2.1"),
        ("2001:db8::/64", "2001:db8:0:0::/64", "2001:db8::/64"),
    ] {
        let problems = parse(&text([first, second, first])).unwrap_err();
        let said: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [format!(
                "services[1]: service `a` has this address, protocol and port already (given: `b`: {written} tcp/80); change \
                 one, or add the backends to `a`"
            )]
        );
    }
}

#[test]
fn a_backend_is_not_in_its_services_prefix() {
    assert_eq!(
        said("address: 192.0.2.1\n", "address: 198.51.100.0/25\n"),
        [
            "line 8: services[0].backends[0].address: is one of the service's own addresses, 198.51.100.0/25: packets would \
             come back here (given: 198.51.100.1); give the backend's own address",
            "line 9: services[0].backends[1].address: is one of the service's own addresses, 198.51.100.0/25: packets would \
             come back here (given: 198.51.100.2); give the backend's own address",
        ]
    );
}

#[test]
fn flows_have_their_defaults_and_their_bounds() {
    let flows = |fields: &str| {
        let state = parse(&GOOD.replace("    mode: l2\n", fields)).unwrap();
        let dns = state.services.into_values().next().unwrap();
        assert_eq!(dns.name.as_str(), "dns");
        dns.flows
    };
    assert_eq!(flows(""), FlowPolicy::default());
    let seconds = Duration::from_secs;
    let longest = "    drain_timeout: 24h\n    udp_settle: 1h\n    slow_start: 1h\n";
    let expected = FlowPolicy {
        drain_timeout: seconds(86_400),
        udp_settle: seconds(3_600),
        slow_start: Some(seconds(3_600)),
        ..FlowPolicy::default()
    };
    assert_eq!(flows(longest), expected);
    let shortest =
        "    drain_timeout: 1s\n    udp_settle: 0s\n    slow_start: 0s\n    tracking: none\n";
    let expected = FlowPolicy {
        tracking: Tracking::None,
        drain_timeout: seconds(1),
        udp_settle: Duration::ZERO,
        ..FlowPolicy::default()
    };
    assert_eq!(flows(shortest), expected);
    let draining = parse(&GOOD.replace("weight: 0", "drain: true")).unwrap();
    let drains: Vec<bool> = draining
        .services
        .values()
        .flat_map(|service| service.backends.values().map(|backend| backend.drain))
        .collect();
    assert_eq!(drains, [false, false, true]);
}

#[test]
fn everything_wrong_is_said_at_once_in_the_order_of_the_text() {
    let text = "\
services:
  - { name: -a, address: 127.0.0.1, protocol: icmp, port: -1, mode: x, when_all_down: y,
      health: { type: z, port: 0, interval: 0s, timeout: 0s, rise: 0, fall: 0, jitter_percent: 99 },
      tracking: t, on_down: o, drain_timeout: 0s, udp_settle: u, slow_start: 2h, backends: [{ name: '', address: '', weight: -1 }] }
  - { name: b, address: x, protocol: tcp, port: 1 }
";
    let fields: Vec<_> = parse(text)
        .unwrap_err()
        .0
        .into_iter()
        .map(|problem| problem.field)
        .collect();
    let service = [
        "name",
        "address",
        "protocol",
        "port",
        "mode",
        "when_all_down",
    ];
    let health = [
        "type",
        "rise",
        "fall",
        "jitter_percent",
        "interval",
        "timeout",
        "port",
    ];
    let flows = [
        "tracking",
        "on_down",
        "drain_timeout",
        "udp_settle",
        "slow_start",
    ];
    let backend = ["name", "address", "weight"];
    let expected: Vec<_> = (service.iter().map(|f| format!("services[0].{f}")))
        .chain(health.iter().map(|f| format!("services[0].health.{f}")))
        .chain(flows.iter().map(|f| format!("services[0].{f}")))
        .chain(
            backend
                .iter()
                .map(|f| format!("services[0].backends[0].{f}")),
        )
        .chain(["services[1].address".to_owned()])
        .collect();
    assert_eq!(fields, expected);
}

#[test]
fn what_does_not_fit_is_refused() {
    let tight = |services, backends| {
        let spec = yaml::state_from_str(GOOD).unwrap();
        State::parse(&spec, &Limits { services, backends }).map_err(|problems| problems.to_string())
    };
    assert!(tight(2, 3).is_ok());
    assert_eq!(
        tight(1, 2).unwrap_err(),
        "services: more than the 1 services this node can hold (given: 2); raise `limits.services` in the node configuration\n\
         services: more than the 2 backends this node can hold (given: 3); raise `limits.backends` in the node configuration"
    );
}

proptest! {
    #[test]
    fn nothing_written_makes_it_panic(text in "[ -~\n]{0,300}", port: i64, weight: i64, span in "\\PC{0,12}") {
        let _ = yaml::state_from_str(&text);
        let mut spec = yaml::state_from_str(GOOD).unwrap();
        let service = &mut spec.services[0];
        (service.port, service.backends[0].weight, service.address) = (port, weight, text.clone());
        service.health = Some(crate::spec::HealthSpec { interval: Some(span), timeout: Some(text), ..Default::default() });
        prop_assert!(State::parse(&spec, &LIMITS).is_err());
    }
}

/// As many backends as a node holds by default, read, checked, written and read again.
#[test]
fn a_full_node_fits_the_bounds() {
    let backends = (0..16_384_u32).map(|n| BackendSpec {
        name: format!("backend-{n}"),
        address: std::net::Ipv4Addr::from(0x0a00_0001 + n).to_string(),
        weight: 100,
        drain: false,
        server_id: None,
    });
    let mut spec = yaml::state_from_str(GOOD).unwrap();
    spec.services.truncate(1);
    spec.services[0].backends = backends.collect();
    let text = yaml::to_string(&spec).unwrap();
    assert!(text.len() < yaml::MAX_BYTES / 4, "{} bytes", text.len());
    let state = State::parse(&yaml::state_from_str(&text).unwrap(), &Limits::default()).unwrap();
    assert_eq!(
        state
            .services
            .values()
            .map(|service| service.backends.len())
            .sum::<usize>(),
        16_384
    );
}

#[test]
fn the_shipped_example_is_valid() {
    let spec = yaml::state_from_str(include_str!("../../../../deploy/services.yaml")).unwrap();
    let limits = Limits {
        services: 4,
        backends: 8,
    };
    let state = State::parse(&spec, &limits).unwrap();
    assert_eq!(state.services.len(), 4);
}

/// A QUIC service with this in place of `quic`, and these two backends.
fn quic(quic: &str, first: &str, second: &str) -> Result<State, String> {
    let text = format!(
        "services: [{{ name: q, address: 192.0.2.1, protocol: udp, port: 443, {quic}, backends: [{{ name: a, \
         address: 10.0.0.1{first} }}, {{ name: b, address: 10.0.0.2{second} }}] }}]"
    );
    State::parse(&yaml::state_from_str(&text).unwrap(), &LIMITS).map_err(|e| e.to_string())
}

#[test]
fn every_backend_of_a_quic_service_has_a_server_id_of_its_own() {
    let config = "quic: { config_rotation: 6, server_id_length: 2 }";
    let (one, two) = (", server_id: \"00ff\"", ", server_id: \"FF00\"");
    let state = quic(config, one, two).unwrap();
    let service = state.services.values().next().unwrap();
    let config_of = |rotation, length| QuicConfig {
        config_rotation: rotation,
        server_id_length: length,
    };
    assert_eq!(service.quic, Some(config_of(6, 2)));
    let ids = service
        .backends
        .values()
        .map(|backend| backend.server_id.unwrap());
    let ids: Vec<_> = ids.map(|id| (id.number(), id.to_string())).collect();
    assert_eq!(ids, [(0xff, "00ff".into()), (0xff00, "ff00".into())]);
    let usual = quic(
        "quic: { server_id_length: 8 }",
        ", server_id: \"ffffffffffffffff\"",
        ", server_id: \"0000000000000000\"",
    );
    let usual = usual.unwrap();
    assert_eq!(
        usual.services.values().next().unwrap().quic,
        Some(config_of(0, 8))
    );

    let cases = [
        (
            config,
            one,
            "",
            "services[0].backends[1].server_id: is missing, and the service has `quic` (given: nothing); write 4 hexadecimal \
             digits, such as \"0001\", in quotes",
        ),
        (
            config,
            one,
            one,
            "services[0].backends[1].server_id: backend `a` of this service has this server ID already (given: 00ff); give \
             each backend its own, and its server the same",
        ),
        (
            config,
            one,
            ", server_id: \"ff\"",
            "services[0].backends[1].server_id: is not a server ID of 2 octets (`quic.server_id_length`) (given: ff); write 4 \
             hexadecimal digits, such as \"0001\", in quotes",
        ),
        (
            config,
            one,
            ", server_id: 0xff",
            "services[0].backends[1].server_id: is not a server ID of 2 octets",
        ),
        (
            "echo: true",
            one,
            "",
            "services[0].backends[0].server_id: is only for services with `quic` (given: 00ff); remove it, or give the service \
             `quic`",
        ),
        (
            "quic: { config_rotation: 7, server_id_length: 2 }",
            one,
            two,
            "services[0].quic.config_rotation: is out of range (given: 7); use 0 to 6",
        ),
        (
            "quic: { server_id_length: 9 }",
            ", server_id: \"000000000000000001\"",
            "",
            "services[0].quic.server_id_length: is out of range (given: 9); use 1 to 8",
        ),
    ];
    for (config, first, second, expected) in cases {
        let error = quic(config, first, second).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    let text = |protocol, port| {
        format!(
            "services: [{{ name: q, address: 192.0.2.1, protocol: {protocol}, port: {port}, quic: {{ server_id_length: 1 }}, \
             backends: [] }}]"
        )
    };
    let error = |text: String| {
        let spec = yaml::state_from_str(&text).unwrap();
        State::parse(&spec, &LIMITS).unwrap_err().to_string()
    };
    assert_eq!(
        error(text("tcp", 443)),
        "services[0].quic: is only for UDP, and this is tcp (given: config_rotation 0, server_id_length 1); remove it, or use \
         `protocol: udp`"
    );
    assert_eq!(
        error(text("udp", 0)),
        "services[0].quic: is only for one port, and this is any port (given: config_rotation 0, server_id_length 1); give \
         the port that the servers speak QUIC on"
    );
}

#[test]
fn the_example_of_the_quic_page_is_valid() {
    let page = include_str!("../../../../docs/quic.md");
    let example = page.split("```yaml\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    let state = State::parse(&yaml::state_from_str(example).unwrap(), &LIMITS).unwrap();
    assert!(
        state
            .services
            .values()
            .all(|service| service.quic.is_some())
    );
}
