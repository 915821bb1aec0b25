//! The packet's path from frame to backend, one stage a line.
//!
//! **Invariant.** Until [`forward::send`] succeeds the frame is as it came; after it nothing can fail.

use crate::{
    flow_table::{self, Owners, Place},
    forward, fragment,
    outcome::Outcome,
    parse::{self, Family, Flow, Fragment, Ip, Tags, l4},
    quic, service, slot, stats, trace,
};
use aya_ebpf::{Global, bindings::xdp_md};
use lb_common::{
    address::Address,
    flow::{Client, FlowV4, FlowV6, slot_of, with_slot_of},
    service::ServiceEntry,
    verdict::Verdict,
};
use lb_ebpf::{packet::Packet, verifier};

/// Seed of the flow hash, the same on all nodes of a fleet; set when the program is loaded.
#[unsafe(no_mangle)]
static HASH_SEED: Global<u64> = Global::new(0);

/// Sends the packet to the backend of its flow, or says why not.
///
/// Three times the same path: without tags the offsets are constants, and so is half of an address of IPv4. Each is a function of its own, as the stack of a program has
/// no room for both.
#[inline(always)]
pub fn balance(packet: &Packet) -> Outcome {
    let context = packet.context().ctx;
    let (family, tags) = match parse::link(packet) {
        Ok(link) => link,
        Err(verdict) => return verdict.into(),
    };
    let is_v4 = u32::from(matches!(family, Family::V4));
    let word = match (packet.is_in_frags(), tags) {
        (false, Tags::None) if is_v4 != 0 => untagged_v4(context),
        (false, Tags::None) => untagged_v6(context),
        (true, Tags::None) => untagged_in_frags(context, is_v4),
        (false, Tags::One | Tags::Two) => tagged::<false>(context, is_v4, tags as u32),
        (true, Tags::One | Tags::Two) => tagged::<true>(context, is_v4, tags as u32),
    };
    // Here, where the stack is empty again.
    let second = (word >> 32) as u32;
    if second != 0 {
        forward::name_second(context, tags as u32, second);
    }
    Outcome::of(word as u32)
}

/// The word of an [`Outcome`] and, above it, the second owner that the packet is to name.
#[inline(never)]
fn untagged_v4(context: *mut xdp_md) -> u64 {
    run::<false, true>(context, 1, Tags::None)
}

/// As [`untagged_v4`].
#[inline(never)]
fn untagged_v6(context: *mut xdp_md) -> u64 {
    run::<false, false>(context, 0, Tags::None)
}

/// As [`untagged_v4`], for both families: two functions would be too much work for the verifier.
#[inline(never)]
fn untagged_in_frags(context: *mut xdp_md, is_v4: u32) -> u64 {
    run::<true, false>(context, is_v4, Tags::None)
}

/// As [`untagged_v4`].
#[inline(never)]
fn tagged<const FRAGS: bool>(context: *mut xdp_md, is_v4: u32, tags: u32) -> u64 {
    let tags = if tags == Tags::One as u32 {
        Tags::One
    } else {
        Tags::Two
    };
    run::<FRAGS, false>(context, is_v4, tags)
}

#[inline(always)]
fn run<const FRAGS: bool, const KNOWN_V4: bool>(
    context: *mut xdp_md,
    is_v4: u32,
    tags: Tags,
) -> u64 {
    let mut packet = Packet::of::<FRAGS>(context);
    let family = if is_v4 != 0 { Family::V4 } else { Family::V6 };
    match balance_ip::<KNOWN_V4>(&mut packet, family, tags) {
        Ok((sent, second)) => u64::from(sent.word()) | u64::from(second) << 32,
        Err(outcome) => outcome.word().into(),
    }
}

/// Where a packet goes.
pub struct Way {
    /// Index of the service that it is counted for.
    pub service: u32,
    /// The backend, and the one that the packet names.
    pub owners: Owners,
    /// Flow hash: the entropy of outer headers.
    pub hash: u64,
}

