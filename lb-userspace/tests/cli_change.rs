//! `lbctl`'s changes: what reaches the control loop, and what a person is told of it.

mod support;

use lb_userspace::{
    api::handle::{Change, ChangeOptions},
    spec::{BackendPatch, BackendSpec, HealthSpec, ServiceSpec},
};
use serde_json::{Value, json};
use std::fs;
use support::{
    FakeLbd,
    lbctl::{command, lbctl, run},
};

const DONE: &str = "\
~ backend www/web-1: weight 100 -> 50
service www:
  slots      10,923 of 65,537 change owner (16.67 %): 10,000 necessary, 923 collateral
  new flows  16.67 % go elsewhere than before
  old flows  0.00 % have to end (16.67 % stay with their backend unless they send nothing for 1m; the others are not touched)
  time       at least 1m until its slots are settled
done: revision 8
";

const DRY: &str = "\
~ backend www/web-1: weight 100 -> 50
service www:
  slots      10,923 of 65,537 change owner (16.67 %): 10,000 necessary, 923 collateral
  new flows  16.67 % go elsewhere than before
  old flows  0.00 % have to end (16.67 % stay with their backend unless they send nothing for 1m; the others are not touched)
  time       at least 1m until its slots are settled
dry run: nothing was changed, revision 7 stays
";

fn dns() -> ServiceSpec {
    ServiceSpec {
        name: "dns".into(),
        address: "192.0.2.53".into(),
        protocol: "tcp".into(),
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
    }
}

fn dry() -> ChangeOptions {
    ChangeOptions {
        dry_run: true,
        ..ChangeOptions::default()
    }
}

fn bound() -> ChangeOptions {
    ChangeOptions {
        if_revision: Some(7),
        max_move: Some("16.7".parse().unwrap()),
        ..ChangeOptions::default()
    }
}

#[test]
fn every_change_is_sent_as_it_was_typed() {
    let lbd = FakeLbd::start();
    let health = HealthSpec {
        kind: Some("tcp".into()),
        port: Some(8080),
        interval: Some("500ms".into()),
        timeout: Some("100ms".into()),
        rise: Some(1),
        fall: Some(2),
        jitter_percent: Some(20),
    };
    let full = ServiceSpec {
        protocol: "udp".into(),
        mode: "l2".into(),
        when_all_down: "closed".into(),
        health: Some(health),
        tracking: Some("all".into()),
        on_down: Some("keep".into()),
        drain_timeout: Some("10m".into()),
        udp_settle: Some("5s".into()),
        slow_start: Some("2h".into()),
        echo: true,
        ..dns()
    };
    let (www, web_2) = (|| "www".to_owned(), || "web-2".to_owned());
    let set = |address: Option<&str>, weight| Change::SetBackend {
        service: www(),
        backend: web_2(),
        patch: BackendPatch {
            address: address.map(Into::into),
            weight,
            drain: None,
            server_id: None,
        },
    };
    let drain = |backend: &str, service: Option<&str>, drain| Change::Drain {
        backend: backend.into(),
        service: service.map(Into::into),
        drain,
    };
    let add = |weight| Change::AddBackend {
        service: www(),
        backend: BackendSpec {
            name: "web-3".into(),
            address: "198.51.100.13".into(),
            weight,
            drain: false,
            server_id: None,
        },
    };
    let cases = [
        (
            "service add dns --address 192.0.2.53 --port 53",
            Change::AddService(dns()),
        ),
        (
            "service add dns --address 192.0.2.53 --port 53 --mode gue --gue-port 7000",
            Change::AddService(ServiceSpec {
                mode: "gue".into(),
                gue_port: Some(7_000),
                ..dns()
            }),
        ),
        (
            "service add dns --address 192.0.2.53 --port 53 --protocol udp --mode l2 --when-all-down closed \
             --health tcp --health-port 8080 --health-interval 500ms --health-timeout 100ms --health-rise 1 \
             --health-fall 2 --health-jitter 20 --tracking all --on-down keep --drain-timeout 10m --udp-settle 5s \
             --slow-start 2h --echo",
            Change::AddService(full),
        ),
        (
            "service add dns --address 192.0.2.53 --port 53 --hash source-ip-port",
            Change::AddService(ServiceSpec {
                hash: Some("source-ip-port".into()),
                ..dns()
            }),
        ),
        (
            "service remove www",
            Change::RemoveService { service: www() },
        ),
        (
            "backend add web-3 --service www --address 198.51.100.13",
            add(100),
        ),
        (
            "backend add web-3 -s www --address 198.51.100.13 --weight 0",
            add(0),
        ),
        (
            "backend set web-2 --service www --weight 50",
            set(None, Some(50)),
        ),
        (
            "backend set web-2 --weight 0 --address 198.51.100.22",
            set(Some("198.51.100.22"), Some(0)),
        ),
        (
            "backend remove web-2",
            Change::RemoveBackend {
                service: www(),
                backend: web_2(),
            },
        ),
        ("backend drain web-1", drain("web-1", None, true)),
        (
            "backend drain a/b --service www",
            drain("a/b", Some("www"), true),
        ),
        (
            "backend undrain web-1 -s www",
            drain("web-1", Some("www"), false),
        ),
        ("rollback 5", Change::Rollback { revision: 5 }),
        // A name with a slash must not reach another path.
        (
            "backend remove a/b?c --service ..x",
            Change::RemoveBackend {
                service: "..x".into(),
                backend: "a/b?c".into(),
            },
        ),
    ];
    for (args, change) in cases {
        for (flag, options, expected) in [
            ("", ChangeOptions::default(), DONE),
            (" --dry-run", dry(), DRY),
            (" --if-revision 7 --max-move 16.7%", bound(), DONE),
        ] {
            let run = lbctl(&lbd, &format!("{args}{flag}"));
            assert_eq!(
                (run.code, run.stdout.as_str(), run.stderr.as_str()),
                (0, expected, ""),
                "{args}{flag}"
            );
            assert_eq!(
                lbd.take_changes(),
                [(change.clone(), options)],
                "{args}{flag}"
            );
        }
    }
}

