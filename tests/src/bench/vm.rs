//! Figures of a guest, by way of `cargo xtask vm`: what is on the wire beside IPVS and plain forwarding, as counted
//! instructions.

use super::{
    figure::{Figure, Figures},
    guest,
};
use crate::require;
use anyhow::{Context, Result, bail, ensure};
use std::{
    env,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// Runs of each figure.
const ROUNDS: usize = 7;
/// Runs of each figure where time is short.
const FEW: usize = 3;
/// How far apart runs may be, in percent.
const SPREAD: f64 = 3.0;
/// How many times as much as the balancer IPVS has to take, at the least.
const FLOOR: f64 = 4.0;

/// Why there can be no guest here, as `cargo xtask vm` has it.
pub fn lack() -> Option<&'static str> {
    if !cfg!(target_arch = "x86_64") {
        return Some("other kernels are known for x86_64 only");
    }
    let lack = "other kernels come from Debian's packages, and this system has no apt";
    (!require::in_path("apt-get")).then_some(lack)
}

/// Boots the guest, and checks what it has come to.
pub fn run(quick: bool) -> Result<Figures> {
    let rounds = if quick { FEW } else { ROUNDS };
    let figures = boot(rounds)?;
    let apart = apart(&figures);
    ensure!(
        apart.is_empty(),
        "runs of one figure are more than {SPREAD} % apart: {}",
        apart.join(", ")
    );
    for generator in ["pktgen", "live"] {
        let ratio = ratio(&figures, generator)?;
        println!("{generator}: IPVS takes {ratio:.2} times as much as the balancer");
        ensure!(
            ratio >= FLOOR,
            "{generator}: IPVS takes {ratio:.2} times as much as the balancer, less than {FLOOR} times"
        );
    }
    Ok(figures)
}

/// This program in a guest.
fn boot(rounds: usize) -> Result<Figures> {
    let own = env::current_exe().context("where is this program?")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // As cargo says it, if it runs this.
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args("run --quiet --package xtask -- vm 6.12 --counted".split(' '))
        .arg(&own)
        .args(["--", "--in-guest", &rounds.to_string()])
        .current_dir(root);
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {cargo:?}"))?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut figures = Figures::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        figures.extend(guest::parse(&line));
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the guest failed ({status})");
    }
    Ok(figures)
}

/// Figures whose runs are too far apart, in words.
fn apart(figures: &Figures) -> Vec<String> {
    let far = figures
        .iter()
        .filter(|(_, figure)| figure.spread() > SPREAD);
    far.map(|(name, figure)| format!("{name} {:.1} %", figure.spread()))
        .collect()
}

/// How many times as much as the balancer IPVS takes.
fn ratio(figures: &Figures, generator: &str) -> Result<f64> {
    let min = |between: &str| {
        let name = format!("vm.{generator}.{between}");
        let figure = figures.get(&name).map(Figure::min);
        figure.with_context(|| format!("the guest printed no figure {name}"))
    };
    Ok(min("ipvs")? / min("lb")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_are_apart_and_figures_that_lack_are_named() {
        let mut figures = Figures::new();
        let mut add = |name: &str, samples: &[f64]| {
            figures.insert(name.into(), Figure::new(samples.to_vec(), "ns"));
        };
        add("vm.pktgen.lb", &[100.0, 102.9]);
        add("vm.pktgen.ipvs", &[410.0, 430.0]);
        assert_eq!(apart(&figures), ["vm.pktgen.ipvs 4.9 %"]);
        assert_eq!(ratio(&figures, "pktgen").unwrap(), 4.1);
        let error = ratio(&figures, "live").unwrap_err().to_string();
        assert!(error.ends_with("vm.live.ipvs"), "{error}");
    }
}
