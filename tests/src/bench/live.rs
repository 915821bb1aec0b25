//! Frames sent for real through the balancer on this machine: how many a second on one CPU and on two, and how late they come
//! back at half of that. Beside it the same wire without the balancer.

use super::{
    figure::{Figure, Figures},
    wire::{Ends, INTERFACE, Sink, Wire},
};
use crate::process::output;
use anyhow::{Context, Result, ensure};
use std::thread;

/// How much.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs of each figure, after one that does not count.
    pub rounds: usize,
    /// Frames of a run, on each CPU.
    pub frames: u32,
}

impl Effort {
    /// Half a minute in all, or some seconds.
    pub fn of(quick: bool) -> Self {
        let (rounds, frames) = if quick { (3, 1 << 17) } else { (7, 1 << 20) };
        Self { rounds, frames }
    }
}

/// Frames that are made before the first of them is sent on: as many as a driver takes at once.
const BATCH: u32 = 64;
/// The same when it is measured how late they are.
const BURST: u32 = 8;
/// Width of a step of lateness, in nanoseconds, as `lb-ebpf/src/bin/live.rs` has it.
const STEP: f64 = 20.0;
/// Figures of lateness, and the part of the frames that are no later.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)];

/// Measures with the balancer, and then without at the same pace.
pub fn run(effort: Effort) -> Result<Figures> {
    let mut wire = Wire::create()?;
    two_queues(&wire)?;
    let mut figures = Figures::new();
    wire.balance()?;
    let fastest = load(&wire, "live.mpps", effort, &mut figures)?;
    // Nanoseconds from a frame to the next at half the load: Mpps are frames a microsecond.
    let interval = (2_000.0 / fastest) as u64;
    let with = lateness(&wire, interval, effort)?;
    wire.stop()?;
    wire.bounce()?;
    load(&wire, "live.bare.mpps", effort, &mut figures)?;
    let without = lateness(&wire, interval, effort)?;
    for ((name, _), (with, without)) in QUANTILES.iter().zip(with.into_iter().zip(without)) {
        let each = with.iter().zip(&without);
        let added = each.map(|(with, without)| with - without).collect();
        for (kind, samples) in [
            ("latency", with.clone()),
            ("bare.latency", without.clone()),
            ("added", added),
        ] {
            figures.insert(format!("live.{kind}.{name}"), Figure::new(samples, "ns"));
        }
    }
    Ok(figures)
}

/// Gives both ends of the wire a queue for each of two CPUs.
fn two_queues(wire: &Wire) -> Result<()> {
    let topology = &wire.topology;
    for (namespace, interface) in [(&topology.balancer, "eth0"), (&topology.router, INTERFACE)] {
        let mut command = namespace.command("ethtool");
        output(command.args(["-L", interface, "rx", "2", "tx", "2"]))?;
    }
    Ok(())
}

/// Millions of frames a second on one CPU and on two; the most on one.
fn load(wire: &Wire, name: &str, effort: Effort, figures: &mut Figures) -> Result<f64> {
    let ends = wire.ends(Sink::Xdp, 0)?;
    let mut fastest = 0.0;
    for cpus in [1, 2] {
        let mut samples = vec![];
        for _ in 0..=effort.rounds {
            samples.push(rate(wire, &ends, cpus, effort.frames)?);
        }
        let figure = Figure::new(samples.split_off(1), "Mpps");
        if cpus == 1 {
            fastest = figure.max();
        }
        figures.insert(format!("{name}.{cpus}"), figure);
    }
    wire.take_off(ends)?;
    Ok(fastest)
}

/// Millions of frames a second that come back, of those that are sent on so many CPUs at once.
fn rate(wire: &Wire, ends: &Ends, cpus: usize, frames: u32) -> Result<f64> {
    let router = &wire.topology.router;
    let before = ends.received()?;
    let longest = thread::scope(|scope| {
        let running: Vec<_> = (0..cpus)
            .map(|cpu| scope.spawn(move || ends.send_on(Some(cpu), router, frames, BATCH)))
            .collect();
        let mut longest = std::time::Duration::ZERO;
        for run in running {
            let took = run.join().map_err(|_| anyhow::anyhow!("a sender died"))?;
            longest = longest.max(took?);
        }
        anyhow::Ok(longest)
    })?;
    let received = ends.received()? - before;
    let sent = u64::from(frames) * cpus as u64;
    ensure!(
        received * 100 > sent * 95,
        "of {sent} frames only {received} came back"
    );
    Ok(received as f64 / longest.as_secs_f64() / 1e6)
}

/// How late frames are, in nanoseconds: the samples of each quantile.
fn lateness(wire: &Wire, interval: u64, effort: Effort) -> Result<[Vec<f64>; 3]> {
    let ends = wire.ends(Sink::Xdp, interval)?;
    let router = &wire.topology.router;
    let mut samples = [vec![], vec![], vec![]];
    let mut before = ends.late()?;
    for round in 0..=effort.rounds {
        ends.send_on(Some(0), router, effort.frames, BURST)?;
        let after = ends.late()?;
        let of_round: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        before = after;
        for ((_, part), samples) in QUANTILES.iter().zip(&mut samples) {
            if round > 0 {
                samples.push(quantile(&of_round, *part).context("nothing came back")?);
            }
        }
    }
    wire.take_off(ends)?;
    Ok(samples)
}

/// The end of the step up to which this part of all is.
fn quantile(steps: &[u64], part: f64) -> Option<f64> {
    let all: u64 = steps.iter().sum();
    let wanted = (all as f64 * part).ceil() as u64;
    let mut sum = 0;
    let step = steps.iter().position(|count| {
        sum += count;
        sum >= wanted && all > 0
    })?;
    Some((step + 1) as f64 * STEP)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn a_quantile_is_the_end_of_its_step() {
        let steps = [0, 98, 1, 1];
        for (part, end) in [(0.5, 40.0), (0.98, 40.0), (0.99, 60.0), (0.999, 80.0)] {
            assert_eq!(quantile(&steps, part), Some(end), "{part}");
        }
        assert_eq!(quantile(&[0, 0], 0.5), None);
    }
}
