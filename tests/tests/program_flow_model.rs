//! The program against the fake data plane: random packets while slots, backends and the flow table change. Both must send
//! every packet to the same backend and end with the same flow table and the same counts.

use anyhow::Result;
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    flow_table::{FlowEntry, FlowEvent, FlowKey, PacketKind},
    service::{ServiceEntry, ServiceKey},
    slot::Slot,
};
use lb_tests::{
    counters::Counters,
    effort,
    fixture::{flow_key, ip, key, slot_number, tunnel, v4, v6},
    packet::{
        ETHERNET, Packet, Protocol,
        flag::{ACK, FIN, PSH, RST, SYN},
    },
    prog_run::{Balancer, XdpAction},
    require,
};
use lb_userspace::dataplane::{DataPlane, clock, fake::FakeDataPlane};

const STEPS: u32 = 20_000;
/// Backends, from index 1.
const BACKENDS: u32 = 5;
/// Flows of each service.
const FLOWS: usize = 12;

/// A flow that the test sends packets of.
struct Flow {
    service: ServiceKey,
    index: u32,
    slot: u32,
    key: FlowKey,
    packet: Packet,
}

/// The program, the model, and the flows.
struct Pair {
    balancer: Balancer,
    model: FakeDataPlane,
    flows: Vec<Flow>,
    generation: u32,
    /// Packets that named a second owner.
    named: u32,
}

fn address(index: u32) -> Address {
    ip(&format!("10.1.0.{index}")).into()
}

/// One in mode `ipip`, and more in mode `gue`, which name each other.
fn backend(index: u32, generation: u32) -> BackendEntry {
    let mode = if index == 1 { Mode::Ipip } else { Mode::Gue };
    BackendEntry {
        mode: mode as u8,
        port: 6_080_u16.to_be(),
        address: address(index),
        generation,
        ..tunnel()
    }
}

impl Pair {
    /// TCP and UDP services over both families, one for any port.
    fn new(random: &mut fastrand::Rng) -> Result<Self> {
        let mut pair = Self {
            balancer: Balancer::load()?,
            model: FakeDataPlane::new(8, 16),
            flows: Vec::new(),
            generation: 1,
            named: 0,
        };
        for index in 1..=BACKENDS {
            pair.write_backend(index, &backend(index, 1))?;
        }
        let services = [
            (v4(Protocol::Tcp), 443),
            (v4(Protocol::Udp), 443),
            (v6(Protocol::Tcp), 443),
            (v6(Protocol::Udp), 0),
        ];
        for (index, (packet, port)) in (0..).zip(&services) {
            let service = key(packet, *port);
            pair.model.create_tables(&[index])?;
            let entry = ServiceEntry { index, flags: 0 };
            let address = ServiceKey::of_address(service.address);
            pair.model.put_service(&address, &ServiceEntry::default())?;
            pair.model.put_service(&service, &entry)?;
            let empty = |_| Slot::EMPTY;
            pair.balancer.add_service_of_slots(service, index, empty)?;
            for _ in 0..FLOWS {
                let mut packet = packet.clone();
                packet.from.set_port(random.u16(..));
                packet.payload.clear();
                pair.flows.push(Flow {
                    service,
                    index,
                    slot: slot_number(&packet),
                    key: flow_key(&packet),
                    packet,
                });
            }
        }
        for flow in 0..pair.flows.len() {
            pair.change_slot(flow, random)?;
        }
        Ok(pair)
    }

    /// Writes an entry to both, unless the model refuses it because a slot still names the index.
    fn write_backend(&mut self, index: u32, entry: &BackendEntry) -> Result<()> {
        match self.model.write_backend(index, entry) {
            Ok(()) => self.balancer.set_backend(index, entry),
            Err(_) => Ok(()),
        }
    }

    fn change_slot(&mut self, flow: usize, random: &mut fastrand::Rng) -> Result<()> {
        let (new, old) = (random.u32(0..=BACKENDS), random.u32(0..=BACKENDS));
        let slot = match random.u8(0..8) {
            0 => Slot::steady(new),
            1 | 2 => Slot::tracked(new),
            _ => Slot::moved(new, old, random.bool()),
        };
        let Flow {
            index,
            slot: number,
            ..
        } = self.flows[flow];
        match self.model.store_slots(index, &[(number, slot)]) {
            Ok(()) => self.balancer.set_slot(index, number, slot),
            // It names a backend that is not in use.
            Err(_) => Ok(()),
        }
    }

    fn change_backend(&mut self, random: &mut fastrand::Rng) -> Result<()> {
        let index = random.u32(1..=BACKENDS);
        self.generation += 1;
        let installed = self.model.installed()?.backends;
        let now = installed.get(&index).copied();
        let entry = match (random.u8(0..10), now) {
            (0..=2, Some(now)) => BackendEntry {
                flags: now.flags ^ BackendEntry::LOST,
                ..now
            },
            (3, Some(now)) => BackendEntry {
                next_hop: NextHop::default(),
                ..now
            },
            (4 | 5, Some(now)) => BackendEntry {
                next_hop: tunnel().next_hop,
                ..now
            },
            (6 | 7, Some(_)) => {
                // Its slots are given to others first, so that it can go.
                self.evict(index)?;
                BackendEntry::default()
            }
            _ => backend(index, self.generation),
        };
        self.write_backend(index, &entry)
    }

