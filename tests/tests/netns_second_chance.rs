//! Second chance: of two balancers one is lost in the middle of a drain, and no connection breaks; without it, some do.

use anyhow::{Context, Result};
use lb_tests::{process::Process, require, session::Session};
use std::{fs, process::Command, time::Duration};

/// Long-lived connections before the drain, and as many during it.
const CONNECTIONS: u64 = 150;

/// What a run counted.
struct Counts {
    broken: u64,
    handed_on: u64,
}

fn take_over(by: &str, second_chance: &str) -> Result<Counts> {
    let session = Session::unique();
    let directory = session.directory();
    fs::create_dir_all(&directory)?;
    let (file, log) = (directory.join("counts.json"), directory.join("run.log"));
    let mut command = Command::new(require::built("chaos")?);
    command
        .args(["takeover", "--by", by, "--second-chance", second_chance])
        .args(["--connections", &CONNECTIONS.to_string()])
        .arg("--json")
        .arg(&file);
    let mut process = Process::start("chaos", command, &log)?;
    let ended = process.wait(Duration::from_secs(150));
    println!("{}", process.log());
    ended?;
    let text = fs::read_to_string(&file).context("it wrote no counts")?;
    let counts: serde_json::Value = serde_json::from_str(&text)?;
    let number = |name: &str| counts[name].as_u64().with_context(|| format!("no {name}"));
    assert!(number("connections")? >= 2 * CONNECTIONS, "{text}");
    assert!(number("bytes_checked")? > 100_000, "{text}");
    Ok(Counts {
        broken: number("broken")?,
        handed_on: number("handed_on")?,
    })
}

#[test]
fn a_balancer_that_takes_over_in_the_middle_of_a_drain_breaks_nothing() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    for by in ["native", "tc"] {
        let counts = take_over(by, "on")?;
        assert_eq!(counts.broken, 0, "{by}");
        assert!(
            counts.handed_on > 50,
            "{by}: {} handed on",
            counts.handed_on
        );
    }
    Ok(())
}

/// What the test above would miss if nothing needed a second chance.
#[test]
fn without_a_second_chance_some_connections_break() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let counts = take_over("native", "off")?;
    assert!(counts.broken > 5, "{} broken", counts.broken);
    assert_eq!(counts.handed_on, 0);
    Ok(())
}
