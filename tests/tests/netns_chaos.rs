//! The short form of `cargo xtask chaos`: drains, removals, new weights, dead servers, killed and upgraded daemons, while
//! every byte of many connections is compared.

use anyhow::{Context, Result};
use lb_tests::{process::Process, require, session::Session};
use std::{fs, process::Command, time::Duration};

/// Time with traffic, in seconds.
const SECONDS: u64 = 24;
/// Long-lived connections.
const CONNECTIONS: u64 = 120;
/// Entries that the flow tables may gain under the flood: none, but for a slot that is not yet settled.
const FEW: u64 = 500;

#[test]
fn nothing_breaks_but_what_was_killed() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let session = Session::unique();
    let directory = session.directory();
    fs::create_dir_all(&directory)?;
    let (file, log) = (directory.join("chaos.json"), directory.join("chaos.log"));
    let mut command = Command::new(require::built("chaos")?);
    command
        .args(["--seconds", &SECONDS.to_string()])
        .args(["--connections", &CONNECTIONS.to_string()])
        .arg("--json")
        .arg(&file);
    let mut process = Process::start("chaos", command, &log)?;
    // It prints its seed first.
    let ended = process.wait(Duration::from_secs(120));
    println!("{}", process.log());
    let status = ended?;
    let text = fs::read_to_string(&file).context("chaos wrote no report")?;
    let report: serde_json::Value = serde_json::from_str(&text)?;
    let number = |pointer: &str| -> Result<u64> {
        let value = report.pointer(pointer).and_then(|value| value.as_u64());
        value.with_context(|| format!("no number {pointer} in the report"))
    };
    assert_eq!(number("/broken")?, 0, "{:#}", report["broken_list"]);
    assert_eq!(number("/udp_moved")?, 0, "{:#}", report["udp_moved_list"]);
    assert_eq!(number("/connections")?, CONNECTIONS);
    assert_eq!(number("/connections_open_at_end")?, CONNECTIONS);
    assert!(number("/bytes_checked")? > 100_000, "{report:#}");
    assert!(number("/requests")? > 200, "{report:#}");
    let failures = report["request_failures"].as_object().into_iter().flatten();
    let failed: u64 = failures.filter_map(|(_, count)| count.as_u64()).sum();
    assert!(failed * 100 < number("/requests")?, "{report:#}");
    assert!(number("/events")? >= 4, "{report:#}");
    assert!(number("/flood/packets")? > 10_000, "{report:#}");
    let (before, after) = (
        number("/flood/flow_entries_before")?,
        number("/flood/flow_entries_after")?,
    );
    assert!(
        after <= before + FEW,
        "the flood filled the flow tables: {before} entries before, {after} after"
    );
    // Flows of moved slots are recorded, and counted by the same means.
    assert!(number("/flow_entries_at_end")? > 0, "{report:#}");
    assert!(status.success(), "{status}");
    Ok(())
}
