//! `lbctl backend drain --wait`: what it waits for, and what ends the wait.

mod support;

use lb_userspace::api::protocol::DrainView;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
    time::{Duration, Instant},
};
use support::{
    FakeLbd, drain,
    lbctl::{command, lbctl},
};

const BEGUN: &str = "\
~ backend www/web-1: weight 100 -> 50
service www:
  slots      10,923 of 65,537 change owner (16.67 %): 10,000 necessary, 923 collateral
  new flows  16.67 % go elsewhere than before
  old flows  0.00 % have to end (16.67 % stay with their backend unless they send nothing for 1m; the others are not touched)
  time       at least 1m until its slots are settled
done: revision 8
";

fn www(flows: u64, safe: bool) -> DrainView {
    drain("www", "web-1", flows, safe)
}

#[test]
fn it_waits_until_every_service_is_safe() {
    let lbd = FakeLbd::start();
    let dns = |safe| drain("dns", "web-1", 1, safe);
    let other = || drain("www", "web-2", 99, false);
    lbd.script_drains([
        vec![dns(false), www(12, false), other()],
        vec![dns(true), www(3, false), other()],
        vec![dns(true), www(0, true), other()],
    ]);
    let run = lbctl(&lbd, "backend drain web-1 --wait --timeout 1m");
    let expected = format!("{BEGUN}safe to stop: web-1 (dns, www)\n");
    assert_eq!((run.code, run.stdout), (0, expected));
    let progress = "\
web-1: 13 flows, 7.0 packets/s, at most 3m 45s left
web-1: 4 flows, 7.0 packets/s, at most 3m 45s left
";
    assert_eq!(run.stderr, progress);
}

#[test]
fn as_json_it_is_the_drains_as_they_were_last_seen() {
    let lbd = FakeLbd::start();
    lbd.script_drains([vec![www(0, true), drain("dns", "web-1", 1, false)]]);
    let run = lbctl(&lbd, "backend drain web-1 -s www --wait -o json");
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let drains: Vec<DrainView> = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(drains, [www(0, true)]);
}

#[test]
fn what_never_gets_safe_is_said_in_time() {
    let lbd = FakeLbd::start();
    lbd.script_drains([vec![www(5, false)]]);
    let begin = Instant::now();
    let run = lbctl(&lbd, "backend drain web-1 --wait --timeout 1500ms");
    assert!(begin.elapsed() >= Duration::from_millis(1_500));
    let expected = "\
web-1: 5 flows, 3.5 packets/s, at most 3m 45s left
error: not safe to stop after 1s 500ms (web-1: 5 flows, 3.5 packets/s, at most 3m 45s left); the drain of `web-1` \
                    goes on: `lbctl drains` shows it, `lbctl backend undrain web-1` ends it
";
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (1, BEGUN, expected)
    );
}

#[test]
fn a_drain_that_somebody_else_ends_is_no_success() {
    let lbd = FakeLbd::start();
    lbd.script_drains([vec![www(5, false)], vec![]]);
    let run = lbctl(&lbd, "backend drain web-1 --wait");
    let expected = "error: the drain of backend `web-1` in service `www` was ended by somebody else, so it is not safe to \
                    stop: see `lbctl history`\n";
    assert_eq!(run.code, 1);
    assert!(run.stderr.ends_with(expected), "{}", run.stderr);
}

#[test]
fn an_lbd_that_goes_away_is_no_success() {
    let lbd = FakeLbd::start();
    lbd.script_drains([vec![www(5, false)]]);
    let mut child = command(&lbd, "backend drain web-1 --wait")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    std::fs::remove_file(lbd.socket()).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let start =
        "error: whether `web-1` is safe to stop is not known: lbd is not running, or its socket";
    assert!(rest.starts_with(start), "{rest}");
}

#[test]
fn an_interrupt_leaves_the_drain_going_and_says_so() {
    let lbd = FakeLbd::start();
    lbd.script_drains([vec![www(5, false)]]);
    let mut child = command(&lbd, "backend drain web-1 --wait")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let expected = "error: interrupted; the drain of `web-1` goes on: `lbctl drains` shows it, `lbctl backend undrain \
                    web-1` ends it\n";
    assert_eq!(rest, expected);
    assert_eq!(lbd.take_changes().len(), 1, "nothing was undone");
}
