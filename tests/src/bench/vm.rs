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
/// How many times as much as the balancer IPVS has to take at the least, from making a frame to counting it.
const FLOOR: [(&str, f64); 3] = [("pktgen", 1.65), ("live", 4.0), ("virtio", 1.55)];

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
    for (generator, floor) in FLOOR {
        let Ratio { all, own } = Ratio::of(&figures, generator)?;
        println!(
            "{generator}: IPVS takes {all:.2} times as much as the balancer, and adds {own:.2} times as much to plain forwarding"
        );
        ensure!(
            all >= floor,
            "{generator}: IPVS takes {all:.2} times as much as the balancer, less than {floor} times"
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
        .filter_map(|(name, figure)| Some((name, figure.spread()?)))
        .filter(|(_, spread)| *spread > SPREAD);
    far.map(|(name, spread)| format!("{name} {spread:.1} %"))
        .collect()
}

/// How many times as much as the balancer IPVS takes.
struct Ratio {
    /// From making a frame to counting it.
    all: f64,
    /// What IPVS adds to the kernel's forwarding, to what the balancer adds to sending back by XDP.
    own: f64,
}

impl Ratio {
    fn of(figures: &Figures, generator: &str) -> Result<Self> {
        let min = |between: &str| {
            let name = format!("vm.{generator}.{between}");
            let figure = figures.get(&name).map(Figure::min);
            figure.with_context(|| format!("the guest printed no figure {name}"))
        };
        let (lb, ipvs) = (min("lb")?, min("ipvs")?);
        Ok(Self {
            all: ipvs / lb,
            own: (ipvs - min("forward")?) / (lb - min("bare")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_are_apart_and_figures_that_lack_are_named() {
        let figure = |name: &str, samples: &[f64]| {
            let figure = Figure::new(samples.to_vec(), "ns");
            (format!("vm.pktgen.{name}"), figure)
        };
        let mut figures = Figures::from([
            figure("lb", &[100.0, 102.9]),
            figure("ipvs", &[410.0, 430.0]),
            figure("bare", &[50.0]),
        ]);
        assert_eq!(apart(&figures), ["vm.pktgen.ipvs 4.9 %"]);
        let lacks = |figures: &Figures| Ratio::of(figures, "pktgen").map(drop).unwrap_err();
        assert!(lacks(&figures).to_string().ends_with("vm.pktgen.forward"));
        figures.extend([figure("forward", &[60.0])]);
        let ratio = Ratio::of(&figures, "pktgen").unwrap();
        assert_eq!((ratio.all, ratio.own), (4.1, 7.0));
    }
}
