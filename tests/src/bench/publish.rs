//! What a change takes from its cause to the last slot stored in the kernel.

use super::{
    figure::{Figure, Figures},
    pool::{Node, Pool},
    table::{members, micros},
};
use crate::{netns::Namespace, session::Session};
use anyhow::{Result, ensure};
use lb_common::{limits::SLOTS, slot::Slot};
use lb_userspace::{
    dataplane::{DataPlane as _, clock::monotonic},
    health::HealthState,
    maglev,
};
use std::{hint::black_box, time::Duration};

const ROUNDS: usize = 15;
const POOL: Pool = Pool {
    services: 64,
    backends: 100,
};
/// Longer than anything waits.
const LONG: Duration = Duration::from_secs(3_600);

/// A host that is a backend of all services goes down and comes back.
pub fn run() -> Result<Figures> {
    let session = Session::unique();
    let namespace = Namespace::create(&session.namespace("bench"))?;
    namespace.run(|| {
        let mut node = Node::new(&session, POOL)?;
        node.fill()?;
        let mut node = node.restart()?;
        let figures = measure(&mut node);
        node.remove()?;
        figures
    })
}

fn measure(node: &mut Node<'_>) -> Result<Figures> {
    let (mut lost, mut back) = (Vec::new(), Vec::new());
    let mut now = monotonic();
    for round in 0..=ROUNDS {
        settle(node, &mut now)?;
        for (state, samples) in [(HealthState::Down, &mut lost), (HealthState::Up, &mut back)] {
            let before = words(node)?;
            let mut result = Ok(());
            let time = micros(|| result = node.verdict(round % POOL.backends, state, now));
            result?;
            let after = words(node)?;
            let moved = before.iter().zip(&after).filter(|(before, after)| {
                let pairs = before.iter().zip(*after);
                let changed =
                    |(before, after): &(&Slot, &Slot)| before.new_owner() != after.new_owner();
                pairs.filter(changed).count() >= SLOTS as usize / POOL.backends
            });
            ensure!(
                moved.count() == POOL.services,
                "a table has not changed as it should"
            );
            // The first round grows what grows once.
            if round > 0 {
                samples.push(time);
            }
        }
    }
    let names: Vec<String> = (0..POOL.backends).map(|n| format!("backend-{n}")).collect();
    let members = members(&names);
    let tables = || (0..POOL.services).for_each(|_| drop(black_box(maglev::table(&members))));
    let tables = (0..ROUNDS).map(|_| micros(tables)).collect();
    Ok([
        ("publish.health_change", lost),
        ("publish.health_return", back),
        ("publish.tables_anew", tables),
    ]
    .into_iter()
    .map(|(name, samples)| (name.to_owned(), Figure::new(samples, "µs")))
    .collect())
}

/// Lets all that waits come to rest, and does what the loop does when nothing else is to be done.
fn settle(node: &mut Node<'_>, now: &mut Duration) -> Result<()> {
    for _ in 0..2 {
        *now += LONG;
        node.core.count_flows(*now);
        node.core.reconcile(*now);
    }
    ensure!(!node.core.has_more_to_do(), "slots still wait");
    for _ in 0..POOL.services {
        node.core.make_ready();
    }
    Ok(())
}

/// The slots of all tables.
fn words(node: &mut Node<'_>) -> Result<Vec<Vec<Slot>>> {
    let plane = &mut node.core.plane;
    let services = plane.installed()?.services;
    let tables = services.values();
    tables.map(|entry| plane.read_slots(entry.index)).collect()
}
