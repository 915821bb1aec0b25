//! Services at random prefixes, one in another, against a model that looks at each of them: which one a packet is for.

use anyhow::Result;
use lb_common::{backend::Mode, slot::Slot};
use lb_tests::{
    counters::Counters,
    effort,
    fixture::{backend, v4, v6},
    model::Model,
    packet::{Packet, Protocol},
    require,
    world::{Slots, World},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

/// As many as the program of the tests has room for, by index.
const SERVICES: u32 = 24;
const PACKETS: u32 = 400;
const PORTS: [u16; 3] = [0, 80, 443];

/// An address of a few bits that vary, all along it: many of its prefixes are equal to those of others.
fn address(random: &mut fastrand::Rng, is_v4: bool) -> IpAddr {
    let vary = |start: u128, bits: &[u32], random: &mut fastrand::Rng| {
        bits.iter().fold(start, |address, bit| {
            address ^ u128::from(random.bool()) << bit
        })
    };
    if is_v4 {
        let start = u128::from(u32::from_be_bytes([203, 0, 113, 0]));
        let varied = vary(start, &[0, 1, 7, 8, 15, 20], random);
        IpAddr::V4((varied as u32).into())
    } else {
        let varied = vary(0x2001_0db8 << 96, &[0, 31, 63, 64, 79, 90], random);
        IpAddr::V6(varied.into())
    }
}

fn packet(random: &mut fastrand::Rng) -> Packet {
    let protocol = if random.bool() {
        Protocol::Tcp
    } else {
        Protocol::Udp
    };
    let packet = if random.bool() {
        v4(protocol)
    } else {
        v6(protocol)
    };
    let to = address(random, packet.from.is_ipv4());
    Packet {
        to: SocketAddr::new(to, PORTS[random.usize(..PORTS.len())]),
        ..packet
    }
}

fn world(random: &mut fastrand::Rng) -> World {
    let mut world = World::default().backend(1, &backend(Mode::L2, "0.0.0.0", "10.0.1.7"));
    let mut taken = BTreeSet::new();
    while world.services.len() < SERVICES as usize {
        let packet = packet(random);
        let lengths: &[u8] = if packet.from.is_ipv4() {
            &[8, 12, 16, 24, 25, 31, 32]
        } else {
            &[32, 37, 48, 64, 65, 127, 128]
        };
        let length = lengths[random.usize(..lengths.len())];
        let slots = Slots::All(Slot::steady(1));
        let mut next = world.clone().service(&packet, packet.to.port(), slots);
        if ![32, 128].contains(&length) || length == 32 && packet.from.is_ipv6() {
            next = next.within(length);
        }
        if next
            .services
            .last()
            .is_some_and(|service| taken.insert(service.key))
        {
            world = next;
        }
    }
    world
}

#[test]
fn the_most_specific_service_gets_the_packet() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut found = BTreeSet::new();
    for _ in 0..4 {
        let world = world(&mut random);
        let balancer = world.install()?;
        let mut model = Model::new(&world);
        for _ in 0..effort::of(PACKETS) {
            let packet = packet(&mut random);
            let frame = packet.frame();
            let expected = model.packet(&frame, 1_000);
            let mut counters = Counters::default();
            expected.count(frame.len(), &mut counters);
            let (outcome, counted) = balancer.run_counted(&frame)?;
            assert_eq!(counted, counters, "seed {seed}: {packet:?}");
            assert_eq!(outcome.frame, expected.frame, "seed {seed}: {packet:?}");
            found.insert(expected.counted_for.map(|(service, _)| service));
        }
    }
    assert!(found.len() > 12, "seed {seed}: {found:?}");
    Ok(())
}