#[test]
fn removals_may_be_done_at_once() {
    let lbd = FakeLbd::start();
    for args in [
        "backend remove web-2 --now",
        "service remove www --now",
        "rollback 5 --now",
        "apply -f - --now",
    ] {
        let run = run(command(&lbd, args), YAML);
        assert_eq!((run.code, run.stdout.as_str()), (0, DONE), "{args}");
        assert!(lbd.take_changes()[0].1.now, "{args}");
    }
}

#[test]
fn what_a_change_is_held_against_refuses_it() {
    let lbd = FakeLbd::start();
    for (args, expected) in [
        (
            "backend drain web-1 --if-revision 6",
            "error: the change is meant for revision 6, but revision 7 is in force\n",
        ),
        (
            "backend set web-2 --weight 1 --max-move 16.6%",
            "error: the change would move 10923 of 65537 slots of service `www` (16.67 %)\n",
        ),
        (
            "backend drain missing --wait",
            "error: no service has a backend `missing`; there are: web-1, web-2\n",
        ),
        (
            "rollback 3 --dry-run",
            "error: there is no revision 3 to go back to: 5 to 7 are kept\n",
        ),
    ] {
        let run = lbctl(&lbd, args);
        assert_eq!(
            (run.code, run.stdout.as_str(), run.stderr.as_str()),
            (1, "", expected),
            "{args}"
        );
    }
}

#[test]
fn a_warning_of_a_drain_reaches_the_one_who_began_it() {
    let lbd = FakeLbd::start();
    let run = lbctl(&lbd, "backend drain last");
    assert_eq!(run.code, 0);
    let warning = "warning: service www: no backend takes new flows any more\n";
    assert!(run.stdout.contains(warning), "{}", run.stdout);
}

#[test]
fn a_report_as_json_is_the_api_s() {
    let lbd = FakeLbd::start();
    let run = lbctl(
        &lbd,
        "backend set web-2 --weight 50 --dry-run --output json",
    );
    let expected = json!({
        "revision": 7, "dry_run": true, "changed": true,
        "changes": [{"action": "change", "kind": "backend", "name": "www/web-1", "detail": "weight 100 -> 50"}],
        "tables": [{
            "service": "www", "slots_changed": 10923, "necessary": 10000, "collateral": 923,
            "new_flows_basis_points": 1667, "expiring_slots": 0, "lost_slots": 0, "seconds": 60,
            "old_flows": "16.67 % stay with their backend unless they send nothing for 1m; the others are not touched",
        }],
        "warnings": [],
    });
    assert_eq!(
        (
            run.code,
            serde_json::from_str::<Value>(&run.stdout).unwrap()
        ),
        (0, expected)
    );
}

