//! `cargo xtask build`: lbd and lbctl, optimised.

use crate::{command, setup, toolchain::Toolchain};
use anyhow::{Context, Result};
use std::{env::consts::ARCH, path::Path};

/// Sets up what a build needs, and builds.
pub fn run(root: &Path) -> Result<()> {
    let toolchain = setup::toolchain(root)?;
    programs(root, &toolchain)?;
    command::run(command::cargo(root).args([
        "build",
        "--release",
        "--package",
        "lb-userspace",
        "--bins",
    ]))?;
    println!("built:         target/release/lbd, target/release/lbctl");
    Ok(())
}

/// Builds the eBPF programs where `lb-userspace/build.rs` will look for them. That script would do it as well, but
/// cargo shows nothing of a script that runs, and this takes half a minute.
pub fn programs(root: &Path, toolchain: &Toolchain) -> Result<()> {
    println!("building:      eBPF programs");
    let big_endian = cfg!(target_endian = "big");
    let mut build = toolchain.build(root, &root.join("target/ebpf"), ARCH, big_endian);
    command::run(&mut build).with_context(|| toolchain.hint())
}
