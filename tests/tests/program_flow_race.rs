//! Several CPUs and the daemon at one set of the flow table at once: nobody may ever believe an entry that is half another's.

use anyhow::{Context, Result};
use aya::{EbpfLoader, maps::ProgramArray, programs::Xdp};
use lb_common::{
    backend::BackendEntry,
    flow_table::{FlowEntry, FlowEvent, FlowKey},
    slot::Slot,
};
use lb_tests::{
    effort,
    fixture::{SERVICE, flow_key, ip, key, slot_number, tunnel, v4},
    packet::{Packet, Protocol, flag::SYN},
    prog_run::{Balancer, XdpAction},
    require,
    runner::Runner,
};
use lb_userspace::dataplane::object;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

/// Packets of each CPU.
const PACKETS: u32 = 1 << 22;
/// Flows of each of two CPUs; all are at home in one set, which has room for a few.
const FLOWS: [u32; 2] = [64, 48];

/// The SYN of a flow, as the wrapper makes it (`lb-ebpf/src/bin/bench.rs`). A flow that has SYNs alone is soon put out by another.
fn packet(flow: u32) -> Packet {
    Packet {
        from: SocketAddr::from((Ipv4Addr::new(11, 0, 0, 1), 1_024 + flow as u16)),
        flags: SYN,
        payload: Vec::new(),
        ..v4(Protocol::Tcp)
    }
}

/// The backend that owns a flow's slot.
fn owner(slot: u32) -> u32 {
    1 + slot % 2
}

/// A balancer with one set of flows and two backends, between which nothing but their indexes tells.
fn balancer() -> Result<Balancer> {
    let mut balancer = Balancer::with_flows(1)?;
    for index in [1, 2] {
        let entry = BackendEntry {
            address: ip(&format!("10.0.1.{index}")).into(),
            ..tunnel()
        };
        balancer.set_backend(index, &entry)?;
    }
    let slot = |number| Slot::tracked(owner(number));
    balancer.add_service_of_slots(key(&packet(0), packet(0).to.port()), SERVICE, slot)?;
    Ok(balancer)
}

/// The flows of so many packets, in the wrapper's order.
fn order(flows: u32, packets: u32) -> impl Iterator<Item = u32> {
    let mut next = 0_u64;
    (0..packets).map(move |_| {
        next = (next + 0x9e37_79b9) & 0xffff_ffff;
        ((next * u64::from(flows)) >> 32) as u32
    })
}

/// Sends packets of so many flows through the balancer, without leaving the kernel in between.
fn send(balancer: &Balancer, flows: u32, packets: u32) -> Result<()> {
    let frame = packet(0).frame();
    let mut start = [0_u16; 8];
    for (word, bytes) in start.iter_mut().zip(frame.as_chunks::<2>().0) {
        *word = u16::from_ne_bytes(*bytes);
    }
    let mut ebpf = EbpfLoader::new()
        .override_global("FLOWS", &flows, true)
        .override_global("START", &start, true)
        .load(object::BENCH)?;
    let wrap: &mut Xdp = ebpf.program_mut("wrap").context("no wrapper")?.try_into()?;
    wrap.load()?;
    let wrap = wrap.fd()?.try_clone()?;
    let map = ebpf.map_mut("PROGRAM").context("no map of programs")?;
    ProgramArray::try_from(map)?.set(0, balancer.program_fd()?, 0)?;
    let (answer, _) = Runner::default().time(wrap.as_fd(), &frame, packets)?;
    assert_eq!(XdpAction::try_from(answer)?, XdpAction::Tx);
    Ok(())
}

/// Reads, removes and writes flows until the CPUs are done. Returns how often.
fn disturb(balancer: &Balancer, done: &AtomicBool) -> Result<u64> {
    let slots: BTreeMap<FlowKey, u32> = (0..FLOWS[0])
        .map(packet)
        .map(|packet| (flow_key(&packet), slot_number(&packet)))
        .collect();
    let table = balancer.flow_table();
    let mut changes = 0;
    while !done.load(Ordering::Relaxed) {
        for (wanted, slot) in &slots {
            let mut shown = Vec::new();
            table.scan(&mut |key, entry| {
                let slot = slots.get(key).copied();
                assert_eq!(Some(entry.slot), slot, "{key:?} {entry:?}");
                assert_eq!(entry.backend, owner(entry.slot), "{key:?} {entry:?}");
                shown.push(*key);
            });
            let some: Vec<_> = shown.into_iter().step_by(5).collect();
            changes += table.remove(&some)?;
            let entry = FlowEntry {
                backend: owner(*slot),
                generation: tunnel().generation,
                service: SERVICE,
                slot: *slot,
                seen: 1,
                flags: 0,
            };
            changes += u64::from(table.insert(wanted, &entry)?);
        }
    }
    Ok(changes)
}

#[test]
fn no_packet_follows_an_entry_that_is_half_anothers() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let balancer = balancer()?;
    let packets = effort::of(PACKETS);
    let mut expected = [0; 2];
    let owners: Vec<u32> = (0..FLOWS[0])
        .map(|flow| owner(slot_number(&packet(flow))))
        .collect();
    for flow in FLOWS.into_iter().flat_map(|flows| order(flows, packets)) {
        expected[owners[flow as usize] as usize - 1] += 1;
    }
    let done = AtomicBool::new(false);
    let changes = thread::scope(|scope| {
        let daemon = scope.spawn(|| disturb(&balancer, &done));
        let cpus = FLOWS.map(|flows| {
            let balancer = &balancer;
            scope.spawn(move || send(balancer, flows, packets))
        });
        let sent = cpus.map(thread::ScopedJoinHandle::join);
        done.store(true, Ordering::Relaxed);
        let changes = daemon.join();
        for result in sent {
            result.expect("a CPU's thread has panicked")?;
        }
        changes.expect("the daemon's thread has panicked")
    })?;
    let counters = balancer.counters()?;
    println!("{changes} changes meanwhile, {:?}", counters.flows);
    let forwarded = [1, 2].map(|index| counters.backends[&index].0);
    assert_eq!(forwarded, expected, "packets went to another's backend");
    for event in [FlowEvent::Hit, FlowEvent::Recorded] {
        let count = counters.flows.get(&event).copied().unwrap_or_default();
        assert!(
            count > u64::from(packets / 100),
            "{event:?} is hardly tested"
        );
    }
    assert!(changes > 100, "the daemon has hardly done anything");
    Ok(())
}
