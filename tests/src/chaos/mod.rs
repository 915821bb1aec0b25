//! Chaos: two balancers behind an ECMP router. Backends are drained, removed, killed and brought back, daemons killed and
//! upgraded, while every byte of many connections is compared. What breaks although nobody killed its server is a bug of
//! the balancer.
//!
//! **Invariant.** Whatever ends it (its end, a failure, Ctrl-C), nothing of it is left. It exits with 0 only if no
//! connection broke, no UDP flow moved, and as many connections as asked for were open. The same seed gives the same
//! events.

pub(crate) mod clients;
pub(crate) mod fleet;
mod flood;
pub(crate) mod ledger;
mod plan;
mod report;
pub(crate) mod server;
mod services;
mod stream;
mod takeover;

pub mod moves;
pub mod pair;

use crate::{interrupt, require, session::Session, topology::VIP_V4, wait::wait_until};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clients::Load;
use fleet::{Fleet, Shape};
use flood::Flood;
use ledger::Ledger;
use plan::{Event, Kind};
use report::{FloodReport, Report};
use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Longest wait for all connections to be open.
const OPENING: Duration = Duration::from_secs(30);
/// Time between the flood and the first event, and between the last event and the end.
const QUIET: Duration = Duration::from_secs(2);
/// Workers that send requests.
const WORKERS: u64 = 4;

/// Arguments of a run.
#[derive(Debug, clap::Parser)]
#[command(
    name = "cargo xtask chaos",
    about = "Breaks and changes everything around live connections, and counts those that notice",
    args_conflicts_with_subcommands = true
)]
pub struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// Time with traffic, in seconds
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(10..=3_600))]
    seconds: u64,
    /// Where the events are drawn from: the same seed gives the same events [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// File to write the report to; the logs of both lbd go beside it, as FILE.lbd-1.log and FILE.lbd-2.log
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Long-lived TCP connections
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    connections: u64,
    /// UDP flows
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    udp_flows: u64,
    /// Kinds of events to leave out
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_enum)]
    without: Vec<Kind>,
}

#[derive(Debug, clap::Subcommand)]
enum Part {
    /// The server of a backend
    #[command(hide = true)]
    Serve { name: String, vip: Ipv4Addr },
    /// A balancer dies in the middle of a drain, and the other takes its flows over, in mode gue
    Takeover(takeover::Arguments),
}

/// Runs it and says how it went.
pub fn run(arguments: &Arguments) -> ExitCode {
    let outcome = match &arguments.part {
        Some(Part::Serve { name, vip }) => server::run(name, *vip).map(|()| true),
        Some(Part::Takeover(arguments)) => takeover::perform(arguments),
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

/// This program, which is every backend's server too.
fn program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this program is")
}

/// Whether all was well.
fn perform(arguments: &Arguments) -> Result<bool> {
    let missing = require::missing_for_network();
    if !missing.is_empty() {
        bail!("chaos needs {}", missing.join(", "));
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}; repeat it with: {}", again(arguments, seed));
    raise_open_files()?;
    let session = Session::unique();
    let name = session.name().to_owned();
    interrupt::clean_up_on_signals(move || Session::named(&name))?;
    let mut fleet = Fleet::set_up(session, Shape::chaos("ipip"))?;
    println!("two balancers and {} backends are up", fleet::BACKENDS);

    let ledger = Arc::new(Ledger::new());
    let report = play(arguments, seed, &mut fleet, &ledger)?;
    let good = report.good(&ledger);
    if !good {
        eprintln!("{}", fleet.logs(40));
    }
    println!("{}", report.words(&ledger));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report.json(&ledger))? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fleet.write_logs(path)?;
    }
    println!(
        "{}",
        if good {
            "all was well"
        } else {
            "NOT all was well"
        }
    );
    Ok(good)
}