    /// Empties all slots that name an index.
    fn evict(&mut self, index: u32) -> Result<()> {
        for flow in &self.flows {
            let slots = self.model.read_slots(flow.index)?;
            let slot = slots[flow.slot as usize];
            if slot.new_owner() == index || slot.old_owner() == index {
                self.model
                    .store_slots(flow.index, &[(flow.slot, Slot::tracked(0))])?;
                self.balancer
                    .set_slot(flow.index, flow.slot, Slot::tracked(0))?;
            }
        }
        Ok(())
    }

    /// Changes or removes what both know of a flow.
    fn change_flow(&mut self, flow: usize, random: &mut fastrand::Rng) -> Result<()> {
        let key = self.flows[flow].key;
        let Some(entry) = self.model.flows.get_mut(&key) else {
            return Ok(());
        };
        match random.u8(0..9) {
            0 | 1 => {
                self.model.remove_flows(&[key])?;
                return self.balancer.remove_flow(&key);
            }
            2 => entry.service += 1,
            3 => entry.generation = random.u32(0..=self.generation),
            4 => entry.backend = random.u32(0..=BACKENDS + 1),
            5 => entry.flags = random.u32(0..=1) | random.u32(0..=BACKENDS + 1) << 8,
            // Around the moment from which on a SYN begins a flow anew.
            _ => entry.seen = seconds().saturating_sub(random.u32(59..=62)),
        }
        self.balancer.set_flow(&key, entry)
    }

    /// Sends a packet through both; they must agree.
    fn send(&mut self, flow: usize, random: &mut fastrand::Rng, context: &str) -> Result<()> {
        let flow = &self.flows[flow];
        let (flags, kind) = match flow.packet.protocol {
            Protocol::Udp => (0, PacketKind::Udp),
            Protocol::Tcp => *random
                .choice(&[
                    (SYN, PacketKind::TcpSyn),
                    (SYN, PacketKind::TcpSyn),
                    (ACK, PacketKind::Tcp),
                    (PSH | ACK, PacketKind::Tcp),
                    (SYN | ACK, PacketKind::Tcp),
                    (0, PacketKind::Tcp),
                    (FIN | ACK, PacketKind::TcpEnd),
                    (RST, PacketKind::TcpEnd),
                ])
                .expect("it is not empty"),
        };
        let frame = Packet {
            flags,
            ..flow.packet.clone()
        }
        .frame();
        let before = seconds();
        let outcome = self.balancer.run(&frame)?;
        let after = seconds();
        let known = self.balancer.flow(&flow.key)?;
        // Whatever follows or records marks the flow with the program's time, a tick behind ours at most.
        let now = known
            .map(|entry| entry.seen)
            .filter(|seen| (before.saturating_sub(1)..=after).contains(seen))
            .unwrap_or(before);
        let expected = self
            .model
            .packet_for(&flow.service, &flow.key, flow.slot, kind, now);
        self.named += u32::from(expected.is_some_and(|(_, second)| second != 0));
        let context = format!("{context}: {kind:?} of {:?}", flow.key);
        assert_eq!(
            sent_to(&outcome.action, &outcome.frame),
            expected,
            "{context}"
        );
        let model: Option<FlowEntry> = self.model.flows.get(&flow.key).copied();
        assert_eq!(known, model, "{context}");
        Ok(())
    }

    fn assert_same_flows(&mut self, context: &str) -> Result<()> {
        assert_eq!(self.balancer.flows()?, self.model.flows, "{context}");
        Ok(())
    }

    fn assert_same_counts(&mut self, before: &Counters, context: &str) -> Result<()> {
        let counted = self.balancer.counters()?.since(before).flows;
        for (event, count) in FlowEvent::ALL.iter().zip(self.model.flow_events()?) {
            let real = counted.get(event).copied().unwrap_or_default();
            assert_eq!(real, count, "{context}: {event:?}");
        }
        println!("{counted:?}");
        println!("{} packets named a second owner", self.named);
        let enough = effort::of(100);
        assert!(self.named > enough, "second owners are hardly tested");
        for event in [FlowEvent::Hit, FlowEvent::Recorded, FlowEvent::Replaced] {
            let count = counted[&event];
            assert!(count > enough.into(), "{event:?} is hardly tested");
        }
        Ok(())
    }
}

fn seconds() -> u32 {
    clock::seconds(clock::monotonic())
}

/// Indexes of the backend that a frame was sent to and of the one that it names, or 0: the last bytes of their addresses.
fn sent_to(action: &XdpAction, frame: &[u8]) -> Option<(u32, u32)> {
    const UDP: u8 = 17;
    let gue = ETHERNET + 20 + 8;
    (*action == XdpAction::Tx).then(|| {
        let second = match (frame[ETHERNET + 9], frame[gue]) {
            (UDP, 2) => frame[gue + 4 + 7].into(),
            _ => 0,
        };
        (frame[ETHERNET + 19].into(), second)
    })
}

#[test]
fn the_program_and_its_model_agree() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pair = Pair::new(&mut random)?;
    let before = pair.balancer.counters()?;
    for step in 0..effort::of(STEPS) {
        let context = format!("seed {seed}, step {step}");
        let flow = random.usize(..pair.flows.len());
        match random.u8(0..100) {
            0..80 => pair.send(flow, &mut random, &context)?,
            80..87 => pair.change_slot(flow, &mut random)?,
            87..96 => {
                pair.change_flow(flow, &mut random)?;
                pair.send(flow, &mut random, &context)?;
            }
            _ => pair.change_backend(&mut random)?,
        }
        if step % 1_000 == 0 {
            pair.assert_same_flows(&context)?;
        }
    }
    let context = format!("seed {seed}");
    pair.assert_same_flows(&context)?;
    pair.assert_same_counts(&before, &context)
}
