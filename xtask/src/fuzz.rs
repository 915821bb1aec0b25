//! `cargo xtask fuzz`: builds the fuzzer, optimised, and hands over to it: a program of package `lb-tests`.

use crate::{build, command, setup};
use anyhow::{Context, Result, bail};
use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

/// Options of the fuzzer itself; `cargo xtask fuzz --help` shows them.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Passed on to the fuzzer, such as --seed 7, --seconds 600 or --packets 10000000. The first may be --debug: do not
    /// optimise, which is built sooner and runs at a third of the speed.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    arguments: Vec<String>,
}

/// Sets up, builds, and becomes the fuzzer.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let (debug, arguments) = match options.arguments.split_first() {
        Some((first, rest)) if first == "--debug" => (true, rest),
        _ => (false, &options.arguments[..]),
    };
    let asks = |argument: &String| argument == "--help" || argument == "-h";
    if !command::is_root() && !arguments.iter().any(asks) {
        bail!("fuzzing loads XDP programs, which only root can: run it as root");
    }
    let toolchain = setup::run(root)?;
    build::programs(root, &toolchain)?;
    println!("building:      the fuzzer");
    let mut cargo = command::cargo(root);
    cargo.args("build --package lb-tests --bin fuzz".split(' '));
    if !debug {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    println!();
    let profile = if debug { "debug" } else { "release" };
    let fuzzer = root.join("target").join(profile).join("fuzz");
    let error = Command::new(&fuzzer).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", fuzzer.display()))
}
