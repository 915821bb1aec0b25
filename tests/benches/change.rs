//! `cargo bench -p lb-tests`: what `lbd` computes, without a kernel, and beside it the plain pseudocode of the Maglev paper. The
//! same functions as `cargo xtask bench table publish`, for whoever wants criterion's statistics.

use anyhow::{Context as _, Result};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use lb_tests::bench::table::{members, paper};
use lb_userspace::{
    dataplane::{DataPlane as _, fake::FakeDataPlane},
    health::{HealthState, TargetId},
    maglev,
    neighbour::ResolvedHop,
    plan::{
        Facts, Scope,
        apply::apply,
        diff::{Capacity, Plan, diff},
        mirror::Mirror,
        roster::Roster,
        target::wanted,
    },
    spec::{Limits, State, yaml},
};
use std::{fmt::Write as _, hint::black_box, net::IpAddr};

const SERVICES: usize = 64;
const BACKENDS: usize = 100;

fn names(backends: usize) -> Vec<String> {
    (0..backends).map(|n| format!("backend-{n}")).collect()
}

fn tables(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table");
    for backends in [10, 100, 1_000] {
        let names = names(backends);
        let members = members(&names);
        group.bench_function(BenchmarkId::new("build", backends), |bencher| {
            bencher.iter(|| maglev::table(black_box(&members)));
        });
        group.bench_function(BenchmarkId::new("paper", backends), |bencher| {
            bencher.iter(|| paper(black_box(&names)));
        });
    }
}

fn publish(criterion: &mut Criterion) {
    let mut world = match World::new() {
        Ok(world) => world,
        Err(problem) => panic!("{problem:#}"),
    };
    let names = names(BACKENDS);
    let mut group = criterion.benchmark_group("publish");
    group.sample_size(20);
    group.bench_function("plan_health_change", |bencher| {
        bencher.iter(|| world.plan(&Scope::All).map(|plan| plan.steps.len()));
    });
    group.bench_function("paper", |bencher| {
        bencher.iter(|| (0..SERVICES).for_each(|_| drop(black_box(paper(&names)))));
    });
}

/// Services with the same hosts, of which one has gone down since the data plane was made true.
struct World {
    state: State,
    roster: Roster,
    facts: Facts,
    plane: FakeDataPlane,
    mirror: Mirror,
}

impl World {
    fn new() -> Result<Self> {
        let mut text = String::from("services:\n");
        for service in 0..SERVICES {
            writeln!(
                text,
                "  - name: service-{service}\n    address: 10.0.0.{service}\n    protocol: tcp\n    port: 80\n    backends:"
            )?;
            for backend in 0..BACKENDS {
                writeln!(
                    text,
                    "      - {{ name: backend-{backend}, address: 10.1.0.{backend} }}"
                )?;
            }
        }
        let state = State::parse(&yaml::parse(&text, "bench")?, &Limits::default())?;
        let mut world = Self {
            roster: Roster::new(&state, &Roster::default()),
            facts: all_well(&state),
            state,
            plane: FakeDataPlane::new(2 * SERVICES as u32, 2 * (SERVICES * BACKENDS) as u32),
            mirror: Mirror::default(),
        };
        let plan = world.plan(&Scope::All)?;
        apply(&plan.steps, &mut world.plane, &mut world.mirror)?;
        // As if each had forwarded packets, so that flows are thought of.
        world.mirror.unused.clear();
        for (id, health) in &mut world.facts.health {
            if id.backend.as_str() == "backend-7" {
                *health = HealthState::Down;
            }
        }
        let due = world.plan(&Scope::All)?;
        (due.steps.len() >= SERVICES)
            .then_some(world)
            .context("nothing is due when a host goes down")
    }

    fn plan(&mut self, scope: &Scope) -> Result<Plan> {
        let (facts, plane) = (&mut self.facts, &mut self.plane);
        let target = wanted(&self.state, &self.roster, facts, &self.mirror, scope);
        let capacity = Capacity {
            services: plane.service_capacity(),
            backends: plane.backend_capacity(),
        };
        diff(
            &target,
            &self.mirror,
            capacity,
            1,
            None,
            &mut |service, slots| plane.read_some_slots(service, slots),
        )
    }
}

fn all_well(state: &State) -> Facts {
    let mut facts = Facts {
        interfaces: [1].into(),
        ..Facts::default()
    };
    for service in state.services.values() {
        for backend in service.backends.values() {
            let id = TargetId {
                service: service.name.clone(),
                backend: backend.name.clone(),
            };
            facts.health.insert(id, HealthState::Up);
            let hop = ResolvedHop {
                mac: [2, 0, 0, 0, 0, 1],
                interface: 1,
                interface_name: "eth0".into(),
                gateway: None,
                source: IpAddr::from([10, 1, 255, 1]),
                mtu: 1_500,
            };
            facts.next_hops.insert(backend.address, Ok(hop));
        }
    }
    facts
}

criterion_group!(benches, tables, publish);
criterion_main!(benches);
