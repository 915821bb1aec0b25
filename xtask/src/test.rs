//! `cargo xtask test`: every check and every test, stage by stage. A stage that fails does not stop the next.
//!
//! **Invariants.** What cannot run here is said aloud and counted as skipped; where `CI` is set, a lack of root counts
//! as failed. The last line is the sum, alone.

use crate::{
    build, command, setup,
    stage::{self, Need, Part, Stage},
    tally::Tally,
    verifier::Work,
};
use anyhow::{Context, Result, bail};
use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

/// What to run; everything by default.
#[derive(clap::Args)]
pub struct Options {
    /// Run only this part (may be given more than once)
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Run nothing: list the packet fixtures by name, with what each is
    #[arg(long, conflicts_with = "only")]
    list_fixtures: bool,
}

/// Sets up, builds, runs every stage asked for, prints the sum.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let toolchain = setup::run(root)?;
    build::programs(root, &toolchain)?;
    if options.list_fixtures {
        let mut cargo = command::cargo(root);
        cargo.args("run --quiet --package lb-tests --bin fixtures".split(' '));
        return command::run(&mut cargo).map(|()| ExitCode::SUCCESS);
    }
    let wanted = |stage: &Stage| options.only.is_empty() || options.only.contains(&stage.part);

    let mut work = Work::default();
    let built = run_stage(stage::build(root), &mut work);
    let mut sum = built;
    let mut failed = vec![];
    // Tests of what was built earlier would say nothing.
    if built.failed == 0 {
        for stage in stage::all(root)?.into_iter().filter(wanted) {
            let title = stage.title.clone();
            let tally = run_stage(stage, &mut work);
            sum += tally;
            if tally.failed > 0 {
                failed.push(title);
            }
        }
    }
    println!();
    for line in work.table() {
        println!("{line}");
    }
    println!("\nall stages: {:.0} s", start.elapsed().as_secs_f64());
    if !failed.is_empty() {
        println!("failed stages: {}", failed.join(", "));
    }
    println!("{sum}");
    Ok(ExitCode::from(u8::from(sum.failed > 0)))
}

/// Runs one stage and counts. A check without results of its own counts when it fails.
fn run_stage(mut stage: Stage, work: &mut Work) -> Tally {
    let line = command::line(&stage.command);
    let first = line.lines().next().unwrap_or_default();
    println!("\n=== {} ({first})", stage.title);
    if let Some(lack) = stage.need.lack() {
        return without(&stage, &lack);
    }
    let start = Instant::now();
    let mut tally = Tally::default();
    if let Err(error) = stream(&mut stage.command, &mut tally, work) {
        println!("FAILED {}: {error:#}", stage.title);
        tally.failed = tally.failed.max(1);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("--- {}: {seconds:.1} s", stage.title);
    tally
}

/// A stage that cannot run here.
fn without(stage: &Stage, lack: &str) -> Tally {
    let in_ci = env::var_os("CI").is_some_and(|value| !value.is_empty());
    if in_ci && matches!(stage.need, Need::Root | Need::Guests) {
        println!("FAILED {}: {lack}", stage.title);
        return Tally::failure();
    }
    println!("SKIPPED {}: {lack}", stage.title);
    Tally::skip()
}

/// Runs a command, passes its output on line by line, and counts the test results in it.
fn stream(command: &mut Command, tally: &mut Tally, work: &mut Work) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start")?;
    let stdout = child.stdout.take().context("no standard output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what it prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        work.note(&line);
        if let Some(counts) = Tally::of_line(&line) {
            *tally += counts;
        }
    }
    let status = child.wait().context("cannot wait for it")?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
