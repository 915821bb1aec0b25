//! The API's server over a real socket: every route, every refusal, and clients that misbehave.

mod support;

use lb_userspace::{
    api::{
        client::Client,
        handle::{Change, ChangeOptions},
        path::{TraceLine, TraceRequest},
        server::Limits,
    },
    spec::{BackendPatch, BackendSpec, ServiceSpec},
};
use serde_json::{Value, json};
use std::{
    io::Read,
    net::Shutdown,
    time::{Duration, Instant},
};
use support::{FakeLbd, receive};

const HEADERS: &str = "Content-Type: application/json\r\n";

#[test]
fn what_is_asked_is_answered() {
    let lbd = FakeLbd::start();
    let (code, status) = lbd.http("GET", "/v1/status", "");
    assert_eq!(code, 200);
    assert_eq!(
        status,
        json!({
            "version": "0.1.0", "pid": 4711, "uptime_seconds": 3720, "condition": "degraded",
            "warnings": ["1 of 3 backends is down"], "revision": 7,
            "interfaces": [
                {"name": "eth0", "index": 2, "mode": "native", "program_id": 31, "note": ""},
                {"name": "eth9", "index": 0, "mode": "none", "program_id": 0, "note": "no such interface"},
            ],
            "services": 2, "backends": 3, "backends_active": 2,
        })
    );
    let (code, state) = lbd.http("GET", "/v1/state", "");
    assert_eq!(code, 200);
    assert_eq!(
        state,
        json!({"revision": 7, "state": {"services": [{
        "name": "www", "address": "192.0.2.1", "protocol": "tcp", "port": 80, "mode": "ipip",
        "when_all_down": "open", "backends": [
            {"name": "web-1", "address": "198.51.100.11", "weight": 100},
            {"name": "web-2", "address": "198.51.100.12", "weight": 100},
        ]}]}})
    );
    let (code, stats) = lbd.http("GET", "/v1/stats", "");
    assert_eq!(code, 200);
    assert_eq!(stats["verdicts"][1]["packets"], 0);
    let (code, services) = lbd.http("GET", "/v1/services", "");
    assert_eq!((code, services.as_array().map(Vec::len)), (200, Some(2)));
    let (code, service) = lbd.http("GET", "/v1/services/www", "");
    assert_eq!((code, &service), (200, &services[1]));
    assert_eq!(
        service["backends"][1]["inactive_reason"],
        "down: connection refused"
    );
}

