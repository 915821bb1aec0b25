//! A minute of differential fuzzing, or as many seconds as `GUIDEWAY_FUZZ_SECONDS` says; `cargo xtask fuzz` is the long
//! form. And the fuzzer itself: whether it would notice.

use anyhow::{Context, Result};
use lb_common::slot::Slot;
use lb_tests::{
    effort,
    fixture::{BACKEND, tunnel, v4},
    fixtures,
    fuzz::{self, Bench, Limit},
    packet::Protocol,
    prog_run::Balancer,
    require,
    world::{Slots, World},
};
use std::{env, time::Duration};

#[test]
fn the_program_does_what_the_model_says() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seconds = match env::var("GUIDEWAY_FUZZ_SECONDS") {
        Ok(text) => text.parse().with_context(|| {
            format!("GUIDEWAY_FUZZ_SECONDS is {text:?}: set it to a number of seconds, or unset it")
        })?,
        Err(_) => effort::of(60).into(),
    };
    let seed = fastrand::u64(..1 << 32);
    println!("seed {seed}");
    let summary = fuzz::fuzz(seed, Limit::Time(Duration::from_secs(seconds)), 1)?;
    println!("{summary}");
    // What is rare takes more packets than guests get round to.
    if effort::of(100) == 100 {
        assert_eq!(summary.not_reached(), Vec::<String>::new(), "seed {seed}");
    }
    Ok(())
}

#[test]
fn a_seed_names_a_run() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let run = |seed| fuzz::fuzz(seed, Limit::Packets(10_000), 1);
    let (first, again, other) = (run(7)?, run(7)?, run(8)?);
    assert_eq!(first.counters, again.counters);
    assert_ne!(first.counters, other.counters);
    assert!(first.packets >= 10_000);
    Ok(())
}

/// A model of other maps than the program's: each kind of difference must be told, the frame made small.
#[test]
fn a_difference_is_noticed_and_made_small() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v4(Protocol::Tcp);
    let world = World::of(&packet, &tunnel());
    let corpus = [packet.frame()];
    let mut tracked = world.clone();
    tracked.services[0].slots = Slots::All(Slot::tracked(BACKEND));
    let mut elsewhere = world.clone();
    elsewhere.services[0].index += 1;
    let mut smaller = tunnel();
    smaller.mtu = 100;
    for (what, other) in [
        ("verdict", World::default()),
        ("action", World::of(&packet, &smaller)),
        ("counted", elsewhere),
        ("table", tracked),
    ] {
        let mut bench = Bench::of(&world, Balancer::load()?, &corpus)?.with_model_of(&other);
        let alone = bench.send_one(&packet.frame());
        let text = format!("{:#}", alone.expect_err(what));
        assert!(
            text.contains(what) && text.contains("decoded"),
            "{what}: {text}"
        );
        let text = format!("{:#}", bench.send(1, 1).expect_err(what));
        assert!(text.contains("program and model differ"), "{what}: {text}");
    }
    let mut bench = Bench::of(&world, Balancer::load()?, &corpus)?.with_model_of(&World::default());
    let text = format!("{:#}", bench.send(1, 1).expect_err("no service"));
    let frame = text
        .split("frame     ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let frame = frame.context("no frame")?.trim();
    let left = fixtures::regression::bytes(frame);
    // EtherType, version, lengths, protocol, address and port of the service, and no more.
    let bytes = left.iter().filter(|byte| **byte != 0).count();
    assert!(bytes <= 12, "{bytes} bytes are not zero: {frame}");
    Ok(())
}
