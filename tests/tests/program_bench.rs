//! The benchmark of packets does what it says: every case ends as it should, and has a figure.

use anyhow::{Result, ensure};
use lb_tests::{
    bench::packet::{self, Effort},
    require,
};
use std::process::{Command, Output};

#[test]
fn every_case_ends_as_it_should() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let effort = Effort {
        rounds: 2,
        repeats: 1_000,
        slow_down: false,
    };
    let figures = packet::run(effort)?;
    for name in [
        "trivial_tx",
        "pass",
        "tcp4.established.1",
        "tcp4.established.1000",
        "tcp4.established.64000",
        "tcp4.established.1000000",
        "tcp4.syn.1",
        "tcp4.syn.1000000",
        "tcp6.established.1",
        "udp4.1",
    ] {
        let name = format!("packet.{name}");
        let figure = figures.get(&name).filter(|figure| figure.unit == "ns");
        assert!(figure.is_some(), "{name}: {figures:?}");
    }
    Ok(())
}

/// `bench packet` with more arguments.
fn bench(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    Ok(command
        .args(["packet", "--quick"])
        .args(arguments)
        .output()?)
}

#[test]
fn a_slow_down_makes_compare_fail() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (json, html) = (path("old.json"), path("page.html"));
    let first = bench(&["--json", &json, "--html", &html])?;
    ensure!(first.status.success(), "{first:?}");
    let page = std::fs::read_to_string(&html)?;
    assert!(
        page.contains("</svg>") && page.contains("packet.pass"),
        "{page}"
    );
    // A look-up is a quarter of what a packet costs; the other half of what is tolerated is for a machine that does something else.
    let slower = bench(&["--slow-down", "--compare", &json, "--tolerance", "10"])?;
    assert_eq!(slower.status.code(), Some(1), "{slower:?}");
    let said = String::from_utf8(slower.stdout)?;
    for case in ["packet.tcp4.established.1:", "packet.pass:", "packet.drop:"] {
        let line = said.lines().find(|line| line.starts_with(case));
        assert!(
            line.is_some_and(|line| line.ends_with("worse")),
            "{case} {said}"
        );
    }
    Ok(())
}