#[test]
fn a_change_reaches_the_control_loop_as_it_was_asked_for() {
    let lbd = FakeLbd::start();
    let dns = r#"{"name": "dns", "address": "192.0.2.53", "protocol": "udp", "port": 53}"#;
    let spec = ServiceSpec {
        name: "dns".into(),
        address: "192.0.2.53".into(),
        protocol: "udp".into(),
        port: 53,
        mode: "ipip".into(),
        gue_port: None,
        hash: None,
        when_all_down: "open".into(),
        health: None,
        tracking: None,
        on_down: None,
        drain_timeout: None,
        udp_settle: None,
        slow_start: None,
        echo: false,
        quic: None,
        backends: vec![],
    };
    let backend = BackendSpec {
        name: "web-3".into(),
        address: "198.51.100.13".into(),
        weight: 100,
        drain: false,
        server_id: None,
    };
    let patch = BackendPatch {
        address: None,
        weight: Some(50),
        drain: None,
        server_id: None,
    };
    let (www, web_1) = (|| "www".to_owned(), || "web-1".to_owned());
    let drain = |drain| Change::Drain {
        backend: web_1(),
        service: None,
        drain,
    };
    let state = serde_json::to_string(&support::state()).unwrap();
    let cases = [
        (
            "PUT",
            "/v1/state",
            state.as_str(),
            Change::Apply(support::state()),
        ),
        ("POST", "/v1/services", dns, Change::AddService(spec)),
        (
            "DELETE",
            "/v1/services/a%2Fb",
            "",
            Change::RemoveService {
                service: "a/b".into(),
            },
        ),
        (
            "POST",
            "/v1/services/www/backends",
            r#"{"name": "web-3", "address": "198.51.100.13"}"#,
            Change::AddBackend {
                service: www(),
                backend,
            },
        ),
        (
            "PATCH",
            "/v1/services/www/backends/web-1",
            r#"{"weight": 50}"#,
            Change::SetBackend {
                service: www(),
                backend: web_1(),
                patch,
            },
        ),
        (
            "DELETE",
            "/v1/services/www/backends/web-1",
            "",
            Change::RemoveBackend {
                service: www(),
                backend: web_1(),
            },
        ),
        ("PUT", "/v1/drains/web-1", "", drain(true)),
        ("DELETE", "/v1/drains/web-1", "", drain(false)),
        (
            "POST",
            "/v1/rollback/5",
            "",
            Change::Rollback { revision: 5 },
        ),
    ];
    for (method, path, body, change) in cases {
        let plain = ChangeOptions::default();
        let dry = ChangeOptions {
            dry_run: true,
            ..plain
        };
        let bound = ChangeOptions {
            if_revision: Some(7),
            max_move: Some("16.7".parse().unwrap()),
            ..plain
        };
        for (query, options) in [
            ("", plain),
            ("?dry_run=false", plain),
            ("?dry_run=true", dry),
            ("?if_revision=7&max_move=16.7", bound),
            ("?max_move=16.7%25&if_revision=7&dry_run=false", bound),
        ] {
            let (code, report) = lbd.http(method, &format!("{path}{query}"), body);
            assert_eq!(
                (code, &report["dry_run"]),
                (200, &Value::Bool(options.dry_run)),
                "{method} {path}{query}: {report}"
            );
            assert_eq!(
                lbd.take_changes(),
                [(change.clone(), options)],
                "{method} {path}{query}"
            );
        }
    }
}