/// Traffic, the flood, the events, the end.
fn play(
    arguments: &Arguments,
    seed: u64,
    fleet: &mut Fleet,
    ledger: &Arc<Ledger>,
) -> Result<Report> {
    let (stop, stopped) = watch::channel(false);
    let asked = usize::try_from(arguments.connections)?;
    let load = Load {
        connections: arguments.connections,
        workers: WORKERS,
        flows: arguments.udp_flows,
    };
    let clients = {
        let ledger = Arc::clone(ledger);
        let run = move || clients::run(VIP_V4, load, seed, &ledger, &stopped);
        fleet.topology.client.spawn(run)
    };
    let open = || ledger.open.load(Relaxed);
    let opening = wait_until("all connections to be open", OPENING, || {
        Ok((open() >= asked).then_some(()))
    });
    let established = open();
    let start = Instant::now();
    let mut report = Report {
        seed,
        seconds: 0.0,
        asked,
        established,
        open_at_end: 0,
        flows: load.flows,
        flood: None,
        flow_entries_at_end: None,
        error: None,
    };
    println!("{established} of {asked} connections are open");
    let outcome = opening.and_then(|()| {
        report.flood = Some(flood(fleet, arguments.seconds, seed)?);
        if let Some(flood) = &report.flood {
            print!("{}", flood.words());
        }
        make_events(arguments, seed, start, fleet, ledger)
    });
    report.error = outcome.err().map(|error| format!("{error:#}"));
    if report.error.is_none() {
        thread::sleep(Duration::from_secs(arguments.seconds).saturating_sub(start.elapsed()));
    }
    match fleet.flow_entries() {
        Ok(entries) => report.flow_entries_at_end = Some(entries),
        // The first error is the one to tell.
        Err(error) => report.error = report.error.or(Some(format!("{error:#}"))),
    }
    report.seconds = start.elapsed().as_secs_f64();
    stop.send_replace(true);
    clients
        .join()
        .map_err(|_| anyhow!("the clients panicked"))??;
    report.open_at_end = open();
    Ok(report)
}

/// The flood, before anything changes: slots are steady, and no packet of it may be recorded.
fn flood(fleet: &Fleet, seconds: u64, seed: u64) -> Result<FloodReport> {
    let time = flood_time(seconds);
    let mac = fleet.router_mac()?;
    let entries_before = fleet.flow_entries()?;
    let forwarded = fleet.forwarded()?;
    let sent = fleet
        .topology
        .client
        .run(|| Flood::new(server::TCP_PORT, mac, seed)?.send(time))?;
    let forwarded = fleet.forwarded()?.saturating_sub(forwarded);
    ensure!(sent.packets > 0, "the flood sent nothing");
    Ok(FloodReport {
        packets: sent.packets,
        seconds: sent.time.as_secs_f64(),
        forwarded,
        entries_before,
        entries_after: fleet.flow_entries()?,
    })
}

/// How long the flood is in a run of so many seconds.
fn flood_time(seconds: u64) -> Duration {
    Duration::from_secs((seconds / 12).clamp(2, 10))
}

/// Every event at its time, or as soon after it as the one before has ended.
fn make_events(
    arguments: &Arguments,
    seed: u64,
    start: Instant,
    fleet: &mut Fleet,
    ledger: &Ledger,
) -> Result<()> {
    // What the flood takes is known before, so that the list depends on the arguments only.
    let time = Duration::from_secs(arguments.seconds);
    let length = time.saturating_sub(flood_time(arguments.seconds) + 2 * QUIET);
    let begin = start.elapsed() + QUIET;
    let backends = usize::from(fleet::BACKENDS);
    for Event { at, action } in plan::draw(
        seed,
        length,
        backends,
        2,
        &Kind::all_without(&arguments.without),
    ) {
        thread::sleep((begin + at).saturating_sub(start.elapsed()));
        ledger.happens(action.kind().name(), action.to_string());
        fleet
            .act(action, ledger)
            .with_context(|| format!("cannot {action}"))?;
    }
    thread::sleep(QUIET);
    Ok(())
}

/// The command that gives the same events.
fn again(arguments: &Arguments, seed: u64) -> String {
    let mut command = format!(
        "cargo xtask chaos --seed {seed} --seconds {} --connections {}",
        arguments.seconds, arguments.connections
    );
    if !arguments.without.is_empty() {
        let kinds: Vec<_> = arguments.without.iter().map(|kind| kind.name()).collect();
        command += &format!(" --without {}", kinds.join(","));
    }
    command
}

/// Allows as many open files as the machine does: every connection is one.
pub(crate) fn raise_open_files() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is that of a value of the type that getrlimit(2) fills.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(got == 0, "getrlimit: {}", std::io::Error::last_os_error());
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above; setrlimit(2) only reads it.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(set == 0, "setrlimit: {}", std::io::Error::last_os_error());
    Ok(())
}
