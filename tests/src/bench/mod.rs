//! `cargo xtask bench`: figures that anyone can repeat. docs/benchmarks.md says how each is made.

pub mod figure;
pub mod guest;
pub mod html;
pub mod live;
pub mod packet;
pub mod pktgen;
mod plot;
mod pool;
pub mod publish;
pub mod scale;
pub mod table;
pub mod vm;
pub mod wire;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use figure::{Figures, Table};
use std::{fs, path::PathBuf, process::ExitCode};

/// Arguments of a run.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "cargo xtask bench",
    about = "Measures what packets and changes cost"
)]
pub struct Arguments {
    /// What to measure [default: all]
    #[arg(value_enum)]
    what: Vec<Subject>,
    /// Write the figures to this file as one object of `name: {min, median, max, unit}`
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Show in it how figures have changed: the files *.json of this directory are earlier runs, in order of name
    #[arg(long, value_name = "DIRECTORY", requires = "html")]
    history: Option<PathBuf>,
    /// Compare with the figures of this file, which --json wrote; a figure that is worse is an error
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// How much worse a figure may be, in percent
    #[arg(long, default_value_t = 20.0)]
    tolerance: f64,
    /// Measure what is measured in a virtual machine, which this is, so many times
    #[arg(long, value_name = "ROUNDS", hide = true)]
    in_guest: Option<usize>,
    /// Take less time and be less exact: for trying things out
    #[arg(long)]
    quick: bool,
    /// Let each packet cost one look-up in an LRU map more, to see --compare find it
    #[arg(long)]
    slow_down: bool,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// What the XDP program takes for a packet
    Packet,
    /// What a slot table takes to build
    Table,
    /// What a change takes until the last slot is stored
    Publish,
    /// What many services and backends cost
    Scale,
    /// Frames sent for real through the balancer, on this machine
    Live,
    /// The same and pktgen in a virtual machine, beside IPVS, as counted instructions
    Vm,
}

/// Measures, prints, writes and compares. The code is a failure if a figure has become worse than is tolerated.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let missing = crate::require::missing_for_bpf();
    anyhow::ensure!(missing.is_empty(), "measuring needs {}", missing.join(", "));
    if let Some(rounds) = arguments.in_guest {
        return guest::run(rounds).map(|()| ExitCode::SUCCESS);
    }
    let old = arguments.compare.as_deref().map(figure::read).transpose()?;
    let history = arguments
        .history
        .as_deref()
        .map(html::history)
        .transpose()?;
    let machine = machine()?;
    println!("{machine}");
    let effort = packet::Effort {
        slow_down: arguments.slow_down,
        ..if arguments.quick {
            packet::Effort::QUICK
        } else {
            packet::Effort::default()
        }
    };
    let all = Subject::value_variants();
    let wanted = if arguments.what.is_empty() {
        all
    } else {
        &arguments.what[..]
    };
    let mut figures = Figures::new();
    for subject in wanted {
        let new = match subject {
            Subject::Packet => packet::run(effort)?,
            Subject::Table => table::run()?,
            Subject::Publish => publish::run()?,
            Subject::Scale => scale::run(effort)?,
            Subject::Live => live::run(live::Effort::of(arguments.quick))?,
            Subject::Vm => match vm::lack().filter(|_| arguments.what.is_empty()) {
                Some(lack) => {
                    println!("\nSKIPPED vm: {lack}");
                    continue;
                }
                None => vm::run(arguments.quick)?,
            },
        };
        let table = Table {
            figures: &new,
            unit_of: "packet.trivial_tx",
        };
        println!("\n{table}");
        figures.extend(new);
    }
    if let Some(path) = &arguments.json {
        figure::write(&figures, path)?;
    }
    if let Some(path) = &arguments.html {
        html::write(&figures, &history.unwrap_or_default(), &machine, path)?;
    }
    let Some(old) = old else {
        return Ok(ExitCode::SUCCESS);
    };
    let worse = figure::worse(&old, &figures, arguments.tolerance);
    if worse.is_empty() {
        println!("nothing is more than {} % worse", arguments.tolerance);
        return Ok(ExitCode::SUCCESS);
    }
    for line in &worse {
        println!("{line}");
    }
    Ok(ExitCode::FAILURE)
}

/// The machine, its kernel and the commit, in a line.
fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| {
            rest.trim_start_matches(['\t', ' ', ':'])
        });
    let count = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    Ok(format!(
        "{count} CPUs of {model}, Linux {}, load {load}, commit {}",
        kernel.trim(),
        lb_userspace::daemon::core::COMMIT
    ))
}
