//! The program against a model of a few lines: which backend a flow goes to.

use anyhow::Result;
use lb_common::{backend::BackendEntry, flow::slot_of};
use lb_tests::{
    effort,
    fixture::{NEXT_HOP, flow_hash, ip, key, tunnel, v4, v6},
    packet::{Packet, Protocol, encapsulated},
    prog_run::Balancer,
    require,
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
