//! What a change takes from its cause to the last slot stored in the kernel: the daemon's core with real maps, told of health and
//! next hops by hand.

use super::{
    figure::{Figure, Figures},
    table::{members, micros},
};
use crate::{netns::Namespace, session::Session};
use anyhow::{Result, ensure};
use lb_common::{limits::SLOTS, slot::Slot};
use lb_userspace::{
    api::{
        handle::{Change, ChangeOptions},
        protocol::ErrorBody,
    },
    daemon::core::Core,
    dataplane::{Attachment, AyaDataPlane, DataPlane as _, Settings, aya, clock::monotonic},
    desired::Store,
    health::{HealthReport, HealthState, TargetId, state::Outcome},
    maglev,
    neighbour::{NextHopUpdate, ResolvedHop},
    spec::{Limits, Name, yaml},
};
use std::{fmt::Write as _, fs, hint::black_box, time::Duration};

const ROUNDS: usize = 15;
const SERVICES: usize = 64;
const BACKENDS: usize = 100;
const LIMITS: Limits = Limits {
    services: 128,
    backends: 16_384,
};

/// A host that is a backend of all services goes down and comes back.
pub fn run() -> Result<Figures> {
    let session = Session::unique();
    let namespace = Namespace::create(&session.namespace("bench"))?;
    namespace.run(|| {
        fs::create_dir_all(session.directory())?;
        let settings = Settings {
            pin_directory: session.pins(),
            interfaces: Vec::new(),
            hash_seed: 7,
            services: 2 * LIMITS.services,
            backends: 2 * LIMITS.backends,
            flows: 1 << 16,
        };
        let (plane, _) = aya::open(&settings)?;
        let store = Store::open(&session.directory())?;
        let mut core = Core::new(plane, false, store, LIMITS, monotonic())?;
        fill(&mut core)?;
        let figures = measure(&mut core);
        drop(core);
        aya::detach(&settings.pin_directory)?;
        figures
    })
}

fn measure(core: &mut Core<AyaDataPlane>) -> Result<Figures> {
    let (mut lost, mut back) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let host = format!("backend-{}", round % BACKENDS);
        // As the loop does when nothing else is to be done.
        for _ in 0..SERVICES {
            core.make_ready();
        }
        for (state, samples) in [(HealthState::Down, &mut lost), (HealthState::Up, &mut back)] {
            let before = words(core)?;
            let time = micros(|| {
                for service in 0..SERVICES {
                    core.on_health(report(service, &host, state), monotonic());
                }
                core.reconcile(monotonic());
            });
            ensure!(!core.must_retry(), "the data plane could not be written");
            let after = words(core)?;
            let moved = before.iter().zip(&after).filter(|(before, after)| {
                let pairs = before.iter().zip(*after);
                let changed =
                    |(before, after): &(&Slot, &Slot)| before.new_owner() != after.new_owner();
                pairs.filter(changed).count() >= SLOTS as usize / BACKENDS
            });
            ensure!(moved.count() == SERVICES, "a table has not changed");
            // The first round grows what grows once.
            if round > 0 {
                samples.push(time);
            }
        }
        // Slots that came back are waited for; the next round is to find them at rest.
        core.count_flows(monotonic() + Duration::from_secs(3_600));
        core.reconcile(monotonic() + Duration::from_secs(3_600));
    }
    let names: Vec<String> = (0..BACKENDS).map(|n| format!("backend-{n}")).collect();
    let members = members(&names);
    let tables = || (0..SERVICES).for_each(|_| drop(black_box(maglev::table(&members))));
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

/// The slots of all tables.
fn words(core: &mut Core<AyaDataPlane>) -> Result<Vec<Vec<Slot>>> {
    let installed = core.plane.installed()?;
    let tables = installed.services.values();
    tables
        .map(|entry| core.plane.read_slots(entry.index))
        .collect()
}

fn fill(core: &mut Core<AyaDataPlane>) -> Result<()> {
    let mut text = String::from("services:\n");
    for service in 0..SERVICES {
        writeln!(
            text,
            "  - name: service-{service}\n    address: 10.0.0.{service}\n    protocol: tcp\n    port: 80\n    health: {{}}\n    backends:"
        )?;
        for backend in 0..BACKENDS {
            writeln!(
                text,
                "      - {{ name: backend-{backend}, address: 10.1.0.{backend} }}"
            )?;
        }
    }
    let spec = yaml::parse(&text, "bench")?;
    let make = ChangeOptions {
        dry_run: false,
        if_revision: None,
        max_move: None,
        now: false,
    };
    let refused = |error: ErrorBody| anyhow::anyhow!("{}", error.message);
    core.change(&Change::Apply(spec), &make).map_err(refused)?;
    // Nothing is attached to it: next hops behind it count, and no packet comes.
    let lo = Attachment {
        name: "lo".into(),
        index: 1,
        up: true,
        mode: None,
        program_id: 0,
        note: String::new(),
    };
    core.on_attachments(vec![lo], false);
    for address in core.addresses() {
        core.on_next_hop(NextHopUpdate {
            address,
            resolution: Ok(ResolvedHop {
                mac: [2, 0, 0, 0, 0, 1],
                interface: 1,
                interface_name: "lo".into(),
                gateway: None,
                source: [10, 2, 0, 1].into(),
                mtu: 1_500,
            }),
        });
    }
    for service in 0..SERVICES {
        for backend in 0..BACKENDS {
            let name = format!("backend-{backend}");
            core.on_health(report(service, &name, HealthState::Up), monotonic());
        }
    }
    core.reconcile(monotonic());
    ensure!(!core.must_retry(), "the data plane could not be filled");
    Ok(())
}

fn report(service: usize, backend: &str, state: HealthState) -> HealthReport {
    let name = |text: &str| Name::parse(text).unwrap_or_else(|| panic!("{text} is a name"));
    HealthReport {
        target: TargetId {
            service: name(&format!("service-{service}")),
            backend: name(backend),
        },
        state,
        changed: true,
        outcome: match state {
            HealthState::Up => Outcome::Success,
            HealthState::Unknown | HealthState::Down => Outcome::Failure,
        },
        detail: String::new(),
        latency: None,
    }
}
