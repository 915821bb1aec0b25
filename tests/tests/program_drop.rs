//! What is for a service and cannot be forwarded is dropped under the verdict that says why, and not altered.

use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    verdict::{Action, Verdict},
};
use lb_tests::{
    counters::Counters,
    fixture::{BACKEND, SERVICE, backend, balancer, ip, key, tunnel, v4, v6},
    packet::{Packet, Protocol},
    prog_run::{Balancer, INTERFACE, XdpAction},
    require,
};

fn assert_dropped(balancer: &Balancer, packet: &Packet, verdict: Verdict) -> Result<()> {
    assert_eq!(
        verdict.action(),
        Action::Drop,
        "{verdict:?} is not a reason to drop"
    );
    let frame = packet.frame();
    let (outcome, counters) = balancer.run_counted(&frame)?;
    assert_eq!(outcome.action, XdpAction::Drop, "{verdict:?}");
    assert_eq!(outcome.frame, frame, "{verdict:?}: altered");
    assert_eq!(counters, Counters::of_verdict(verdict));
    Ok(())
}

/// Both families, with the backend's entry spoilt by `spoil`, in both modes.
fn assert_all_dropped(spoil: impl Fn(&mut BackendEntry), verdict: Verdict) -> Result<()> {
    for mode in [Mode::L2, Mode::Ipip] {
        for packet in [v4(Protocol::Tcp), v6(Protocol::Udp)] {
            let mut entry = backend(mode, "10.0.0.2", "10.0.1.7");
            spoil(&mut entry);
            assert_dropped(&balancer(&packet, &entry)?, &packet, verdict)?;
        }
    }
    Ok(())
}

#[test]
fn fragments_of_a_service() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let whole = Packet {
        dont_fragment: false,
        ..v4(Protocol::Udp)
    };
    let first = Packet {
        more_fragments: true,
        ..whole.clone()
    };
    assert_dropped(&balancer(&whole, &tunnel())?, &first, Verdict::DropFragment)?;

    let mut any_port = Balancer::load()?;
    any_port.add_service(key(&whole, 0), SERVICE, |_| BACKEND)?;
    for (more_fragments, fragment_offset) in [(true, 0), (true, 5), (false, 5)] {
        let fragment = Packet {
            more_fragments,
            fragment_offset,
            ..whole.clone()
        };
        assert_dropped(&any_port, &fragment, Verdict::DropFragment)?;
    }
    Ok(())
}

#[test]
fn a_slot_without_owner() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let mut balancer = Balancer::load()?;
    balancer.add_service(key(&v4(Protocol::Tcp), 443), SERVICE, |_| 0)?;
    assert_dropped(&balancer, &v4(Protocol::Tcp), Verdict::DropNoBackend)
}

#[test]
fn a_next_hop_that_is_not_resolved() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    assert_all_dropped(
        |entry| entry.next_hop = NextHop::default(),
        Verdict::DropNoNextHop,
    )
}

#[test]
fn a_backend_behind_another_interface() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    assert_all_dropped(
        |entry| entry.interface = INTERFACE + 1,
        Verdict::DropWrongInterface,
    )
}

#[test]
fn a_packet_one_byte_too_large() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    // 28 bytes of IPv4 and UDP headers, or 48 of IPv6; the outer header counts as well, Ethernet padding does not.
    for (packet, mode, source, address, headers) in [
        (v4(Protocol::Udp), Mode::L2, "10.0.0.2", "10.0.1.7", 28),
        (v6(Protocol::Udp), Mode::L2, "10.0.0.2", "10.0.1.7", 48),
        (
            v4(Protocol::Udp),
            Mode::Ipip,
            "10.0.0.2",
            "10.0.1.7",
            28 + 20,
        ),
        (
            v6(Protocol::Udp),
            Mode::Ipip,
            "10.0.0.2",
            "10.0.1.7",
            48 + 20,
        ),
        (
            v4(Protocol::Udp),
            Mode::Ipip,
            "fd00::2",
            "fd00:1::7",
            28 + 40,
        ),
        (
            v6(Protocol::Udp),
            Mode::Ipip,
            "fd00::2",
            "fd00:1::7",
            48 + 40,
        ),
    ] {
        let entry = backend(mode, source, address);
        let balancer = balancer(&packet, &entry)?;
        let fits = usize::from(entry.mtu) - headers;
        let packet = Packet {
            payload: vec![0; fits + 1],
            ..packet
        };
        assert_dropped(&balancer, &packet, Verdict::DropTooBig)?;
        let packet = Packet {
            payload: vec![0; fits],
            padding: 1,
            ..packet
        };
        assert_eq!(balancer.run(&packet.frame())?.action, XdpAction::Tx);
    }
    Ok(())
}

#[test]
fn maps_that_contradict_each_other() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for mode in [0, 4, 255] {
        assert_all_dropped(|entry| entry.mode = mode, Verdict::DropBadState)?;
    }
    let packet = v4(Protocol::Tcp);
    for (source, address) in [("10.0.0.2", "fd00::7"), ("fd00::2", "10.0.1.7")] {
        let balancer = balancer(&packet, &backend(Mode::Ipip, source, address))?;
        assert_dropped(&balancer, &packet, Verdict::DropBadState)?;
    }
    let unset = BackendEntry {
        outer_source: Address::default(),
        ..tunnel()
    };
    assert_dropped(&balancer(&packet, &unset)?, &packet, Verdict::DropBadState)?;
    assert_eq!(Address::from(ip("::")), Address::default());

    let mut no_table = Balancer::load()?;
    no_table.add_service_without_table(key(&packet, 443), SERVICE)?;
    assert_dropped(&no_table, &packet, Verdict::DropBadState)?;
    no_table.add_service_without_table(key(&packet, 443), u32::MAX)?;
    assert_dropped(&no_table, &packet, Verdict::DropBadState)?;

    let mut no_entry = Balancer::load()?;
    no_entry.add_service(key(&packet, 443), SERVICE, |_| 0xff_ffff)?;
    assert_dropped(&no_entry, &packet, Verdict::DropBadState)
}
