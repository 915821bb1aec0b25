//! `cargo xtask test`: every check and every test, stage by stage. A stage that fails does not stop the next.
//!
//! **Invariants.** What cannot run here is said aloud and counted as skipped; where `CI` is set, a lack of root counts
//! as failed. The last line is the sum, alone.

use crate::{build, command, setup, tally::Tally};
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
    /// Run only this (may be given more than once)
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
}

/// A part of the tests.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Format, lints, documentation, unit file
    Lint,
    /// Tests that need no privilege
    Unit,
    /// The real eBPF programs on single packets (root)
    Program,
    /// Network namespaces with real traffic (root)
    Netns,
}

/// What a stage needs that a machine can lack.
#[derive(Clone, Copy)]
enum Need {
    Nothing,
    Root,
    /// A program, and how to get it.
    Program(&'static str, &'static str),
}

struct Stage {
    part: Part,
    title: &'static str,
    need: Need,
    command: Command,
}

/// Sets up, builds, runs every stage asked for, prints the sum.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let toolchain = setup::run(root)?;
    build::programs(root, &toolchain)?;
    println!("building:      everything");
    command::run(command::cargo(root).args(["build", "--workspace", "--all-targets"]))?;

    let mut sum = Tally::default();
    let wanted = |stage: &Stage| options.only.is_empty() || options.only.contains(&stage.part);
    for stage in stages(root).into_iter().filter(wanted) {
        sum += run_stage(stage);
    }
    println!("\nall stages: {:.0} s", start.elapsed().as_secs_f64());
    println!("{sum}");
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn stages(root: &Path) -> Vec<Stage> {
    let stage = |part, title, need, arguments: &[&str]| {
        let mut command = command::cargo(root);
        command.args(arguments).env("RUSTDOCFLAGS", "-D warnings");
        Stage {
            part,
            title,
            need,
            command,
        }
    };
    let fmt = Need::Program("cargo-fmt", "rustup component add rustfmt");
    let clippy = Need::Program("cargo-clippy", "rustup component add clippy");
    // lb-ebpf is a workspace of its own. What its programs share with user space is linted and tested for the host;
    // the build above has compiled all of it for the kernel.
    let ebpf = [
        "--manifest-path",
        "lb-ebpf/Cargo.toml",
        "--target-dir",
        "target/ebpf-host",
    ];
    let ebpf_fmt = ["fmt", "--check", "--manifest-path", "lb-ebpf/Cargo.toml"];
    let strict = ["--", "-D", "warnings"];
    let workspace = ["--workspace", "--all-targets"];
    let tests = ["test", "--no-fail-fast", "--package", "lb-tests"];
    let mut all = vec![
        stage(Part::Lint, "format", fmt, &["fmt", "--check", "--all"]),
        stage(Part::Lint, "format of the eBPF programs", fmt, &ebpf_fmt),
        stage(
            Part::Lint,
            "lints",
            clippy,
            &[&["clippy"], &workspace[..], &strict].concat(),
        ),
        stage(
            Part::Lint,
            "lints of the eBPF programs",
            clippy,
            &[&["clippy"], &ebpf[..], &strict].concat(),
        ),
        stage(
            Part::Lint,
            "documentation",
            Need::Nothing,
            &["doc", "--no-deps", "--workspace"],
        ),
    ];
    all.push(unit_file(root));
    all.extend([
        stage(
            Part::Unit,
            "unit tests",
            Need::Nothing,
            &[
                "test",
                "--no-fail-fast",
                "--workspace",
                "--exclude",
                "lb-tests",
            ],
        ),
        stage(
            Part::Unit,
            "unit tests of the eBPF programs",
            Need::Nothing,
            &[&["test", "--lib"], &ebpf[..]].concat(),
        ),
        stage(
            Part::Unit,
            "tests of the test kit",
            Need::Nothing,
            &[&tests[..], &["--lib", "--bins"]].concat(),
        ),
        stage(
            Part::Program,
            "eBPF programs",
            Need::Root,
            &[&tests[..], &["--test", "program_*"]].concat(),
        ),
        stage(
            Part::Netns,
            "network namespaces",
            Need::Root,
            &[&tests[..], &["--test", "netns_*"]].concat(),
        ),
    ]);
    all
}

/// Runs one stage and counts. A check without results of its own counts when it fails.
fn run_stage(mut stage: Stage) -> Tally {
    println!("\n=== {} ({})", stage.title, command::line(&stage.command));
    if let Some(lack) = stage.need.lack() {
        let in_ci = env::var_os("CI").is_some_and(|value| !value.is_empty());
        let required = in_ci && matches!(stage.need, Need::Root);
        println!(
            "{} {}: {lack}",
            if required { "FAILED" } else { "SKIPPED" },
            stage.title
        );
        return if required {
            Tally::failure()
        } else {
            Tally::skip()
        };
    }
    let start = Instant::now();
    let mut tally = Tally::default();
    let result = stream(&mut stage.command, &mut tally);
    if let Err(error) = &result {
        println!("FAILED {}: {error:#}", stage.title);
        if tally.failed == 0 {
            tally.failed = 1;
        }
    }
    println!(
        "--- {}: {:.1} s",
        stage.title,
        start.elapsed().as_secs_f64()
    );
    tally
}

/// Runs a command, passes its output on line by line, and counts the test results in it.
fn stream(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start")?;
    let stdout = child.stdout.take().context("no standard output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what it prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
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

/// The unit file, as systemd reads it. The daemon need not be installed for that, so a copy names a program that is.
fn unit_file(root: &Path) -> Stage {
    let check = "set -e; copy=$(mktemp -d); trap 'rm -r \"$copy\"' EXIT; \
                 sed 's|/usr/local/bin/lbd|/bin/true|' deploy/lbd.service >\"$copy/lbd.service\"; \
                 systemd-analyze verify --man=no \"$copy/lbd.service\"";
    let mut command = Command::new("sh");
    command.args(["-c", check]).current_dir(root);
    Stage {
        part: Part::Lint,
        title: "unit file",
        need: Need::Program("systemd-analyze", "part of systemd"),
        command,
    }
}

impl Need {
    /// What is lacking here, if anything.
    fn lack(self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Root if command::is_root() => None,
            Self::Root => Some("needs root: run `cargo xtask test` as root".into()),
            Self::Program(program, _) if command::find(program).is_some() => None,
            Self::Program(program, hint) => Some(format!("{program} is not installed ({hint})")),
        }
    }
}
