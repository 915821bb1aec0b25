//! The program against models: which backend a flow goes to, in a few lines; and the one that fuzzing uses, against the
//! fixtures.

use anyhow::Result;
use lb_common::{backend::BackendEntry, flow::slot_of};
use lb_tests::{
    counters::Counters,
    effort,
    fixture::{NEXT_HOP, SERVICE, flow_hash, ip, key, tunnel, v4, v6},
    fixtures::{self, icmp},
    model::Model,
    packet::{Packet, Protocol, encapsulated},
    prog_run::{Balancer, Outcome},
    require,
    world::{Slots, World},
};
use std::net::{IpAddr, SocketAddr};

/// Backends of the model, from index 1.
const BACKENDS: u32 = 97;
const FLOWS: u32 = 4_000;

/// Address of the backend with this index.
fn address(index: u32) -> IpAddr {
    ip(&format!("10.1.0.{index}"))
}

/// Owner of a slot: no neighbour of a slot has the same one, so a slot that is off by one shows.
fn owner(slot: u32) -> u32 {
    1 + slot.wrapping_mul(31) % BACKENDS
}

fn random_source(random: &mut fastrand::Rng, v4: bool) -> SocketAddr {
    let address: IpAddr = if v4 {
        random.u32(..).to_be_bytes().into()
    } else {
        random.u128(..).to_be_bytes().into()
    };
    SocketAddr::new(address, random.u16(..))
}

#[test]
fn every_flow_goes_to_the_owner_of_its_slot() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut balancer = Balancer::load()?;
    for index in 1..=BACKENDS {
        balancer.set_backend(
            index,
            &BackendEntry {
                address: address(index).into(),
                ..tunnel()
            },
        )?;
    }
    let services = Protocol::ALL
        .iter()
        .flat_map(|protocol| [v4(*protocol), v6(*protocol)]);
    let services: Vec<Packet> = services.collect();
    for (index, packet) in services.iter().enumerate() {
        balancer.add_service(key(packet, 0), index as u32, owner)?;
    }
    for flow in 0..effort::of(FLOWS) as usize {
        let mut packet = services[flow % services.len()].clone();
        packet.from = random_source(&mut random, packet.from.is_ipv4());
        packet.to.set_port(random.u16(..));
        packet.payload.truncate(random.usize(..=100));
        let owner = owner(slot_of(flow_hash(&packet)));
        let expected = encapsulated(&packet, ip("10.0.0.2"), address(owner), NEXT_HOP, 0);
        let outcome = balancer.run(&packet.frame())?;
        assert_eq!(
            outcome.frame, expected,
            "seed {seed}, flow {flow}: {packet:?} to backend {owner}"
        );
    }
    Ok(())
}

/// The model against the fixtures, which were written without it.
#[test]
fn the_model_keeps_to_every_fixture() {
    for fixture in fixtures::all() {
        let mut model = Model::new(&fixture.world);
        for (number, case) in fixture.cases.iter().enumerate() {
            let expected = model.packet(&case.frame, 1_000);
            let mut counters = Counters::default();
            expected.count(case.frame.len(), &mut counters);
            let outcome = Outcome {
                action: expected.action,
                frame: expected.frame,
            };
            let difference = fixtures::difference(case, &outcome, &counters);
            assert_eq!(difference, None, "{}, packet {number}", fixture.name);
        }
        if fixture.leaves_no_trace {
            let differing = [
                model.differing_flows(&fixture.world.flows),
                model.differing_fragments(&fixture.world.fragments),
            ];
            assert_eq!(differing.concat(), Vec::<String>::new(), "{}", fixture.name);
        }
    }
}

/// Many flows of slots with many owners, exact and any ports: an ICMP error goes where the flow's own packets go.
#[test]
fn errors_follow_the_packets_of_their_flows() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::default();
    for index in 1..=BACKENDS {
        let entry = BackendEntry {
            address: address(index).into(),
            ..tunnel()
        };
        world = world.backend(index, &entry);
    }
    for (index, packet) in fixtures::packets().enumerate() {
        let port = if index % 2 == 0 { 443 } else { 0 };
        world = world.service(&packet, port, Slots::Spread(BACKENDS));
    }
    let balancer = world.install()?;
    for round in 0..effort::of(500) {
        for (index, mut packet) in fixtures::packets().enumerate() {
            packet.from.set_port(random.u16(..));
            if index % 2 != 0 {
                packet.to.set_port(random.u16(..));
            }
            let (_, counters) = balancer.run_counted(&packet.frame())?;
            let error = icmp::error(&packet);
            let (outcome, of_error) = balancer.run_counted(&error.frame())?;
            let owner = *counters.backends.keys().next().expect("it was forwarded");
            let expected = encapsulated(&error, ip("10.0.0.2"), address(owner), NEXT_HOP, 0);
            assert_eq!(outcome.frame, expected, "seed {seed}, round {round}");
            let service = SERVICE + index as u32;
            let expected = Counters::of_forwarded(service, owner, error.frame().len());
            assert_eq!(of_error, expected, "seed {seed}, round {round}");
        }
    }
    Ok(())
}