#[test]
fn what_removes_may_do_so_now_and_nothing_else_may() {
    let lbd = FakeLbd::start();
    let now = ChangeOptions {
        now: true,
        ..ChangeOptions::default()
    };
    for (method, path, body) in [
        ("PUT", "/v1/state", r#"{"services": []}"#),
        ("DELETE", "/v1/services/www", ""),
        ("DELETE", "/v1/services/www/backends/web-1", ""),
        ("POST", "/v1/rollback/5", ""),
    ] {
        let (code, _) = lbd.http(method, &format!("{path}?now=true"), body);
        assert_eq!(code, 200, "{method} {path}");
        assert_eq!(lbd.take_changes()[0].1, now, "{method} {path}");
    }
    for (method, path, body) in [
        ("POST", "/v1/services", "{}"),
        ("PATCH", "/v1/services/www/backends/web-1", "{}"),
        ("PUT", "/v1/drains/web-1", ""),
    ] {
        let (code, refused) = lbd.http(method, &format!("{path}?now=true"), body);
        let said = refused["message"].as_str().unwrap();
        assert_eq!(code, 400, "{method} {path}");
        assert!(said.contains("unknown field `now`"), "{said}");
    }
    assert_eq!(lbd.take_changes(), []);
}

#[test]
fn a_drain_may_be_of_one_service() {
    let lbd = FakeLbd::start();
    let (code, _) = lbd.http("PUT", "/v1/drains/a%2Fb?service=www&if_revision=7", "");
    assert_eq!(code, 200);
    let change = Change::Drain {
        backend: "a/b".into(),
        service: Some("www".into()),
        drain: true,
    };
    let options = ChangeOptions {
        if_revision: Some(7),
        ..ChangeOptions::default()
    };
    assert_eq!(lbd.take_changes(), [(change, options)]);
}

#[test]
fn drains_and_history_are_answered() {
    let lbd = FakeLbd::start();
    let (code, drains) = lbd.http("GET", "/v1/drains", "");
    assert_eq!(code, 200);
    assert_eq!(
        drains[1],
        json!({
            "service": "www", "backend": "web-1", "address": "198.51.100.11", "reason": "drain",
            "since_seconds": 75, "seconds_left": 225, "flows": 1234, "packets_per_second": 3.5, "slots": 21845,
            "safe": false,
        })
    );
    assert_eq!(drains[2].get("seconds_left"), None);
    let (code, history) = lbd.http("GET", "/v1/history", "");
    assert_eq!(code, 200);
    assert_eq!(
        history[0],
        json!({
            "revision": 7, "time": "2024-05-01T12:00:07Z", "change": "rollback 5",
            "summary": "remove backend www/web-3, and 2 more", "current": true, "problem": "",
        })
    );
}

#[test]
fn a_report_is_exact() {
    let lbd = FakeLbd::start();
    let (_, report) = lbd.http(
        "PATCH",
        "/v1/services/www/backends/web-1?dry_run=true",
        r#"{"weight": 50}"#,
    );
    assert_eq!(
        report,
        json!({
            "revision": 7, "dry_run": true, "changed": true,
            "changes": [{"action": "change", "kind": "backend", "name": "www/web-1", "detail": "weight 100 -> 50"}],
            "tables": [{
                "service": "www", "slots_changed": 10923, "necessary": 10000, "collateral": 923,
                "new_flows_basis_points": 1667, "expiring_slots": 0, "lost_slots": 0, "seconds": 60,
                "old_flows": "16.67 % stay with their backend unless they send nothing for 1m; the others are not touched",
            }],
            "warnings": [],
        })
    );
}

/// A refusal of the shape of a body.
fn shape(field: &str, message: &str) -> Value {
    json!({"code": "malformed", "message": "the body has not the right shape", "problems": [
        {"field": field, "value": "", "message": message, "hint": "see `lbctl openapi` for the shape"},
    ]})
}

#[test]
fn a_body_of_the_wrong_shape_is_refused_with_the_field() {
    let lbd = FakeLbd::start();
    let (code, body) = lbd.http(
        "PUT",
        "/v1/state",
        r#"{"services": [{"name": "a", "address": "b", "protocol": "tcp", "port": 1, "backends": [{"name": "c", "address": "d", "wieght": 3}]}]}"#,
    );
    let message = "unknown field `wieght`, expected one of `name`, `address`, `weight`, `drain`, `server_id` at line 1 \
                   column 125";
    assert_eq!(
        (code, body),
        (400, shape("services[0].backends[0].wieght", message))
    );
    let (code, body) = lbd.http("POST", "/v1/services", r#"{"name": "a", "port": "eighty"}"#);
    let message = "invalid type: string \"eighty\", expected i64 at line 1 column 30";
    assert_eq!((code, body), (400, shape("port", message)));
    for list in ["[]", " [[]]"] {
        let refused = (400, shape("", "invalid type: sequence, expected an object"));
        assert_eq!(lbd.http("PUT", "/v1/state", list), refused);
    }
    let (code, body) = lbd.http("PATCH", "/v1/services/a/backends/b", "{} {}");
    assert_eq!(
        (code, &body["message"]),
        (400, &json!("the body is not JSON"))
    );
    assert_eq!(
        body["problems"][0]["message"],
        "trailing characters at line 1 column 4"
    );
    assert_eq!(lbd.take_changes(), []);
}

#[test]
fn every_refusal_has_its_status_and_says_why() {
    let lbd = FakeLbd::start();
    let service = |name: &str, port: u32| {
        format!(
            r#"{{"name": "{name}", "address": "192.0.2.1", "protocol": "tcp", "port": {port}}}"#
        )
    };
    let (www, high) = (service("www", 80), service("new", 70_000));
    let large = format!("{{\"services\": [{}]}}", " ".repeat(8 << 20));
    let cases = [
        (
            "GET",
            "/",
            "",
            404,
            "not_found",
            "there is no path /; GET /v1/openapi.json describes all",
        ),
        (
            "GET",
            "/v1/statu",
            "",
            404,
            "not_found",
            "there is no path /v1/statu; GET /v1/openapi.json describes all",
        ),
        (
            "GET",
            "/v1/services/x",
            "",
            404,
            "not_found",
            "there is no service \"x\"; `lbctl service list` shows all",
        ),
        (
            "DELETE",
            "/v1/services/missing",
            "",
            404,
            "not_found",
            "there is no service \"missing\"",
        ),
        (
            "DELETE",
            "/v1/services/stuck",
            "",
            500,
            "failed",
            "cannot write the services map",
        ),
        (
            "DELETE",
            "/v1/state",
            "",
            405,
            "method_not_allowed",
            "/v1/state does not take DELETE; GET /v1/openapi.json says what it takes",
        ),
        (
            "POST",
            "/v1/services",
            &www,
            409,
            "conflict",
            "there is a service \"www\" already",
        ),
        (
            "POST",
            "/v1/services",
            &high,
            422,
            "invalid",
            "the service is not valid",
        ),
        (
            "PUT",
            "/v1/state",
            "services: []",
            400,
            "malformed",
            "the body is not JSON",
        ),
        (
            "PUT",
            "/v1/state",
            "{\"services\": [",
            400,
            "malformed",
            "the body is not JSON",
        ),
        (
            "PUT",
            "/v1/state",
            &large,
            413,
            "too_large",
            "the body could not be read: Failed to buffer the request body: length limit exceeded",
        ),
        (
            "DELETE",
            "/v1/services/www?dryrun=true",
            "",
            400,
            "malformed",
            "the query: Failed to deserialize query string: dryrun: unknown field `dryrun`, expected one of `dry_run`, \
             `if_revision`, `max_move`, `now`",
        ),
        (
            "DELETE",
            "/v1/services/www?dry_run=maybe",
            "",
            400,
            "malformed",
            "the query: Failed to deserialize query string: dry_run: provided string was not `true` or `false`",
        ),
        (
            "DELETE",
            "/v1/services/www?max_move=101",
            "",
            400,
            "malformed",
            "the query: Failed to deserialize query string: max_move: `101` is not a share; use 0 to 100, in percent, \
             such as `10` or `2.5`",
        ),
        (
            "DELETE",
            "/v1/services/www?if_revision=latest",
            "",
            400,
            "malformed",
            "the query: Failed to deserialize query string: if_revision: invalid digit found in string",
        ),
        (
            "DELETE",
            "/v1/services/www?if_revision=6",
            "",
            409,
            "conflict",
            "the change is meant for revision 6, but revision 7 is in force",
        ),
        (
            "DELETE",
            "/v1/services/www?max_move=16.6",
            "",
            409,
            "conflict",
            "the change would move 10923 of 65537 slots of service `www` (16.67 %)",
        ),
        (
            "PUT",
            "/v1/drains/missing",
            "",
            404,
            "not_found",
            "no service has a backend `missing`; there are: web-1, web-2",
        ),
        (
            "POST",
            "/v1/rollback/3",
            "",
            404,
            "not_found",
            "there is no revision 3 to go back to: 5 to 7 are kept",
        ),
        (
            "POST",
            "/v1/rollback/yesterday",
            "",
            400,
            "malformed",
            "the path: Invalid URL: Cannot parse `yesterday` to a `u64`",
        ),
        (
            "GET",
            "/v1/status?verbose",
            "",
            400,
            "malformed",
            "the query: Failed to deserialize query string: verbose: unknown field `verbose`, there are no fields",
        ),
        (
            "GET",
            "/v1/services/%ff",
            "",
            400,
            "malformed",
            "the path: Invalid URL: Invalid UTF-8 in `service`",
        ),
    ];
    for (method, path, body, status, code, message) in cases {
        let (got, answer) = lbd.http(method, path, body);
        assert_eq!(
            (got, &answer["code"]),
            (status, &json!(code)),
            "{method} {path}: {answer}"
        );
        assert_eq!(answer["message"], message, "{method} {path}");
        assert!(answer["problems"].is_array());
    }
}

#[test]
fn a_state_that_does_not_say_its_services_is_refused() {
    let lbd = FakeLbd::start();
    let (code, body) = lbd.http("PUT", "/v1/state", "{}");
    assert_eq!((code, &body["code"]), (400, &json!("malformed")));
    let said = body["problems"][0]["message"].as_str().unwrap();
    assert!(said.contains("missing field `services`"), "{said}");
    assert_eq!(lbd.take_changes(), []);
    assert_eq!(lbd.http("PUT", "/v1/state", r#"{"services": []}"#).0, 200);
}

#[test]
fn a_body_that_is_not_said_to_be_json_is_refused() {
    let lbd = FakeLbd::start();
    for headers in [
        "",
        "Content-Type: application/yaml\r\n",
        "Content-Type: application/jsonx\r\n",
    ] {
        let (code, body) = lbd.http_with("PUT", "/v1/state", headers, "{\"services\": []}");
        assert_eq!(
            (code, &body["code"]),
            (415, &json!("unsupported_media_type")),
            "{headers}"
        );
    }
    let (code, _) = lbd.http_with(
        "PUT",
        "/v1/state",
        "Content-Type: Application/JSON; charset=utf-8\r\n",
        "{\"services\": []}",
    );
    assert_eq!(code, 200);
}

#[test]
fn a_change_that_takes_its_time_keeps_nobody_else_waiting() {
    let lbd = FakeLbd::start();
    let slow = lbd.send("DELETE /v1/services/slow HTTP/1.1\r\nHost: lbd\r\n\r\n");
    let half = lbd.send("PUT /v1/state HTTP/1.1\r\nHost: lbd\r\nContent-Length: 100\r\n");
    let quarter = lbd.send("PUT /v1/st");
    for _ in 0..40 {
        assert_eq!(lbd.http("GET", "/v1/status", "").0, 200);
    }
    drop((slow, half, quarter));
}

#[test]
fn a_client_that_only_stops_sending_gets_its_answer() {
    let lbd = FakeLbd::start();
    let stream = lbd.send("GET /v1/status HTTP/1.1\r\nHost: lbd\r\n\r\n");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(receive(stream).0, 200);
}

fn hasty() -> Limits {
    Limits {
        connections: 2,
        head: Duration::from_millis(300),
        request: Duration::from_millis(200),
        connection: Duration::from_millis(400),
        ..Limits::default()
    }
}

/// Longer than a connection of another kind would last, and over when the loop says so.
#[test]
fn a_trace_lasts_as_long_as_it_takes() {
    let lbd = FakeLbd::start_within(hasty());
    let client = Client::new(&lbd.socket()).unwrap();
    let request = TraceRequest {
        service: Some("www".into()),
        ..TraceRequest::default()
    };
    let begin = Instant::now();
    let packets = lbd.block_on(async {
        let mut lines = client.trace(&request).await.unwrap();
        let mut packets = 0;
        while let Some(TraceLine::Packet(packet)) = lines.next().await.unwrap() {
            assert_eq!(packet.verdict, "drop_no_backend");
            packets += 1;
        }
        packets
    });
    assert_eq!(packets, 6);
    assert!(begin.elapsed() > 2 * hasty().connection);
    let refused = lbd
        .block_on(client.trace(&TraceRequest::default()))
        .unwrap_err();
    assert_eq!(refused.message, "this lbd has no program");
}

#[test]
fn a_request_has_a_limited_time() {
    let lbd = FakeLbd::start_within(hasty());
    let message =
        "no answer within 200ms; whether a change was made is not known: look with `lbctl status`";
    let expected = (
        503,
        json!({"code": "unavailable", "message": message, "problems": []}),
    );
    assert_eq!(lbd.http("DELETE", "/v1/services/slow", ""), expected);
    let unfinished =
        format!("PUT /v1/state HTTP/1.1\r\nHost: lbd\r\n{HEADERS}Content-Length: 100\r\n\r\n{{");
    assert_eq!(receive(lbd.send(&unfinished)), expected);
}

#[test]
fn a_silent_client_loses_its_place_in_time() {
    let lbd = FakeLbd::start_within(hasty());
    let begin = Instant::now();
    let mut silent = [lbd.send("GET"), lbd.send("")];
    // Both places are taken: this waits in the backlog until one is free.
    assert_eq!(lbd.http("GET", "/v1/status", "").0, 200);
    assert!(begin.elapsed() >= hasty().head);
    for stream in &mut silent {
        assert_eq!(
            stream.read_to_end(&mut Vec::new()).unwrap(),
            0,
            "the connection is closed without an answer"
        );
    }
}
