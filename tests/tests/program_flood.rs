//! A flood of SYNs must not cost a steady service anything, and a tracked slot no more than its own flows.

use anyhow::Result;
use lb_common::{
    flow_set,
    flow_table::{FlowEvent, SYN_REUSE_SECONDS},
    limits::SLOTS,
    slot::Slot,
};
use lb_tests::{
    effort,
    fixture::{BACKEND, SERVICE, flow_key, key, slot_number, tunnel, v4},
    packet::{
        ETHERNET, Packet, Protocol,
        flag::{ACK, SYN},
    },
    prog_run::{Balancer, XdpAction},
    require,
};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

/// How many SYNs a flood has.
fn syns() -> u32 {
    effort::of(100_000)
}

const FLOW_CAPACITY: u32 = 1 << 18;

/// The SYN with this number: every one has another source.
fn syn(number: u32) -> Packet {
    let source = Ipv4Addr::from(0x0a00_0000 + number / 1_000);
    Packet {
        from: SocketAddr::from((source, 1_024 + (number % 1_000) as u16)),
        flags: SYN,
        payload: Vec::new(),
        ..v4(Protocol::Tcp)
    }
}

/// Sends all SYNs through the program. Nothing looks at checksums, so one frame is built and its source changed.
fn flood(balancer: &Balancer) -> Result<()> {
    let mut frame = syn(0).frame();
    for number in 0..syns() {
        let source = 0x0a00_0000 + number / 1_000;
        frame[ETHERNET + 12..ETHERNET + 16].copy_from_slice(&source.to_be_bytes());
        let port = 1_024 + (number % 1_000) as u16;
        frame[ETHERNET + 20..ETHERNET + 22].copy_from_slice(&port.to_be_bytes());
        assert_eq!(balancer.run(&frame)?.action, XdpAction::Tx);
    }
    Ok(())
}

#[test]
fn steady_slots_forget_a_flood_and_tracked_ones_know_their_own_flows() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = syn(0);
    let mut balancer = Balancer::with_flows(FLOW_CAPACITY)?;
    balancer.set_backend(BACKEND, &tunnel())?;
    balancer.add_service(key(&packet, 443), SERVICE, |_| BACKEND)?;
    flood(&balancer)?;
    assert_eq!(balancer.flows()?.len(), 0);
    let counters = balancer.counters()?;
    assert_eq!(counters.flows, [].into());
    assert_eq!(counters.backends[&BACKEND].0, u64::from(syns()));

    // One slot is tracked.
    let number = slot_number(&packet);
    balancer.set_slot(SERVICE, number, Slot::tracked(BACKEND))?;
    let all = (0..syns()).map(syn);
    let own: BTreeSet<_> = all
        .filter(|syn| slot_number(syn) == number)
        .map(|syn| flow_key(&syn))
        .collect();
    assert!((1..100).contains(&own.len()), "{}", own.len());
    let start = Instant::now();
    flood(&balancer)?;
    assert_eq!(balancer.flows()?.into_keys().collect::<BTreeSet<_>>(), own);
    let recorded = own.len() as u64;
    let expected = [(FlowEvent::Recorded, recorded)];
    assert_eq!(balancer.counters()?.flows, expected.into());

    // All are.
    for number in 0..SLOTS {
        balancer.set_slot(SERVICE, number, Slot::tracked(BACKEND))?;
    }
    flood(&balancer)?;
    assert_eq!(balancer.flows()?.len(), syns() as usize);
    let mut flows = balancer.counters()?.flows;
    assert_eq!(flows.remove(&FlowEvent::Recorded), Some(syns().into()));
    assert_eq!(flows.values().sum::<u64>(), recorded);
    // Slow machines may need a minute here, and then a SYN is taken for a new flow's.
    if start.elapsed() < Duration::from_secs(SYN_REUSE_SECONDS.into()) {
        assert_eq!(flows, [(FlowEvent::Hit, recorded)].into());
    }
    Ok(())
}

/// Connections that have had a second packet are worth more than a flood's SYNs.
#[test]
fn a_flood_puts_out_no_connection_that_goes_on() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    const CAPACITY: u32 = 1 << 14;
    let mut balancer = Balancer::with_flows(CAPACITY)?;
    balancer.set_backend(BACKEND, &tunnel())?;
    let service = key(&syn(0), 443);
    balancer.add_service_of_slots(service, SERVICE, |_| Slot::tracked(BACKEND))?;
    let live: Vec<Packet> = (0..CAPACITY / 2)
        .map(|number| syn(1 << 24 | number))
        .collect();
    for packet in &live {
        for flags in [SYN, ACK] {
            let packet = Packet {
                flags,
                ..packet.clone()
            };
            assert_eq!(balancer.run(&packet.frame())?.action, XdpAction::Tx);
        }
    }
    flood(&balancer)?;
    let flows = balancer.flows()?;
    let lost = live
        .iter()
        .filter(|packet| !flows.contains_key(&flow_key(packet)));
    // More than a handful of them share a set with more than it has room for about never.
    assert!(lost.count() <= 8);
    Ok(())
}

#[test]
fn a_full_table_forgets_and_forwards_on() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let mut balancer = Balancer::with_flows(1_024)?;
    balancer.set_backend(BACKEND, &tunnel())?;
    let service = key(&syn(0), 443);
    balancer.add_service_of_slots(service, SERVICE, |_| Slot::tracked(BACKEND))?;
    flood(&balancer)?;
    let places = flow_set::sets(1_024) as usize * flow_set::WAYS;
    assert_eq!(balancer.flows()?.len(), places);
    let counters = balancer.counters()?;
    assert_eq!(counters.backends[&BACKEND].0, u64::from(syns()));
    assert_eq!(
        counters.flows,
        [(FlowEvent::Recorded, syns().into())].into(),
        "there is room for every flow"
    );
    Ok(())
}
