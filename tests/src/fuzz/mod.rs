//! Differential fuzzing: random packets through the real program and through [`crate::model`]. What XDP answers and every
//! byte are compared packet by packet, counters, the flow table and what is known of fragments batch by batch.
//!
//! **Invariant.** Everything but the clock is drawn from the seed, so a seed and a number of packets name a run. A
//! difference in what a batch has counted is traced to the packet by sending the batch once more.
//!
//! Two batches of four go through the program in its form for jumbo frames.

mod batch;
mod build;
mod difference;
mod mutate;
mod pool;
mod world;

use crate::{counters::Counters, fixtures, network, prog_run::Balancer};
use anyhow::{Context, Result, bail};
use lb_common::{flow_table::FlowEvent, verdict::Verdict};
use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

pub use batch::Bench;
pub use world::world;

/// Packets of a batch.
const BATCH: u64 = 8_192;

/// Arguments of a run.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "cargo xtask fuzz",
    about = "Sends random packets through the program and through a model of it, and compares"
)]
pub struct Arguments {
    /// Time to go on for, in seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Packets to send instead, however long it takes; rounded up to whole batches
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    packets: Option<u64>,
    /// Where the packets are drawn from [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Threads that each send packets through a program of their own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    workers: u64,
}

/// When a run is over.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so much time.
    Time(Duration),
    /// After at least so many packets.
    Packets(u64),
}

/// What a run has come to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Packets sent.
    pub packets: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What was counted, by the program and by the model alike.
    pub counters: Counters,
}

impl Summary {
    /// Verdicts and events that no packet has led to although the fuzzer means to reach them: it does not test what it
    /// should. Left out is the verdict that no test run can lead to.
    pub fn not_reached(&self) -> Vec<String> {
        let verdicts = Verdict::ALL
            .iter()
            .filter(|verdict| **verdict != Verdict::DropNoHeadroom);
        let missing = verdicts.filter(|verdict| !self.counters.verdicts.contains_key(verdict));
        let events = FlowEvent::ALL
            .iter()
            .filter(|event| **event != FlowEvent::Failed);
        let events = events.filter(|event| !self.counters.flows.contains_key(event));
        missing
            .map(|verdict| verdict.name().to_owned())
            .chain(events.map(|event| format!("{event:?}")))
            .collect()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        let rate = self.packets as f64 / seconds;
        writeln!(
            f,
            "{} packets in {seconds:.1} s, {rate:.0} a second:",
            self.packets
        )?;
        for (verdict, count) in &self.counters.verdicts {
            writeln!(f, "  {:<24} {count:>12}", verdict.name())?;
        }
        for (event, count) in &self.counters.flows {
            writeln!(f, "  flow table: {:<12} {count:>12}", format!("{event:?}"))?;
        }
        Ok(())
    }
}

/// Runs it with these arguments and says how it went.
pub fn run(arguments: &Arguments) -> Result<()> {
    let missing = crate::require::missing_for_bpf();
    if !missing.is_empty() {
        bail!("fuzzing needs {}", missing.join(", "));
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let limit = match arguments.packets {
        Some(packets) => Limit::Packets(packets),
        None => Limit::Time(Duration::from_secs(arguments.seconds)),
    };
    println!("seed {seed}, {} workers", arguments.workers);
    let summary = fuzz(seed, limit, arguments.workers)?;
    print!("{summary}");
    for name in summary.not_reached() {
        println!("  not reached: {name}");
    }
    println!("no difference between the program and its model");
    Ok(())
}

/// Sends packets until the limit. An error describes the first difference, or why the program cannot be run.
pub fn fuzz(seed: u64, limit: Limit, workers: u64) -> Result<Summary> {
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let corpus: Vec<Vec<u8>> = fixtures::all()
        .into_iter()
        .flat_map(|fixture| fixture.cases)
        .map(|case| case.frame)
        .collect();
    let results: Vec<Result<Summary>> = thread::scope(|scope| {
        let (corpus, stop) = (&corpus, &stop);
        let start_worker = |number| {
            scope.spawn(move || {
                let outcome = work(seed, number, workers, limit, corpus, stop);
                if outcome.is_err() {
                    stop.store(true, Relaxed);
                }
                outcome
            })
        };
        let threads: Vec<_> = (0..workers).map(start_worker).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Summary>>| {
            let gone = |_| {
                Err(anyhow::anyhow!(
                    "a worker panicked; repeat it with seed {seed}"
                ))
            };
            thread.join().unwrap_or_else(gone)
        };
        threads.into_iter().map(join).collect()
    });
    let mut sum = Summary::default();
    for result in results {
        let summary = result?;
        sum.packets += summary.packets;
        sum.counters.add(&summary.counters);
    }
    sum.elapsed = start.elapsed();
    Ok(sum)
}

/// Every `workers`th batch from `number` on, until the limit.
fn work(
    seed: u64,
    number: u64,
    workers: u64,
    limit: Limit,
    corpus: &[Vec<u8>],
    stop: &AtomicBool,
) -> Result<Summary> {
    network::enter()?;
    let start = Instant::now();
    let mut benches = [
        Bench::new(Balancer::load()?, corpus)?,
        Bench::new(Balancer::for_jumbo_frames()?, corpus)?,
    ];
    let mut summary = Summary::default();
    for batch in (number..).step_by(workers as usize) {
        let over = match limit {
            Limit::Time(time) => start.elapsed() >= time,
            Limit::Packets(packets) => batch * BATCH >= packets,
        };
        if over || stop.load(Relaxed) {
            break;
        }
        let [plain, jumbo] = &mut benches;
        let bench = if batch / 2 % 2 == 0 { plain } else { jumbo };
        let counters = bench
            .send(seed, batch)
            .with_context(|| format!("seed {seed}, batch {batch}"))?;
        summary.packets += BATCH;
        summary.counters.add(&counters);
    }
    Ok(summary)
}