#[test]
fn a_backend_in_several_services_needs_its_service() {
    let lbd = FakeLbd::start();
    let run = lbctl(&lbd, "backend remove web-1");
    let expected =
        "error: backend \"web-1\" is in several services: add --service and one of dns, www\n";
    assert_eq!((run.code, run.stderr.as_str()), (1, expected));
    let run = lbctl(&lbd, "backend set web-9 --weight 1");
    let expected = "error: there is no backend \"web-9\"; `lbctl backend list` shows all\n";
    assert_eq!((run.code, run.stderr.as_str()), (1, expected));
    assert_eq!(lbd.take_changes(), []);
}

const YAML: &str = "\
# The only service.
services:
  - name: dns
    address: 192.0.2.53
    protocol: tcp
    port: 53
";

#[test]
fn a_file_is_applied_whole() {
    let lbd = FakeLbd::start();
    fs::write(lbd.directory().join("services.yaml"), YAML).unwrap();
    let state = lb_userspace::spec::StateSpec {
        services: vec![dns()],
    };
    let json = serde_json::to_string(&state).unwrap();
    let plain = ChangeOptions::default();
    for (args, input, options, expected) in [
        ("apply -f services.yaml", "", plain, DONE),
        ("apply -f services.yaml --dry-run", "", dry(), DRY),
        ("apply -f -", YAML, plain, DONE),
        ("apply --file - --dry-run", &json, dry(), DRY),
        (
            "apply -f - --max-move 16.7 --if-revision 7",
            &json,
            bound(),
            DONE,
        ),
    ] {
        let run = run(command(&lbd, args), input);
        assert_eq!(
            (run.code, run.stdout.as_str(), run.stderr.as_str()),
            (0, expected, ""),
            "{args}"
        );
        assert_eq!(
            lbd.take_changes(),
            [(Change::Apply(state.clone()), options)],
            "{args}"
        );
    }
}

#[test]
fn what_lbd_finds_wrong_with_a_file_has_its_line() {
    let lbd = FakeLbd::start();
    fs::write(
        lbd.directory().join("a.yaml"),
        YAML.replace("port: 53", "port: 70000"),
    )
    .unwrap();
    let run = lbctl(&lbd, "apply -f a.yaml");
    let expected = "\
error: the state is not valid
  a.yaml:6: services[0].port: a port is 0 to 65535 (given: 70000)
";
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (1, "", expected)
    );
}

#[test]
fn what_is_wrong_with_a_file_s_shape_is_found_before_lbd_is_asked() {
    let lbd = FakeLbd::start();
    fs::write(
        lbd.directory().join("a.yaml"),
        YAML.replace("port: 53", "prot: 53"),
    )
    .unwrap();
    let run = lbctl(&lbd, "apply -f a.yaml --dry-run");
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(
        run.stderr
            .starts_with("error: a.yaml does not describe a state\n  a.yaml:6: "),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("did you mean `port`?"),
        "{}",
        run.stderr
    );
    assert_eq!(lbd.take_changes(), []);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_with_its_name() {
    let lbd = FakeLbd::start();
    fs::write(lbd.directory().join("binary"), [0xff, 0xfe]).unwrap();
    let large = fs::File::create(lbd.directory().join("large")).unwrap();
    large.set_len((8 << 20) + 1).unwrap();
    for (file, expected) in [
        (
            "missing.yaml",
            "cannot read missing.yaml: No such file or directory (os error 2)",
        ),
        (".", "cannot read .: Is a directory (os error 21)"),
        (
            "binary",
            "cannot read binary: stream did not contain valid UTF-8",
        ),
        ("large", "large is larger than 8 MiB: is it the right file?"),
        (
            "/dev/zero",
            "/dev/zero is larger than 8 MiB: is it the right file?",
        ),
    ] {
        let run = lbctl(&lbd, &format!("apply -f {file}"));
        assert_eq!(
            (run.code, run.stderr.as_str()),
            (1, format!("error: {expected}\n").as_str()),
            "{file}"
        );
    }
}
