//! What services and backends cost when there are many: a packet, the memory, and an apply.

use super::{
    figure::{Figure, Figures},
    packet::{self, Effort, case},
    pool::{Hosts, Node, Pool},
    table::micros,
};
use crate::{
    fixture::{backend, key, v4},
    netns::Namespace,
    packet::Protocol,
    prog_run::{Balancer, XdpAction},
    session::Session,
};
use anyhow::{Context, Result};
use aya::maps::{ArrayOfMaps, Map, MapData};
use lb_common::{backend::Mode, maps::SLOT_TABLES, slot::Slot};
use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

/// In all cases as many: what they cost is told by the cases of `packet`.
const FLOWS: u32 = 1_000;
/// Port of the first service.
const FIRST: u16 = 1_000;
const ROUNDS: usize = 7;
const SERVICES: usize = 1_000;
const BACKENDS: usize = 10;

/// Measures packets, then memory and applying.
pub fn run(effort: Effort) -> Result<Figures> {
    let mut figures = packets(effort)?;
    let session = Session::unique();
    let namespace = Namespace::create(&session.namespace("bench"))?;
    for (hosts, suffix) in [(Hosts::Own, ""), (Hosts::Shared, ".shared")] {
        let measured = namespace.run(|| apply(&session, hosts))?;
        let named = measured.map(|(name, figure)| (format!("{name}{suffix}"), figure));
        figures.extend(named);
    }
    // The kernel does not know whose hosts they are.
    figures.remove("scale.memory.service.shared");
    Ok(figures)
}

/// A packet of flows that are spread over all services, or of one service over all backends.
fn packets(effort: Effort) -> Result<Figures> {
    let mut balancers = BTreeMap::new();
    let mut cases = Vec::new();
    let sizes = [
        ("services", [1, 100, 1_000]),
        ("backends", [1, 100, 10_000]),
    ];
    for (what, numbers) in sizes {
        for number in numbers {
            let name = format!("scale.{what}.{number}");
            let mut case = case(&name, &v4(Protocol::Tcp), FIRST, FLOWS, XdpAction::Tx);
            case.name = name;
            let (services, backends) = match what {
                "services" => (number, 1),
                _ => (1, number),
            };
            case.services = services;
            balancers.insert(case.name.clone(), balancer(services, backends)?);
            cases.push(case);
        }
    }
    let mut figures = packet::measure(effort, cases, |case| {
        let balancer = balancers.get(&case.name);
        balancer.with_context(|| format!("no balancer for {}", case.name))
    })?;
    figures.retain(|name, _| name.starts_with("scale."));
    Ok(figures)
}

/// A balancer with services at ports in a row, each with the same backends.
fn balancer(services: u32, backends: u32) -> Result<Balancer> {
    let mut balancer = Balancer::with_limits(services + 1, backends + 1)?;
    for index in 1..=backends {
        let entry = backend(Mode::Ipip, "10.0.0.2", "10.0.1.7");
        balancer.set_backend(index, &entry)?;
    }
    let packet = v4(Protocol::Tcp);
    for service in 0..services {
        let key = key(&packet, FIRST + service as u16);
        let owner = |slot| Slot::steady(1 + slot % backends);
        balancer.add_service_of_slots(key, service, owner)?;
    }
    Ok(balancer)
}

/// From the text of a state to the last slot stored, and what that takes of memory.
fn apply(session: &Session, hosts: Hosts) -> Result<[(&'static str, Figure); 3]> {
    let pool = Pool {
        services: SERVICES,
        backends: BACKENDS,
        hosts,
    };
    let (mut times, mut own) = (Vec::new(), Vec::new());
    let mut tables = Vec::new();
    for _ in 0..ROUNDS {
        let mut node = Node::new(session, pool)?;
        let before = allocated();
        let mut filled = Ok(());
        times.push(micros(|| filled = node.fill()) / 1_000.0);
        filled?;
        node.make_ready();
        own.push(allocated().saturating_sub(before) as f64 / SERVICES as f64);
        if tables.is_empty() {
            tables = locked(session)?;
        }
        node.remove()?;
    }
    Ok([
        ("scale.apply.services.1000", Figure::new(times, "ms")),
        ("scale.memory.service", Figure::new(tables, "bytes")),
        ("scale.memory.lbd", Figure::new(own, "bytes")),
    ])
}

/// Bytes that the kernel has allocated for each slot table.
fn locked(session: &Session) -> Result<Vec<f64>> {
    let mut generations = fs::read_dir(session.pins())?.filter_map(Result::ok);
    let is_one = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("maps-");
    let maps = generations.find(is_one).context("no maps are pinned")?;
    let map = MapData::from_pin(maps.path().join(SLOT_TABLES))?;
    let outer: ArrayOfMaps<MapData> = ArrayOfMaps::try_from(Map::ArrayOfMaps(map))?;
    let mut bytes = Vec::new();
    for index in 0..outer.len() {
        if let Ok(table) = outer.get(&index, 0) {
            let fd = table.fd().as_fd().as_raw_fd();
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
            bytes.push(number(&info, "memlock:")? as f64);
        }
    }
    Ok(bytes)
}

/// Bytes that this process has allocated and not given back to the allocator. What the process has from the kernel says less: the allocator keeps
/// what one round has given back for the next.
fn allocated() -> usize {
    // SAFETY: it reads counters of the allocator and takes nothing.
    let counts = unsafe { libc::mallinfo2() };
    counts.uordblks + counts.hblkhd
}

/// The number of a line that begins with `key`.
fn number(text: &str, key: &str) -> Result<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key));
    let word = rest.and_then(|rest| rest.split_whitespace().next());
    let number = word.and_then(|word| word.parse().ok());
    number.with_context(|| format!("no line {key} with a number in {text}"))
}
