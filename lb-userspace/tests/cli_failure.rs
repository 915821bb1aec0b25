//! `lbctl` when things go wrong: what it says, where, and with which exit code.

mod support;

use serde_json::{Value, json};
use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    process::{Command, Stdio},
    thread,
};
use support::{
    FakeLbd,
    lbctl::{command, lbctl, run},
};

#[test]
fn a_refusal_is_1_with_lbd_s_words() {
    let lbd = FakeLbd::start();
    for (args, expected) in [
        (
            "service show x",
            "error: there is no service \"x\"; `lbctl service list` shows all\n",
        ),
        (
            "service remove missing",
            "error: there is no service \"missing\"\n",
        ),
        (
            "service remove stuck",
            "error: cannot write the services map\n",
        ),
        (
            "service add www --address 192.0.2.1 --port 80",
            "error: there is a service \"www\" already\n",
        ),
        (
            "service add new --address 192.0.2.1 --port 70000",
            "error: the service is not valid\n  port: a port is 0 to 65535 (given: 70000)\n",
        ),
        ("service show ..", "error: \"..\" is not a name\n"),
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
fn a_refusal_as_json_is_the_api_s() {
    let lbd = FakeLbd::start();
    let run = lbctl(
        &lbd,
        "service add new --address 192.0.2.1 --port 70000 --output json",
    );
    let expected = json!({"code": "invalid", "message": "the service is not valid", "problems": [
        {"field": "port", "value": "70000", "message": "a port is 0 to 65535", "hint": ""},
    ]});
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert_eq!(
        serde_json::from_str::<Value>(&run.stderr).unwrap(),
        expected
    );
    let run = lbctl(&lbd, "status -o json --socket missing.sock");
    let error: Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!((run.code, &error["code"]), (1, &json!("unavailable")));
}

#[test]
fn wrong_usage_is_2() {
    let lbd = FakeLbd::start();
    for args in [
        "",
        "frobnicate",
        "service",
        "service show",
        "service add www --port 80",
        "service add www --address 192.0.2.1 --port abc",
        "service add www --address 192.0.2.1 --port 80 --protocol sctp",
        "service add www --address 192.0.2.1 --port 80 --mode nat",
        "backend set web-1",
        "backend set web-1 --weight heavy",
        "backend add web-3 --address 192.0.2.1",
        "backend drain web-1 --wait --dry-run",
        "backend drain web-1 --timeout 10s",
        "backend drain web-1 --wait --timeout soon",
        "backend set web-1 --weight 1 --max-move 101",
        "backend set web-1 --weight 1 --now",
        "rollback yesterday",
        "apply",
        "status --output xml",
        "completions tcsh",
    ] {
        let run = lbctl(&lbd, args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args}");
        assert!(
            run.stderr.contains("Usage: lbctl") || run.stderr.contains("--help"),
            "{args}: {}",
            run.stderr
        );
    }
    assert_eq!(lbd.take_changes(), []);
}

#[test]
fn help_and_version_are_0() {
    let lbd = FakeLbd::start();
    assert_eq!(
        lbctl(&lbd, "--version").stdout,
        format!("lbctl {}\n", env!("CARGO_PKG_VERSION"))
    );
    let help = lbctl(&lbd, "apply --help");
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    assert!(
        help.stdout
            .contains("Examples:\n  lbctl apply -f services.yaml --dry-run\n")
    );
}

#[test]
fn a_missing_socket_says_what_to_do() {
    let lbd = FakeLbd::start();
    let run = lbctl(&lbd, "status --socket missing.sock");
    let expected = "error: lbd is not running, or its socket is not at missing.sock: start it with `systemctl start \
                    lbd`, or name the socket with --socket\n";
    assert_eq!((run.code, run.stderr.as_str()), (1, expected));
}

#[test]
fn a_socket_that_nobody_listens_on_says_so() {
    let lbd = FakeLbd::start();
    drop(UnixListener::bind(lbd.directory().join("stale.sock")).unwrap());
    let run = lbctl(&lbd, "status --socket stale.sock");
    let expected = "error: lbd is not running: nobody listens on stale.sock; start it with `systemctl start lbd`, \
                    or name another socket with --socket\n";
    assert_eq!((run.code, run.stderr.as_str()), (1, expected));
}

/// Runs a copy of `lbctl` as nobody, who can reach neither the build's directory nor root's sockets.
fn as_nobody(lbd: &FakeLbd) -> String {
    let copy = lbd.directory().join("lbctl");
    // By another process: a child that another test starts meanwhile would hold the copy open, and it could not be run.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_lbctl"))
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    fs::set_permissions(lbd.directory(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(copy);
    command
        .env_clear()
        .uid(65_534)
        .gid(65_534)
        .arg("status")
        .arg("--socket")
        .arg(lbd.socket());
    let run = run(command, "");
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    run.stderr
        .replace(&lbd.socket().display().to_string(), "SOCKET")
}

#[test]
fn one_who_may_not_is_told_who_may() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test becomes another user: run it as root"
    );
    let lbd = FakeLbd::start();
    let closed = "error: permission denied on SOCKET: only its owner may use it; use sudo\n";
    assert_eq!(as_nobody(&lbd), closed);
    fs::set_permissions(lbd.socket(), Permissions::from_mode(0o660)).unwrap();
    let open = "error: permission denied on SOCKET: use sudo, or join the group root (`usermod -aG root $USER`, then \
                log in again)\n";
    assert_eq!(as_nobody(&lbd), open);
}

/// What `lbctl status` says of a server that answers `answer` to whatever it is sent.
fn said_of(answer: &'static str) -> String {
    let lbd = FakeLbd::start();
    let listener = UnixListener::bind(lbd.directory().join("other.sock")).unwrap();
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let run = lbctl(&lbd, "status --socket other.sock");
    other.join().unwrap();
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    run.stderr
}

#[test]
fn an_answer_that_is_none_is_said_to_be() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 502 Bad\r\nContent-Length: 3\r\n\r\nduh",
    ] {
        let said = said_of(answer);
        assert!(
            said.starts_with("error: what listens on other.sock answered with HTTP status "),
            "{said}"
        );
        assert!(
            said.ends_with(&format!(
                "is it an lbd of this version ({})?\n",
                env!("CARGO_PKG_VERSION")
            )),
            "{said}"
        );
    }
    for answer in [
        "",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
    ] {
        let said = said_of(answer);
        assert!(
            said.starts_with("error: the conversation with lbd on other.sock broke: "),
            "{answer:?}: {said}"
        );
    }
}

#[test]
fn a_proxy_has_no_say() {
    let lbd = FakeLbd::start();
    let mut command = command(&lbd, "status");
    command
        .env("http_proxy", "http://127.0.0.1:1")
        .env("ALL_PROXY", "http://127.0.0.1:1");
    assert_eq!(run(command, "").code, 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lbd = FakeLbd::start();
    let mut child = command(&lbd, "completions bash")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.as_slice()),
        (Some(0), &b""[..])
    );
}

#[test]
fn output_that_cannot_be_written_is_1() {
    let lbd = FakeLbd::start();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(&lbd, "status")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let expected =
        "error: cannot write to standard output: No space left on device (os error 28)\n";
    assert_eq!(
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).as_ref()
        ),
        (Some(1), expected)
    );
}
