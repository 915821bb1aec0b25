//! Tasks that are programs of package `lb-tests`: sets up, builds, and hands over.

use crate::{build, command, setup};
use anyhow::{Context, Result, bail};
use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

/// Options of the program itself; `--help` shows them.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Passed on to the program, such as --seed 7. The first may be --release or --debug: build optimised or not.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    arguments: Vec<String>,
}

/// One of these programs.
pub struct Program {
    /// Its binary.
    pub name: &'static str,
    /// What it does that only root can.
    pub needs_root: &'static str,
    /// Whether it runs `lbd` and `lbctl`.
    pub runs_daemon: bool,
    /// Whether it is built optimised unless said otherwise.
    pub optimised: bool,
}

/// A small network with a balanced service.
pub const DEMO: Program = Program {
    name: "demo",
    needs_root: "the demo makes network namespaces and loads an XDP program",
    runs_daemon: true,
    optimised: true,
};

/// Two balancers and a pool in which everything changes.
pub const CHAOS: Program = Program {
    name: "chaos",
    needs_root: "chaos makes network namespaces and loads XDP programs",
    runs_daemon: true,
    optimised: false,
};

/// Real BGP speakers, and nodes that go and come.
pub const FAILOVER: Program = Program {
    name: "failover",
    needs_root: "failover makes network namespaces and loads XDP programs",
    runs_daemon: true,
    optimised: true,
};

/// Random packets through the program and a model of it.
pub const FUZZ: Program = Program {
    name: "fuzz",
    needs_root: "fuzzing loads XDP programs",
    runs_daemon: false,
    optimised: true,
};

/// What packets and changes cost.
pub const BENCH: Program = Program {
    name: "bench",
    needs_root: "measuring loads XDP programs",
    runs_daemon: true,
    optimised: true,
};

impl Program {
    /// Sets up, builds, and becomes the program.
    pub fn run(&self, root: &Path, options: &Options) -> Result<ExitCode> {
        let (optimised, arguments) = match options.arguments.split_first() {
            Some((first, rest)) if first == "--release" => (true, rest),
            Some((first, rest)) if first == "--debug" => (false, rest),
            _ => (self.optimised, &options.arguments[..]),
        };
        let asks = |argument: &String| argument == "--help" || argument == "-h";
        if !command::is_root() && !arguments.iter().any(asks) {
            bail!("{}, which only root can: run it as root", self.needs_root);
        }
        let toolchain = setup::run(root)?;
        build::programs(root, &toolchain)?;
        println!("building:      {}", self.name);
        let mut cargo = command::cargo(root);
        cargo.args(["build", "--package", "lb-tests", "--bin", self.name]);
        if self.runs_daemon {
            cargo.args("--package lb-userspace --bin lbd --bin lbctl".split(' '));
        }
        if optimised {
            cargo.arg("--release");
        }
        command::run(&mut cargo)?;
        println!();
        let profile = if optimised { "release" } else { "debug" };
        let program = root.join("target").join(profile).join(self.name);
        let error = Command::new(&program).args(arguments).exec();
        Err(error).with_context(|| format!("cannot run {}", program.display()))
    }
}
