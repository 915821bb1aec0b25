//! Guideway's tasks. `main` only dispatches: one task a file.

mod apt;
mod build;
mod command;
mod packages;
mod program;
mod setup;
mod stage;
mod tally;
mod test;
mod toolchain;
mod verifier;
mod vm;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Guideway's tasks: from a fresh clone to a demo, a test run, a build.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: the eBPF toolchain and linker, and the packages that tests and demo run.
    Setup,
    /// Build lbd and lbctl, optimised, with the eBPF programs inside.
    Build,
    /// Run every check and test (as root, for those with real kernels and networks).
    Test(test::Options),
    /// Show a balanced service in a small network of namespaces (as root).
    Demo(program::Options),
    /// Run the tests of the eBPF programs and of backends on other kernels, in virtual machines (as root).
    Vm(vm::Options),
    /// Change and break everything around live connections, and count those that notice (as root).
    Chaos(program::Options),
    /// Announce VIPs by real BGP speakers, take nodes away, and say how long it takes and what it breaks (as root).
    Failover(program::Options),
    /// Send random packets through the program and through a model of it, and compare (as root).
    Fuzz(program::Options),
    /// Measure what packets and changes cost (as root).
    Bench(program::Options),
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    match workspace().and_then(|root| run(task, &root)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, root: &Path) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::run(root).map(|_| {
            vm::set_up(root);
            ExitCode::SUCCESS
        }),
        Task::Build => build::run(root).map(|()| ExitCode::SUCCESS),
        Task::Test(options) => test::run(root, &options),
        Task::Demo(options) => program::DEMO.run(root, &options),
        Task::Vm(options) => vm::run(root, &options),
        Task::Chaos(options) => program::CHAOS.run(root, &options),
        Task::Failover(options) => program::FAILOVER.run(root, &options),
        Task::Fuzz(options) => program::FUZZ.run(root, &options),
        Task::Bench(options) => program::BENCH.run(root, &options),
    }
}

/// The workspace that this program was built from.
fn workspace() -> Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.join("..").canonicalize();
    root.with_context(|| format!("the workspace of {} is gone", package.display()))
}