/// Sends the IP packet behind these tags to the backend of its flow, or says why not. What is left to do is to name a second
/// owner. Those that follow a first fragment would not find the way to it: it names none.
#[inline(always)]
fn balance_ip<const KNOWN_V4: bool>(
    packet: &mut Packet,
    family: Family,
    tags: Tags,
) -> Result<(Outcome, u32), Outcome> {
    let received = packet.length() as u32;
    let ip = parse::ip(packet, family, tags)?;
    let ip = if KNOWN_V4 { ip } else { ip.in_halves() };
    trace::ip(&ip);
    let is_first = verifier::forget(u32::from(ip.fragment == Fragment::First)) != 0;
    let way = if ip.fragment == Fragment::Later {
        fragment::way(&ip)?
    } else {
        way(packet, &ip, is_first)?
    };
    trace::backend(way.owners.first());
    // One place on the stack for both, until the packet is sent.
    let counted = verifier::hide(u64::from(way.service) | u64::from(received) << 32);
    let context = packet.context().ctx;
    let sent = forward::send_apart(context, &ip.described(), way.hash, way.owners.first());
    if sent.verdict() != Verdict::Forwarded {
        return Err(sent);
    }
    let owners = way.owners.again();
    let counted = verifier::hide(counted);
    let service = counted as u32;
    stats::count_forwarded(service, owners.first(), counted >> 32);
    if is_first {
        let way = Way {
            service,
            owners,
            hash: way.hash,
        };
        fragment::record(&ip, &way);
        return Ok((sent, 0));
    }
    Ok((sent, owners.second()))
}

/// The way of a packet that has its ports, or quotes some.
#[inline(always)]
fn way(packet: &Packet, ip: &Ip, is_first: bool) -> Result<Way, Outcome> {
    let flow = match parse::flow(packet, ip) {
        Ok(flow) => flow,
        Err(_) if is_first => return Err(fragment::without_ports(ip).into()),
        Err(Verdict::PassNotTcpUdp) => return Err(Outcome::perhaps_ping()),
        Err(verdict) => return Err(verdict.into()),
    };
    trace::flow(&flow);
    let Some(service) = service::find(&flow) else {
        let verdict = if is_first {
            fragment::without_service(ip)
        } else {
            Verdict::PassNoService
        };
        return Err(verdict.into());
    };
    let hash = flow_hash(ip.is_v4, &flow, service.flags);
    trace::service(service.index, hash);
    let owners = match quic::owner(packet, ip, &flow, &service) {
        quic::NOBODY => owners(packet, ip, &flow, service.index, slot_of(hash))?,
        named => Owners::alone(named),
    };
    Ok(Way {
        service: service.index,
        owners,
        hash,
    })
}

/// The backends that the packet may be for. A steady slot says it by itself, and knows one.
#[inline(always)]
fn owners(
    packet: &Packet,
    ip: &Ip,
    flow: &Flow,
    service: u32,
    number: u32,
) -> Result<Owners, Verdict> {
    let slot = slot::get(service, || number)?;
    trace::slot(slot);
    if slot.is_tracked() {
        let place = Place {
            service,
            number,
            slot,
        };
        return if flow.is_error {
            flow_table::owners_of_error(flow, &place)
        } else {
            flow_table::owners(flow, l4::kind(packet, ip), &place)
        };
    }
    match slot.new_owner() {
        0 => Err(Verdict::DropNoBackend),
        first => Ok(Owners::alone(first)),
    }
}

/// The hash of a flow; its slot is its client's if the service's `flags` ask for that. This is a branch, so that others do not
/// wait for the flags.
#[inline(always)]
pub fn flow_hash(is_v4: bool, flow: &Flow, flags: u32) -> u64 {
    let Flow {
        source,
        destination,
        ports,
        protocol,
        ..
    } = *flow;
    let hash = if is_v4 {
        FlowV4::new(source.v4_word(), destination.v4_word(), ports, protocol).hash(HASH_SEED.load())
    } else {
        FlowV6::new(source, destination, ports, protocol).hash(HASH_SEED.load())
    };
    if flags & ServiceEntry::HASH == 0 {
        return hash;
    }
    let [start, end] = source.halves();
    with_slot_of(hash, client_hash(start, end, ports.source.into(), flags))
}

/// The hash of a client: the halves of its address, its port as it lies in the packet, and the service's flags.
///
/// To the kernel this is a global function: the verifier goes through it once, and not for each way that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_hash(start: u64, end: u64, port: u32, flags: u32) -> u64 {
    Client::of(Address::of_halves(start, end), port as u16, flags).hash(HASH_SEED.load())
}
