//! `cargo xtask demo`: builds everything and hands over to the demo, a program of package `lb-tests`.

use crate::{build, command, setup};
use anyhow::{Context, Result, bail};
use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

/// Options of the demo itself; `cargo xtask demo --help` shows them.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Passed on to the demo, such as --keep or --down.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    arguments: Vec<String>,
}

/// Sets up, builds, and becomes the demo.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    if !command::is_root()
        && !options
            .arguments
            .iter()
            .any(|argument| argument == "--help" || argument == "-h")
    {
        bail!(
            "the demo makes network namespaces and loads an XDP program, which only root can: run it as root"
        );
    }
    let toolchain = setup::run(root)?;
    build::programs(root, &toolchain)?;
    println!("building:      lbd, lbctl and the demo");
    let packages = [
        "--package",
        "lb-userspace",
        "--package",
        "lb-tests",
        "--bins",
    ];
    command::run(
        command::cargo(root)
            .args(["build", "--release"])
            .args(packages),
    )?;
    println!();
    let demo = root.join("target/release/demo");
    let error = Command::new(&demo).args(&options.arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", demo.display()))
}
