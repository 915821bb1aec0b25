//! The decapsulator: undoes what the balancer does, and touches nothing else.

use anyhow::Result;
use lb_common::backend::Mode;
use lb_tests::{
    fixture::{NEXT_HOP, backend, balancer, ip, v4, v6},
    packet::{BALANCER_MAC, ETHERNET, Packet, Protocol, encapsulated, ethernet},
    prog_run::{Decapsulator, XdpAction},
    require,
};

/// The tunnels' ends: (outer source, outer destination) of each family.
const TUNNELS: [(&str, &str); 2] = [("10.0.0.2", "10.0.1.7"), ("fd00::2", "fd00:1::7")];

fn packets() -> impl Iterator<Item = Packet> {
    Protocol::ALL
        .into_iter()
        .flat_map(|protocol| [v4(protocol), v6(protocol)])
}

#[test]
fn decapsulation_undoes_encapsulation() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    for packet in packets() {
        for (source, address) in TUNNELS {
            let balancer = balancer(&packet, &backend(Mode::Ipip, source, address))?;
            for (payload, padding) in [(0, 20), (1, 0), (1_000, 0), (1_001, 7)] {
                let packet = Packet {
                    payload: vec![0xa5; payload],
                    padding,
                    ..packet.clone()
                };
                let tunnelled = balancer.run(&packet.frame())?;
                assert_eq!(tunnelled.action, XdpAction::Tx);
                let outcome = decapsulator.run(&tunnelled.frame)?;
                let mut expected = packet.frame();
                let is_v4 = packet.from.is_ipv4();
                expected[..ETHERNET].copy_from_slice(&ethernet(BALANCER_MAC, NEXT_HOP, is_v4));
                assert_eq!(outcome.action, XdpAction::Pass);
                assert_eq!(outcome.frame, expected, "{packet:?} through {source}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_a_tunnels_passes_untouched() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let decapsulator = Decapsulator::load()?;
    let mut frames: Vec<Vec<u8>> = packets().map(|packet| packet.frame()).collect();
    let tunnelled = encapsulated(
        &v4(Protocol::Tcp),
        ip("10.0.0.2"),
        ip("10.0.1.7"),
        NEXT_HOP,
        0,
    );
    // An outer header with options, a first and a later fragment, ARP, and a tunnel cut off at every byte.
    for (offset, value) in [
        (ETHERNET, 0x46),
        (ETHERNET + 6, 0x20),
        (ETHERNET + 7, 1),
        (13, 0x06),
    ] {
        let mut frame = tunnelled.clone();
        frame[offset] = value;
        frames.push(frame);
    }
    frames.extend((ETHERNET..ETHERNET + 20).map(|length| tunnelled[..length].to_vec()));
    for frame in frames {
        let outcome = decapsulator.run(&frame)?;
        assert_eq!(outcome.action, XdpAction::Pass);
        assert_eq!(outcome.frame, frame, "altered");
    }
    Ok(())
}
