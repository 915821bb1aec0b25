//! Both ends of a wire on which a balancer, or something else, is measured: `generate` makes frames out of those that
//! BPF_PROG_TEST_RUN sends for real (BPF_F_TEST_XDP_LIVE_FRAMES), `count` and `count_tc` take what comes back.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{
    Global,
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::header::{ETHERTYPE_IPV4, EthernetHeader, Ipv4Header, PROTOCOL_IPV4, PROTOCOL_UDP};
use lb_ebpf::packet::{Header as _, Packet};

/// The first 48 bytes of every frame: Ethernet, IPv4 without options, UDP, the first of the payload.
#[unsafe(no_mangle)]
static FRAME: Global<[u64; 6]> = Global::new([0; 6]);

/// Flows to go through, which differ by source port alone; at most 64,512.
#[unsafe(no_mangle)]
static FLOWS: Global<u32> = Global::new(1);

/// Index of the interface that frames are sent out of.
#[unsafe(no_mangle)]
static EXIT: Global<u32> = Global::new(0);

/// Nanoseconds from a frame to the next, and whether frames carry when they were due; 0: as fast as can be.
#[unsafe(no_mangle)]
static INTERVAL: Global<u64> = Global::new(0);

/// The flow before, scrambled, and when its frame was due.
#[btf_map]
static GENERATOR: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Frames that came back.
#[btf_map]
static RECEIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Frames by how late they came back, in steps of [`STEP`]; the last is of all that were later still.
#[btf_map]
static LATE: Array<u64, BUCKETS> = Array::new();

const BUCKETS: usize = 1 << 16;
/// Nanoseconds; `tests/src/bench/live.rs` knows it as well.
const STEP: u64 = 20;
/// Where a frame carries when it was due, in bytes from its start.
const DUE: usize = 48;
/// How often the clock is looked at for a frame that is not due: some ten microseconds.
const LOOKS: u32 = 256;
/// A generator that is more nanoseconds behind than this starts anew: it was not running.
const STALLED: u64 = 10_000_000;

/// Makes the next frame and sends it.
#[xdp]
fn generate(context: XdpContext) -> u32 {
    match make(&mut Packet::new(context)) {
        // SAFETY: the helper only notes where the frame is to go.
        Some(()) => unsafe { bpf_redirect(EXIT.load(), 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

/// Writes all of a frame's headers, as pages come back with what others have written into them.
#[inline(always)]
fn make(packet: &mut Packet) -> Option<()> {
    let state = GENERATOR.get_ptr_mut(0)?;
    // SAFETY: the one element of this CPU, on which one run at a time uses it.
    let state = unsafe { &mut *state };
    state[0] = (state[0] + 0x9e37_79b9) & 0xffff_ffff;
    let source = 1_024 + ((state[0] * u64::from(FLOWS.load())) >> 32) as u16;
    packet.front_mut(48)?.write_doubles(FRAME.load())?;
    packet.write(EthernetHeader::LENGTH + Ipv4Header::LENGTH, source.to_be())?;
    if INTERVAL.load() > 0 {
        packet.write(DUE, pace(&mut state[1]).to_ne_bytes())?;
    }
    Some(())
}

/// Waits until the next frame is due. Returns when that was, even if it is long ago: who waits for the generator waits.
#[inline(always)]
fn pace(last: &mut u64) -> u64 {
    let mut now = clock();
    *last += INTERVAL.load();
    if now > *last + STALLED {
        *last = now;
    }
    for _ in 0..LOOKS {
        if now >= *last {
            return *last;
        }
        now = clock();
    }
    *last = now;
    now
}

fn clock() -> u64 {
    // SAFETY: the helper reads a clock and takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts and drops frames of the wire, and passes all others, such as those that find a next hop.
#[xdp]
fn count(context: XdpContext) -> u32 {
    match receive(&Packet::new(context)) {
        Some(()) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn receive(packet: &Packet) -> Option<()> {
    let ethernet: EthernetHeader = packet.read(0)?;
    let outer: Ipv4Header = packet.read(EthernetHeader::LENGTH)?;
    let added = added(ethernet, outer)?;
    note();
    if INTERVAL.load() > 0 {
        let due: [u8; 8] = packet.read(DUE + added)?;
        let late = clock().saturating_sub(u64::from_ne_bytes(due));
        let bucket = (late / STEP).min(BUCKETS as u64 - 1) as u32;
        let place = LATE.get_ptr_mut(bucket)?;
        // SAFETY: an element of an array map; latency is measured on one CPU.
        unsafe { *place += 1 };
    }
    Some(())
}

/// As `count`, of frames that come from a network stack: a veth would copy them for an XDP program.
#[classifier]
fn count_tc(context: TcContext) -> i32 {
    const PASS: i32 = 0;
    const DROP: i32 = 2;
    let ethernet = context.load(0);
    let outer = context.load(EthernetHeader::LENGTH);
    match (ethernet, outer) {
        (Ok(ethernet), Ok(outer)) if added(ethernet, outer).is_some() => {
            note();
            DROP
        }
        _ => PASS,
    }
}

/// How many bytes of outer header precede what was sent; `None`: it was not sent here.
#[inline(always)]
fn added(ethernet: EthernetHeader, outer: Ipv4Header) -> Option<usize> {
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return None;
    }
    match outer.protocol {
        PROTOCOL_IPV4 => Some(Ipv4Header::LENGTH),
        PROTOCOL_UDP => Some(0),
        _ => None,
    }
}

#[inline(always)]
fn note() {
    if let Some(count) = RECEIVED.get_ptr_mut(0) {
        // SAFETY: the one element of this CPU, which nothing interrupts in between that would change it.
        unsafe { *count += 1 };
    }
}

/// See the balancer's.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The programs run in the kernel; for other targets they are only checked.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
