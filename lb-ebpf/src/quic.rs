//! QUIC: a packet whose connection ID names a server goes there, wherever its client is by now.
//!
//! **Invariants.** Only packets of services with `quic` come here. No flow is looked up or recorded: the ID alone says where its
//! packets go. What names no server goes the way of its flow, as if this stage were not there.

use crate::{
    backend,
    parse::{Flow, Ip},
    stats,
};
use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, xdp_md},
    btf_maps::HashMap,
    macros::btf_map,
};
use lb_common::{
    flow_table::FlowEvent,
    gue::UdpHeader,
    limits::DEFAULT_BACKENDS,
    quic::{LONG_HEADER, LONG_ID_LENGTH, QuicConfig, SHORT_ID, ServerEntry, ServerKey, server_id},
    service::ServiceEntry,
};
use lb_ebpf::packet::{Header as _, Packet};
use lb_ebpf::verifier;

#[btf_map]
static QUIC_SERVERS: HashMap<
    ServerKey,
    ServerEntry,
    { DEFAULT_BACKENDS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// Nobody's index: the flow decides.
pub const NOBODY: u32 = 0;

/// Index of the backend that the packet's connection ID names, if its service asks for that, else [`NOBODY`]. An ICMP error
/// quotes a packet of the backend's, which has an ID of the client's.
#[inline(always)]
pub fn owner(packet: &Packet, ip: &Ip, flow: &Flow, service: &ServiceEntry) -> u32 {
    if service.flags & ServiceEntry::QUIC == 0 || flow.is_error {
        return NOBODY;
    }
    let end = ip.tags.l3_offset() as u32 + u32::from(ip.length());
    let start = (ip.l4_offset + UdpHeader::LENGTH) as u32;
    by_connection_id(
        packet.context().ctx,
        start,
        end,
        service.index,
        service.flags,
    )
}

/// `start` and `end` are those of the UDP payload, as far as the IP packet goes.
#[inline(never)]
fn by_connection_id(context: *mut xdp_md, start: u32, end: u32, service: u32, flags: u32) -> u32 {
    // Headers are in the first buffer, so it does not matter whether there are more.
    let packet = Packet::of::<false>(context);
    let config = ServiceEntry::quic_config(flags);
    let mut key = ServerKey {
        service,
        length: config.server_id_length.into(),
        id: 0,
    };
    let found = server(&packet, start as usize, end as usize, config, &mut key);
    let (event, owner) = match found {
        Ok(owner) => (FlowEvent::QuicRouted, owner),
        Err(event) => (event, NOBODY),
    };
    // Whatever was found: what follows, and what the caller goes on with, is one state.
    stats::count_quic(verifier::forget(event as u32), key.id);
    verifier::forget(owner)
}

/// The backend that a packet names; its server ID is added to the key.
#[inline(always)]
fn server(
    packet: &Packet,
    start: usize,
    end: usize,
    config: QuicConfig,
    key: &mut ServerKey,
) -> Result<u32, FlowEvent> {
    // With the byte before it: the verifier learns nothing from how the compiler compares for a single one. Where the IP packet
    // ends is asked once, below: all that is read before lies before that, or leads there.
    let byte = |offset| {
        let pair = packet.read::<[u8; 2]>(hidden(offset - 1));
        pair.map(|pair| pair[1]).ok_or(FlowEvent::QuicShort)
    };
    let length = usize::from(config.server_id_length);
    let mut id = start + SHORT_ID;
    if byte(start)? & LONG_HEADER != 0 {
        let room = byte(start + LONG_ID_LENGTH)?;
        if usize::from(room) <= length {
            return Err(FlowEvent::QuicShort);
        }
        id = start + LONG_ID_LENGTH + 1;
    }
    let last = id + 1 + length;
    if last > end {
        return Err(FlowEvent::QuicShort);
    }
    if byte(id)? >> 5 != config.config_rotation {
        return Err(FlowEvent::QuicOtherConfig);
    }
    // What lies before the server ID is read with it, and cut off.
    let window: [u8; 8] = packet.read(hidden(last - 8)).ok_or(FlowEvent::QuicShort)?;
    key.id = server_id(window, config.server_id_length);
    let wanted: &ServerKey = key;
    // SAFETY: the entry is copied at once, and is valid for every bit pattern.
    let entry = unsafe { QUIC_SERVERS.get(wanted) }.copied();
    let entry = entry.ok_or(FlowEvent::QuicUnknown)?;
    if !backend::keeps_flows(entry.backend, entry.generation) {
        return Err(FlowEvent::QuicGone);
    }
    Ok(entry.backend)
}

/// The same offset, from which the compiler cannot calculate on: the verifier wants to see a pointer to the first byte that is
/// read compared, and none behind it.
#[inline(always)]
fn hidden(offset: usize) -> usize {
    /// All that is read lies below: Ethernet, two tags, IPv6, 256 bytes of extension headers, UDP, and the start of QUIC's.
    const OFFSETS: usize = 0x1ff;
    verifier::hide(offset as u64) as usize & OFFSETS
}
