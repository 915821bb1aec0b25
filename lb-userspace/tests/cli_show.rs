//! `lbctl`'s answers to questions, as text and as JSON, end to end against the real server.

mod support;

use serde_json::Value;
use support::{
    FakeLbd,
    lbctl::{command, lbctl, run},
};

/// What a command that must succeed prints.
fn text(lbd: &FakeLbd, args: &str) -> String {
    let run = lbctl(lbd, args);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args}");
    run.stdout
}

#[test]
fn status() {
    let expected = "\
lbd 0.1.0 (pid 4711), up 1h 2m
condition  degraded
revision   7
services   2
backends   3, 2 with traffic
warning: 1 of 3 backends is down

INTERFACE  INDEX  MODE    PROGRAM  NOTE
eth0           2  native       31
eth9           -  none          -  no such interface
";
    assert_eq!(text(&FakeLbd::start(), "status"), expected);
}

#[test]
fn stats() {
    let lbd = FakeLbd::start();
    let expected = "\
SERVICE  BACKEND    PACKETS       BYTES
www      (all)    1,234,567  98,765,432
www      web-1    1,234,567  98,765,432

VERDICT      PACKETS  MEANING
forwarded  1,234,567  Sent to a backend.

Flow table: 5 of 262,144 entries, 0 slots waiting; 0 hits, 0 recorded, 0 evicted
";
    assert_eq!(text(&lbd, "stats"), expected);
    assert!(
        text(&lbd, "stats --all")
            .contains("\npass_fragment          0  A fragment that names no service.\n")
    );
}

#[test]
fn services() {
    let lbd = FakeLbd::start();
    let expected = "\
NAME  ADDRESS       PROTOCOL  PORT  MODE  CONDITION  BACKENDS
dns   2001:db8::53  udp        any  l2    up         1, 1 with traffic
www   192.0.2.1     tcp         80  ipip  up         2, 1 with traffic
";
    assert_eq!(text(&lbd, "service list"), expected);
    let expected = "\
name           www
address        192.0.2.1
protocol       tcp
port           80
mode           ipip
hash           5-tuple
when all down  open
echo           on
tracking       moved
on down        reset
drain timeout  5m
udp settle     1m
slow start     1m 30s
health         tcp to port 80 every 2s +-10 %, timeout 1s, up after 2, down after 3
condition      up

SERVICE  NAME   ADDRESS        WEIGHT  HEALTH   SLOTS  TRAFFIC
www      web-1  198.51.100.11     100  up      65,537  yes
www      web-2  198.51.100.12     100  down         0  no: down: connection refused
";
    assert_eq!(text(&lbd, "service show www"), expected);
}

#[test]
fn backends() {
    let lbd = FakeLbd::start();
    let expected = "\
SERVICE  NAME   ADDRESS        WEIGHT  HEALTH     SLOTS  TRAFFIC
dns      web-1  2001:db8::1       100  unprobed  65,537  yes: 25 % (slow start)
www      web-1  198.51.100.11     100  up        65,537  yes
www      web-2  198.51.100.12     100  down           0  no: down: connection refused
";
    assert_eq!(text(&lbd, "backend list"), expected);
    let expected = "\
SERVICE  NAME   ADDRESS      WEIGHT  HEALTH     SLOTS  TRAFFIC
dns      web-1  2001:db8::1     100  unprobed  65,537  yes: 25 % (slow start)
";
    assert_eq!(text(&lbd, "backend list --service dns"), expected);
}

#[test]
fn drains() {
    let lbd = FakeLbd::start();
    let expected = "\
SERVICE  BACKEND  ADDRESS        REASON    SINCE    LEFT  FLOWS  PACKETS/S  SAFE
-        -        198.51.100.19  removed  1m 15s       -      0        0.0  yes
www      web-1    198.51.100.11  drain    1m 15s  3m 45s  1,234        3.5  not yet
www      web-9    198.51.100.19  removed  1m 15s       -      0        0.0  yes
";
    assert_eq!(text(&lbd, "drains"), expected);
    lbd.script_drains([vec![]]);
    assert_eq!(text(&lbd, "drains"), "no backend is on its way out\n");
}

#[test]
fn digest() {
    let expected = "\
hash seed       11
version         0.1.0
layout of maps  2

SERVICE  TABLE             INPUTS            BACKENDS
www      0123456789abcdef  fedcba9876543210         2
";
    assert_eq!(text(&FakeLbd::start(), "digest"), expected);
}

