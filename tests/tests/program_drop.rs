//! What is for a service and cannot be forwarded is dropped under the verdict that says why, and not altered.

use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    verdict::{Action, Verdict},
};
use lb_tests::{
    counters::Counters,
    fixture::{SERVICE, backend, balancer, ip, key, tunnel, v4, v6},
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
fn maps_that_contradict_each_other() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for mode in [0, 3, 255] {
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
