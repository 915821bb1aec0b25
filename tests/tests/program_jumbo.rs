//! The program for jumbo frames: those that come in several buffers are forwarded byte for byte, counted whole.

use anyhow::Result;
use lb_common::{
    backend::{BackendEntry, Mode},
    verdict::Verdict,
};
use lb_tests::{
    fixture::{
        BACKEND, NEXT_HOP, SERVICE, assert_forwarded, assert_refused, assert_too_big, backend,
        flow_hash, ip, key, v4, v6,
    },
    packet::{Packet, Protocol, encapsulated},
    prog_run::Balancer,
    require,
};

fn balancer(packet: &Packet, entry: BackendEntry) -> Result<Balancer> {
    let mut balancer = Balancer::for_jumbo_frames()?;
    balancer.set_backend(
        BACKEND,
        &BackendEntry {
            mtu: 9_000,
            ..entry
        },
    )?;
    balancer.add_service(key(packet, packet.to.port()), SERVICE, |_| BACKEND)?;
    Ok(balancer)
}

fn of_size(packet: Packet, payload: usize) -> Packet {
    Packet {
        payload: (0..payload).map(|i| (i / 7) as u8).collect(),
        ..packet
    }
}

#[test]
fn large_and_small_frames_are_forwarded_in_all_modes() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for payload in [1, 100, 3_000, 3_500, 4_096, 8_000, 8_900] {
        for packet in [v4(Protocol::Tcp), v6(Protocol::Udp)] {
            let packet = of_size(packet, payload);
            let l2 = balancer(&packet, backend(Mode::L2, "0.0.0.0", "10.0.1.7"))?;
            assert_forwarded(&l2, &packet, &packet.readdressed(NEXT_HOP));
            let label = (flow_hash(&packet) >> 44) as u32;
            for (source, address) in [("10.0.0.2", "10.0.1.7"), ("fd00::2", "fd00:1::7")] {
                let expected = encapsulated(&packet, ip(source), ip(address), NEXT_HOP, label);
                let tunnel = balancer(&packet, backend(Mode::Ipip, source, address))?;
                assert_forwarded(&tunnel, &packet, &expected);
            }
        }
    }
    Ok(())
}

#[test]
fn the_whole_length_counts() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = of_size(v4(Protocol::Udp), 9_000 - 28 - 20);
    let tunnel = balancer(&packet, backend(Mode::Ipip, "10.0.0.2", "10.0.1.7"))?;
    let expected = encapsulated(&packet, ip("10.0.0.2"), ip("10.0.1.7"), NEXT_HOP, 0);
    assert_forwarded(&tunnel, &packet, &expected);
    let large = of_size(v4(Protocol::Udp), 9_000 - 28 - 19);
    assert_too_big(&tunnel, "one byte more", &large.frame());
    // An IP packet that says it is longer than all buffers together.
    let mut cut = packet.frame();
    cut.truncate(8_000);
    assert_refused(&tunnel, "cut", &cut, Verdict::PassMalformed);
    Ok(())
}