#[test]
fn two_nodes_are_compared() {
    let lbd = FakeLbd::start();
    let other = text(&lbd, "digest --output json");
    let compare = |other: &str| run(command(&lbd, "digest --compare -"), other);
    let same = compare(&other);
    assert_eq!(
        (same.code, same.stdout.as_str()),
        (0, "no difference to standard input\n")
    );
    let differing = compare(&other.replacen("\"weight\": 100", "\"weight\": 50", 1));
    let expected = "\
error: this node (ours) differs from standard input (theirs)
  service www: backend web-1: weight differs: ours 100, theirs 50
";
    assert_eq!(
        (
            differing.code,
            differing.stdout.as_str(),
            differing.stderr.as_str()
        ),
        (1, "", expected)
    );
    let no_digest = compare("services: []");
    let start = "error: standard input is not an answer to `lbctl digest --output json`: ";
    assert!(no_digest.stderr.starts_with(start), "{}", no_digest.stderr);
    assert_eq!(no_digest.code, 1);
}

#[test]
fn history() {
    let expected = "\
REVISION  TIME                  CHANGE      SUMMARY
     * 7  2024-05-01T12:00:07Z  rollback 5  remove backend www/web-3, and 2 more
       6  -                     -           cannot be restored: history/0000000006.json is damaged
       5  2024-05-01T12:00:05Z  -           -
";
    assert_eq!(text(&FakeLbd::start(), "history"), expected);
}

#[test]
fn an_export_is_what_apply_takes() {
    let lbd = FakeLbd::start();
    let expected = "\
services:
  - name: www
    address: \"192.0.2.1\"
    protocol: tcp
    port: 80
    mode: ipip
    when_all_down: open
    backends:
      - name: web-1
        address: \"198.51.100.11\"
        weight: 100
      - name: web-2
        address: \"198.51.100.12\"
        weight: 100
";
    assert_eq!(text(&lbd, "export"), expected);
    for export in ["export", "export --output json"] {
        let again = run(command(&lbd, "apply -f -"), &text(&lbd, export));
        assert_eq!(
            (again.code, again.stdout.as_str()),
            (0, "nothing to change: revision 7 stays\n"),
            "{export}"
        );
    }
}

#[test]
fn json_is_the_api_s_answer() {
    let lbd = FakeLbd::start();
    let api = |path: &str| lbd.http("GET", path, "").1;
    let services = api("/v1/services");
    let backends: Vec<Value> = services
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|service| service["backends"].as_array().unwrap().clone())
        .collect();
    let cases = [
        ("status", api("/v1/status")),
        ("stats", api("/v1/stats")),
        ("service show www", services[1].clone()),
        ("backend list -s www", services[1]["backends"].clone()),
        ("backend list", Value::Array(backends)),
        ("service list", services),
        ("export", api("/v1/state")["state"].clone()),
        ("drains", api("/v1/drains")),
        ("history", api("/v1/history")),
        ("digest", api("/v1/digest")),
        ("openapi", api("/v1/openapi.json")),
    ];
    for (args, expected) in cases {
        let printed = text(&lbd, &format!("{args} --output json"));
        assert_eq!(
            serde_json::from_str::<Value>(&printed).unwrap(),
            expected,
            "{args}"
        );
    }
    let begin = "{\n  \"version\": \"0.1.0\",\n  \"pid\": 4711,\n  \"uptime_seconds\": 3720,\n";
    assert!(
        text(&lbd, "-o json status").starts_with(begin),
        "in the order of the API's description"
    );
}

#[test]
fn no_line_is_wider_than_100_columns() {
    let lbd = FakeLbd::start();
    for args in [
        "status",
        "stats --all",
        "service list",
        "service show www",
        "backend list",
        "drains",
        "digest",
        "history",
        "--help",
        "backend drain --help",
        "rollback --help",
        "service add --help",
    ] {
        for line in text(&lbd, args).lines() {
            assert!(line.chars().count() <= 100, "{args}: {line}");
            assert!(
                !line.ends_with(' ') || args.ends_with("--help"),
                "{args}: {line:?}"
            );
            assert!(
                !line.contains('\u{1b}'),
                "{args}: no colour when not on a terminal"
            );
        }
    }
}

#[test]
fn completions_know_the_commands() {
    let lbd = FakeLbd::start();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = text(&lbd, &format!("completions {shell}"));
        assert!(
            script.contains("when-all-down") && script.contains("backend"),
            "{shell}"
        );
    }
}
