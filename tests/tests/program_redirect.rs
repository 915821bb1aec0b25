//! Packets for backends behind another interface than the one they came in on: verdict, every byte, every counter.

use anyhow::Result;
use lb_common::{
    backend::{BackendEntry, Mode},
    verdict::Verdict,
};
use lb_tests::{
    counters::Counters,
    fixture::{
        BACKEND, NEXT_HOP, SERVICE, assert_refused, assert_too_big, backend, balancer, flow_hash,
        ip, v4, v6,
    },
    netns::Namespace,
    packet::{Packet, Protocol, VLAN, encapsulated},
    prog_run::{Balancer, XdpAction},
    require,
    session::Session,
};

/// Index of the other interface, and one that no interface has.
const OTHER: u32 = 7;
const NOBODY: u32 = 8;
/// The other interface's MAC as the maps have it.
const OWN: [u8; 6] = [2, 0, 0, 0, 7, 7];

/// Runs `test` in a namespace in which [`OTHER`] exists: a device map takes only interfaces that do.
fn beside_another(test: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    if !require::bpf() || !require::network() {
        return Ok(());
    }
    let session = Session::unique();
    let namespace = Namespace::create(&session.namespace("lb"))?;
    namespace.ip(&format!(
        "link add eth1 index {OTHER} type veth peer name peer"
    ))?;
    namespace.run(test)
}

/// A balancer whose one backend is behind `interface`.
fn across(packet: &Packet, entry: BackendEntry, interface: u32) -> Result<Balancer> {
    balancer(packet, &BackendEntry { interface, ..entry })
}

/// What `packet` looks like when it leaves by the other interface.
fn from_own(mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&OWN);
    frame
}

fn assert_redirected(packet: &Packet, entry: BackendEntry, expected: Vec<u8>) -> Result<()> {
    let mut balancer = across(packet, entry, OTHER)?;
    balancer.set_exit(OTHER, OWN)?;
    let frame = packet.frame();
    let (outcome, counters) = balancer.run_counted(&frame)?;
    assert_eq!(
        outcome.action,
        XdpAction::Redirect,
        "{counters:?}: {packet:?}"
    );
    assert_eq!(outcome.frame, from_own(expected), "{packet:?}");
    let expected = Counters::of_forwarded(SERVICE, BACKEND, frame.len());
    assert_eq!(counters, expected, "{packet:?}");
    Ok(())
}

#[test]
fn a_redirected_frame_leaves_from_its_interfaces_own_address() -> Result<()> {
    beside_another(|| {
        for packet in [v4(Protocol::Tcp), v6(Protocol::Udp)] {
            let tagged = Packet {
                tags: vec![(VLAN, 42)],
                ..packet.clone()
            };
            for packet in [packet, tagged] {
                let l2 = backend(Mode::L2, "0.0.0.0", "10.0.1.7");
                assert_redirected(&packet, l2, packet.readdressed(NEXT_HOP))?;
                let label = (flow_hash(&packet) >> 44) as u32;
                for (source, address) in [("10.0.0.2", "10.0.1.7"), ("fd00::2", "fd00:1::7")] {
                    let outer = (ip(source), ip(address));
                    let expected = encapsulated(&packet, outer.0, outer.1, NEXT_HOP, label);
                    assert_redirected(&packet, backend(Mode::Ipip, source, address), expected)?;
                }
            }
        }
        Ok(())
    })
}

/// The MAC is there, but the interface is not, as when it was removed a moment ago; and the other way round.
#[test]
fn an_interface_in_only_one_map_is_none_to_leave_by() -> Result<()> {
    beside_another(|| {
        let packet = v4(Protocol::Tcp);
        let entry = backend(Mode::Ipip, "10.0.0.2", "10.0.1.7");
        let wrong = Verdict::DropWrongInterface;
        let mut without_device = across(&packet, entry, NOBODY)?;
        assert_refused(&without_device, "in neither map", &packet.frame(), wrong);
        without_device.set_exit_mac(NOBODY, OWN)?;
        assert_refused(&without_device, "no device", &packet.frame(), wrong);
        let mut without_mac = across(&packet, entry, OTHER)?;
        without_mac.set_exit_device(OTHER)?;
        assert_refused(&without_mac, "no MAC", &packet.frame(), wrong);
        Ok(())
    })
}

/// The answer leaves by the interface that the packet came in on.
#[test]
fn a_packet_too_large_for_the_other_interface_is_answered() -> Result<()> {
    beside_another(|| {
        let packet = Packet {
            payload: vec![0; 1_500 - 28],
            ..v4(Protocol::Udp)
        };
        let mut balancer = across(&packet, backend(Mode::Ipip, "10.0.0.2", "10.0.1.7"), OTHER)?;
        balancer.set_exit(OTHER, OWN)?;
        assert_too_big(&balancer, "too big", &packet.frame());
        Ok(())
    })
}

/// With another interface in the maps, what goes back by its own still leaves from the address that it was sent to.
#[test]
fn the_same_interface_needs_no_map() -> Result<()> {
    beside_another(|| {
        let packet = v4(Protocol::Tcp);
        let mut balancer = balancer(&packet, &backend(Mode::L2, "0.0.0.0", "10.0.1.7"))?;
        balancer.set_exit(OTHER, OWN)?;
        let outcome = balancer.run(&packet.frame())?;
        assert_eq!(outcome.action, XdpAction::Tx);
        assert_eq!(outcome.frame, packet.readdressed(NEXT_HOP));
        Ok(())
    })
}
