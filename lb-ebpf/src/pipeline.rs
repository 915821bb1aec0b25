//! The packet's path from frame to backend, one stage a line.
//!
//! **Invariant.** Until [`forward::send`] succeeds the frame is as it came; after it nothing can fail.

use crate::{
    backend,
    exit::Exit,
    flow_table::{self, Place},
    forward,
    parse::{self, Family, Flow, Fragment, Ip, Tags, l4},
    service, slot, stats,
};
use aya_ebpf::Global;
use lb_common::{
    flow::{FlowV4, FlowV6, slot_of},
    service::ServiceEntry,
    verdict::Verdict,
};
use lb_ebpf::packet::Packet;

/// Seed of the flow hash, the same on all nodes of a fleet; set when the program is loaded.
#[unsafe(no_mangle)]
static HASH_SEED: Global<u64> = Global::new(0);

/// Sends the packet to the backend of its flow, or says why not.
#[inline(always)]
pub fn balance(packet: &mut Packet) -> Result<Exit, Verdict> {
    // Twice the same path: without tags the offsets are constants.
    match parse::link(packet)? {
        (family, Tags::None) => balance_ip(packet, family, Tags::None),
        (family, tags) => balance_ip(packet, family, tags),
    }
}

/// Sends the IP packet behind these tags to the backend of its flow, or says why not.
#[inline(always)]
fn balance_ip(packet: &mut Packet, family: Family, tags: Tags) -> Result<Exit, Verdict> {
    let received = packet.length() as u64;
    let ip = parse::ip(packet, family, tags)?;
    if ip.fragment == Fragment::Later {
        return Err(fragment(service::find_any_port(
            ip.destination,
            ip.protocol,
        )));
    }
    let flow = parse::flow(packet, &ip)?;
    let found = service::find(&flow);
    if ip.fragment == Fragment::First {
        return Err(fragment(found));
    }
    let service = found.ok_or(Verdict::PassNoService)?;
    let hash = flow_hash(ip.is_v4, &flow);
    let owner = owner(packet, &ip, &flow, service.index, slot_of(hash))?;
    let backend = backend::get(owner)?;
    let exit = forward::send(packet, &ip, hash, &backend)?;
    stats::count_forwarded(service.index, owner, received);
    Ok(exit)
}

/// Index of the backend that the packet goes to. A steady slot says it by itself.
#[inline(always)]
fn owner(packet: &Packet, ip: &Ip, flow: &Flow, service: u32, number: u32) -> Result<u32, Verdict> {
    let slot = slot::get(service, number)?;
    if slot.is_tracked() {
        let place = Place {
            service,
            number,
            slot,
        };
        return if flow.is_error {
            flow_table::owner_of_error(flow, &place)
        } else {
            flow_table::owner(flow, l4::kind(packet, ip), &place)
        };
    }
    match slot.new_owner() {
        0 => Err(Verdict::DropNoBackend),
        index => Ok(index),
    }
}

/// Fragments are not balanced: those of a service are dropped, all others are none of our business.
#[inline(always)]
fn fragment(service: Option<ServiceEntry>) -> Verdict {
    match service {
        Some(_) => Verdict::DropFragment,
        None => Verdict::PassFragment,
    }
}

#[inline(always)]
fn flow_hash(is_v4: bool, flow: &Flow) -> u64 {
    let Flow {
        source,
        destination,
        ports,
        protocol,
        ..
    } = *flow;
    if is_v4 {
        FlowV4::new(source.v4_word(), destination.v4_word(), ports, protocol).hash(HASH_SEED.load())
    } else {
        FlowV6::new(source, destination, ports, protocol).hash(HASH_SEED.load())
    }
}
