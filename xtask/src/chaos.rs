//! `cargo xtask chaos`: builds everything and hands over to chaos, a program of package `lb-tests`.

use crate::{build, command, setup};
use anyhow::{Context, Result, bail};
use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

/// Options of chaos itself; `cargo xtask chaos --help` shows them.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Passed on to chaos, such as --seed 7 or --seconds 60. The first may be --release: build optimised.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    arguments: Vec<String>,
}

/// Sets up, builds, and becomes chaos.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let (optimised, arguments) = match options.arguments.split_first() {
        Some((first, rest)) if first == "--release" => (true, rest),
        _ => (false, &options.arguments[..]),
    };
    let asks = |argument: &String| argument == "--help" || argument == "-h";
    if !command::is_root() && !arguments.iter().any(asks) {
        bail!(
            "chaos makes network namespaces and loads XDP programs, which only root can: run it as root"
        );
    }
    let toolchain = setup::run(root)?;
    build::programs(root, &toolchain)?;
    println!("building:      lbd, lbctl and chaos");
    let mut cargo = command::cargo(root);
    cargo.args("build --package lb-userspace --package lb-tests --bins".split(' '));
    if optimised {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    println!();
    let profile = if optimised { "release" } else { "debug" };
    let chaos = root.join("target").join(profile).join("chaos");
    let error = Command::new(&chaos).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", chaos.display()))
}
