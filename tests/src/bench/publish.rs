//! What a change takes from its cause to the last slot stored in the kernel.

use super::{
    figure::{Figure, Figures},
    pool::{Hosts, Node, Pool},
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
/// Longer than anything waits.
const LONG: Duration = Duration::from_secs(3_600);

/// What is measured on one node.
struct Case {
    pool: Pool,
    /// How many of its services the host serves that goes down and comes back.
    touched: usize,
    /// What the figures are called.
    down: &'static str,
    up: Option<&'static str>,
    /// A reconcile that looks at everything and finds nothing to do.
    idle: Option<&'static str>,
}

const fn pool(services: usize, backends: usize, hosts: Hosts) -> Pool {
    Pool {
        services,
        backends,
        hosts,
    }
}

const CASES: [Case; 4] = [
    Case {
        pool: pool(64, 100, Hosts::Shared),
        touched: 64,
        down: "publish.health_change",
        up: Some("publish.health_return"),
        idle: None,
    },
    Case {
        pool: pool(64, 100, Hosts::Own),
        touched: 64,
        down: "publish.health_change.own_hosts",
        up: None,
        idle: None,
    },
    Case {
        pool: pool(1, 10, Hosts::Shared),
        touched: 1,
        down: "publish.one_backend.services.1",
        up: None,
        idle: Some("publish.nothing_new.services.1"),
    },
    Case {
        pool: pool(1_000, 10, Hosts::Shared),
        touched: 1,
        down: "publish.one_backend.services.1000",
        up: None,
        idle: Some("publish.nothing_new.services.1000"),
    },
];

/// Hosts go down and come back.
pub fn run() -> Result<Figures> {
    let mut figures = Figures::new();
    for case in &CASES {
        let session = Session::unique();
        let namespace = Namespace::create(&session.namespace("bench"))?;
        figures.extend(namespace.run(|| {
            let mut node = Node::new(&session, case.pool)?;
            node.fill()?;
            let mut node = node.restart()?;
            let figures = measure(&mut node, case);
            node.remove()?;
            figures
        })?);
    }
    let names: Vec<String> = (0..100).map(|n| format!("backend-{n}")).collect();
    let members = members(&names);
    let tables = || (0..64).for_each(|_| drop(black_box(maglev::table(&members))));
    let tables = (0..ROUNDS).map(|_| micros(tables)).collect();
    figures.insert("publish.tables_anew".into(), Figure::new(tables, "µs"));
    Ok(figures)
}

fn measure(node: &mut Node<'_>, case: &Case) -> Result<Figures> {
    let (mut lost, mut back, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    let mut now = monotonic();
    for round in 0..=ROUNDS {
        settle(node, &mut now)?;
        let nothing = micros(|| node.core.reconcile(now));
        let down = change(node, case, round, HealthState::Down, now)?;
        let up = change(node, case, round, HealthState::Up, now)?;
        // The first round grows what grows once.
        if round > 0 {
            idle.push(nothing);
            lost.push(down);
            back.push(up);
        }
    }
    let figures = [(Some(case.down), lost), (case.up, back), (case.idle, idle)];
    let named = figures
        .into_iter()
        .filter_map(|(name, samples)| Some((name?, samples)));
    Ok(named
        .map(|(name, samples)| (name.to_owned(), Figure::new(samples, "µs")))
        .collect())
}

/// One host goes up or down: what that takes, in microseconds.
fn change(
    node: &mut Node<'_>,
    case: &Case,
    round: usize,
    state: HealthState,
    now: Duration,
) -> Result<f64> {
    let before = words(node, case.touched)?;
    let mut result = Ok(());
    let host = round % case.pool.backends;
    let time = micros(|| result = node.verdict(case.touched, host, state, now));
    result?;
    let after = words(node, case.touched)?;
    let moved = before.iter().zip(&after).filter(|(before, after)| {
        let pairs = before.iter().zip(*after);
        let changed = |(before, after): &(&Slot, &Slot)| before.new_owner() != after.new_owner();
        pairs.filter(changed).count() >= SLOTS as usize / case.pool.backends
    });
    ensure!(
        moved.count() == case.touched,
        "a table has not changed as it should"
    );
    Ok(time)
}

/// Lets all that waits come to rest, and does what the loop does when nothing else is to be done.
fn settle(node: &mut Node<'_>, now: &mut Duration) -> Result<()> {
    for _ in 0..2 {
        *now += LONG;
        node.core.count_flows(*now);
        node.core.reconcile(*now);
    }
    ensure!(!node.core.has_more_to_do(), "slots still wait");
    node.make_ready();
    Ok(())
}

/// The slots of the first so many tables.
fn words(node: &mut Node<'_>, services: usize) -> Result<Vec<Vec<Slot>>> {
    let plane = &mut node.core.plane;
    // In order of their addresses, which is that of their numbers.
    let tables = plane.installed()?.services;
    let tables = tables.values().take(services);
    tables.map(|entry| plane.read_slots(entry.index)).collect()
}
