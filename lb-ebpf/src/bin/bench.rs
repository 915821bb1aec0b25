//! Measures XDP programs by BPF_PROG_TEST_RUN with many repeats, between which the kernel does not reset the frame: `wrap` calls
//! the program that is measured, undoes what it did and varies the flow; `wrap_and_look_up` also looks something up that nobody
//! needs, so that a slow-down can be seen to be found. Beside it, what a program costs at the least: `trivial` only answers,
//! `encapsulate` puts a constant header before the packet.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    bindings::{xdp_action, xdp_md},
    btf_maps::{Array, LruHashMap, ProgramArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use core::hint::black_box;
use lb_common::header::{
    ETHERTYPE_IPV4, EndsV4, EthernetHeader, FragmentId, Inner, Ipv4Header, LinkHeader,
    PROTOCOL_IPV4, Ports, Words,
};
use lb_ebpf::packet::{Header, Packet};

/// The program that is measured.
#[btf_map]
static PROGRAM: ProgramArray<1> = ProgramArray::new();

/// Flows to go through, one a frame; 1: the frame's own.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);

/// Whether the frame is one of IPv6, else of IPv4; neither has options, extension headers or VLAN tags.
#[unsafe(no_mangle)]
static IS_V6: Global<u32> = Global::new(0);

/// The first sixteen bytes of the frame.
#[unsafe(no_mangle)]
static START: Global<[u16; 8]> = Global::new([0; 8]);

/// The flow before, scrambled.
#[btf_map]
static FLOW: Array<u64, 1> = Array::new();

/// Services with ports in a row from [`FIRST_SERVICE`] on that flows are spread over; 1: the frame's own.
#[unsafe(no_mangle)]
static SERVICES: Global<u32> = Global::new(1);

/// What a slowed-down wrapper looks up: as large a key as that of the flow table.
#[btf_map]
static NOT_NEEDED: LruHashMap<[u64; 5], u64, 1024> = LruHashMap::new();

/// Port of the first of several services.
const FIRST_SERVICE: u32 = 1_000;
/// Flows that differ by port alone.
const PORTS: u32 = 1 << 14;

/// Measures the program in `PROGRAM`.
#[xdp]
fn wrap(context: XdpContext) -> u32 {
    measured(context)
}

/// The same, with one look-up in an LRU map more.
#[xdp]
fn wrap_and_look_up(context: XdpContext) -> u32 {
    let key = black_box([0_u64; 5]);
    if NOT_NEEDED.get_ptr(key).is_none() && NOT_NEEDED.insert(key, 0_u64, 0).is_err() {
        return xdp_action::XDP_ABORTED;
    }
    measured(context)
}

#[inline(always)]
fn measured(context: XdpContext) -> u32 {
    let mut packet = Packet::new(context);
    let length = packet.length();
    if FLOWS.load() > 1 && next_flow(&mut packet).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    let action = call(packet.context().ctx);
    // Hidden, so that the compiler does not calculate with the end of the frame, which the verifier forbids.
    let grown = black_box(packet.length()) as i32 - black_box(length) as i32;
    if grown != 0 && packet.move_head(grown).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    match packet.write(0, Words(START.load())) {
        Some(()) => action,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Gives the frame the source of another flow. They come in an order in which neighbours have little in common.
#[inline(always)]
fn next_flow(packet: &mut Packet) -> Option<()> {
    let place = FLOW.get_ptr_mut(0)?;
    // SAFETY: the one element of an array map, which one run at a time uses.
    let next = unsafe {
        *place = (*place + 0x9e37_79b9) & 0xffff_ffff;
        *place
    };
    let flow = ((next * u64::from(FLOWS.load())) >> 32) as u32;
    let (address, ports) = if IS_V6.load() != 0 {
        (34, 54)
    } else {
        (26, 34)
    };
    packet.write(address, FragmentId((0x0b00_0001 + flow / PORTS).to_be()))?;
    let old: Ports = packet.read(ports)?;
    let source = (1_024 + flow % PORTS) as u16;
    let destination = match SERVICES.load() {
        0 | 1 => old.destination,
        services => ((FIRST_SERVICE + flow % services) as u16).to_be(),
    };
    packet.write(
        ports,
        Ports {
            source: source.to_be(),
            destination,
        },
    )
}

/// The answer of the program that is measured: a tail call ends the function that makes it.
#[inline(never)]
fn call(context: *mut xdp_md) -> u32 {
    // SAFETY: the context is the kernel's, and the map holds XDP programs.
    unsafe { PROGRAM.tail_call(&XdpContext::new(context), 0) };
    black_box(xdp_action::XDP_ABORTED)
}

/// Sends the frame back as it is.
#[xdp]
fn trivial(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Puts a constant IPv4 header before the packet.
#[xdp]
fn encapsulate(context: XdpContext) -> u32 {
    match encapsulated(&mut Packet::new(context)) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn encapsulated(packet: &mut Packet) -> Option<()> {
    let inner = Inner {
        protocol: PROTOCOL_IPV4,
        start: Inner::start(0, (packet.length() - EthernetHeader::LENGTH) as u16),
        id_and_flags: Inner::id_and_flags(0, true),
    };
    let outer = Ipv4Header::encapsulating(&inner, EndsV4::new(0x0200_000a, 0x0300_000a));
    let old: EthernetHeader = packet.read(0)?;
    let new = old.readdressed(old.source, old.destination, ETHERTYPE_IPV4);
    packet.move_head(-(Ipv4Header::LENGTH as i32))?;
    packet.write(0, new)?;
    packet.write(EthernetHeader::LENGTH, outer)
}

/// See the balancer's.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The programs run in the kernel; for other targets they are only checked.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
