//! Failover: real BGP speakers beside `lbd`, a router with a route to each node, and what takes how long when a node, its speaker,
//! its data plane or its pool goes; then fleets of two and four, whose balancers leave and come back while every byte of many
//! connections is compared.
//!
//! **Invariant.** Whatever ends it, nothing of it is left. It exits with 0 only if no connection broke, no UDP flow moved, and
//! no route was lost that had to stay.

mod departures;
mod figures;
mod matrix;
mod routes;
mod site;
mod stream;

use crate::{
    chaos::{moves, raise_open_files, server},
    interrupt, require,
    session::Session,
    speaker::Kind,
};
use anyhow::{Context, Result, bail};
use departures::Plan;
use figures::Figures;
use matrix::Matrix;
use std::{fs, net::Ipv4Addr, path::PathBuf, process::ExitCode, time::Duration};

/// Arguments of a run.
#[derive(Debug, clap::Parser)]
#[command(
    name = "cargo xtask failover",
    about = "Announces VIPs by real BGP speakers, takes nodes away, and says how long it takes and what it breaks",
    args_conflicts_with_subcommands = true
)]
pub struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// File to write the figures to
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Speakers to measure; none after this option alone [default: all]
    #[arg(long, value_name = "SPEAKER", value_delimiter = ',', num_args = 0.., value_enum)]
    speakers: Option<Vec<Kind>>,
    /// Fleets to play, by their numbers of balancers; none after this option alone
    #[arg(
        long,
        value_name = "BALANCERS",
        value_delimiter = ',',
        num_args = 0..,
        default_value = "2,4",
        value_parser = clap::value_parser!(u8).range(2..=16)
    )]
    fleets: Vec<u8>,
    /// Leave the pair with keepalived out
    #[arg(long)]
    without_pair: bool,
    /// Long-lived connections of a fleet, and of the pair
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    connections: u64,
    /// How often each time is taken; the median is what is said
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long connections are watched after each change, in seconds
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=600))]
    after: u64,
}

#[derive(Debug, clap::Subcommand)]
enum Part {
    /// The server of a backend
    #[command(hide = true)]
    Serve { name: String, vip: Ipv4Addr },
}

/// Runs it and says how it went.
pub fn run(arguments: &Arguments) -> ExitCode {
    let outcome = match &arguments.part {
        Some(Part::Serve { name, vip }) => server::run(name, *vip).map(|()| true),
        None => perform(arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
fn perform(arguments: &Arguments) -> Result<bool> {
    let kinds = arguments.speakers.clone().unwrap_or(Kind::ALL.to_vec());
    let mut missing = require::missing_for_network();
    // Fleets have BIRD.
    let fleets = (!arguments.fleets.is_empty()).then_some(Kind::Bird);
    let all = kinds.iter().copied().chain(fleets);
    missing.extend(
        all.flat_map(|kind| [kind, kind.router()])
            .filter_map(Kind::lack),
    );
    if !arguments.without_pair && !require::in_path("keepalived") {
        missing.push("keepalived in PATH (apt-get install keepalived)".into());
    }
    missing.dedup();
    if !missing.is_empty() {
        bail!("failover needs {}", missing.join(", "));
    }
    raise_open_files()?;
    let mut figures = Figures::default();
    let played = play(arguments, &kinds, &mut figures);
    sum_up(&mut figures, &arguments.fleets);
    if !kinds.is_empty() {
        println!("\n{}", figures.table(&kinds));
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&figures.json())? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    played?;
    let good = figures.all_zero(".broken") && figures.all_zero("_losses");
    println!(
        "{}",
        if good {
            "nothing broke"
        } else {
            "SOMETHING broke"
        }
    );
    Ok(good)
}

fn play(arguments: &Arguments, kinds: &[Kind], figures: &mut Figures) -> Result<()> {
    // One name for all parts, of which each is gone before the next begins: a signal finds what there is.
    let name = Session::unique().name().to_owned();
    let same = name.clone();
    interrupt::clean_up_on_signals(move || Session::named(&same))?;
    for kind in kinds {
        println!("\n{}", kind.name());
        let mut matrix = Matrix::set_up(Session::named(&name), *kind, figures)?;
        matrix.run(arguments.rounds).context(kind.name())?;
    }
    for balancers in &arguments.fleets {
        println!("\na fleet of {balancers}");
        let plan = Plan {
            balancers: *balancers,
            connections: arguments.connections,
            after: Duration::from_secs(arguments.after),
        };
        departures::play(Session::named(&name), plan, figures)
            .with_context(|| format!("a fleet of {balancers} balancers"))?;
    }
    if !arguments.without_pair {
        println!("\na pair with keepalived");
        let program = std::env::current_exe()?;
        let session = Session::named(&name);
        let pair = moves::perform(session, &program, "l2", arguments.connections)
            .context("a pair with keepalived")?;
        for (name, value) in pair.named() {
            figures.add(name, value);
        }
    }
    Ok(())
}

/// Figures that are made of others.
fn sum_up(figures: &mut Figures, fleets: &[u8]) {
    println!("\nin all");
    for event in ["node_drain", "node_kill", "node_return"] {
        let of = |balancers| figures.sum(&format!("fleet{balancers}.{event}.broken"));
        let sums: Vec<f64> = fleets.iter().filter_map(of).collect();
        if !sums.is_empty() {
            figures.add(&format!("{event}.broken"), sums.iter().sum());
        }
    }
    // From the freeze of a node to the first packet at another, with BIRD on both sides.
    if let Some(reroute) = figures.get("bird.frozen_packet_ms") {
        figures.add("bfd.reroute_ms", reroute);
    }
}
