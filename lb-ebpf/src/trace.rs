//! What each stage found, for `lbctl trace` and `lbctl explain`.
//!
//! **Invariants.** [`TRACE`] is a constant of the loaded program: when it is [`trace::OFF`], the verifier deletes
//! everything here but the look at it. Nothing here changes what becomes of a packet.

use crate::parse::{Flow, Ip};
use aya_ebpf::{
    Global,
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_xdp_load_bytes},
    macros::btf_map,
};
use core::hint::black_box;
use lb_common::{
    flow_table::{FlowEntry, FlowEvent, PacketKind},
    slot::Slot,
    trace::{self, Event, Filter, Record, SNAP, Scratch},
    verdict::{Action, Verdict},
};
use lb_ebpf::packet::Packet;

#[unsafe(no_mangle)]
static TRACE: Global<u32> = Global::new(trace::OFF);

// As small as it can be; who wants events gives it another size.
#[btf_map]
static EVENTS: RingBuf<Event, 4096> = RingBuf::new();

#[btf_map]
static TRACE_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[btf_map]
static TRACE_FILTER: Array<Filter, 1> = Array::new();

const NANOSECONDS: u64 = 1_000_000_000;

/// Whether this program explains: what it does to a packet is looked at, and must leave no other mark.
#[inline(always)]
pub fn is_explaining() -> bool {
    TRACE.load() == trace::EXPLAIN
}

/// Whether this program neither explains nor traces.
#[inline(always)]
pub fn is_off() -> bool {
    TRACE.load() == trace::OFF
}

/// A packet has come in.
#[inline(always)]
pub fn begin(packet: &Packet) {
    let Some(scratch) = scratch() else {
        return;
    };
    scratch.active = u32::from(is_sampled());
    if scratch.active == 0 {
        return;
    }
    scratch.event.record = Record {
        // SAFETY: the helper reads a clock and takes nothing.
        time: unsafe { bpf_ktime_get_ns() },
        interface: packet.interface(),
        length_in: packet.length() as u32,
        ..Record::default()
    };
    copy(packet, &mut scratch.event.before);
}

/// Its IP header is understood.
#[inline(always)]
pub fn ip(ip: &Ip) {
    if let Some(record) = record(Record::IP) {
        record.source = ip.source;
        record.destination = ip.destination;
        record.protocol = ip.protocol;
        record.ip_length = ip.length();
    }
}

/// Its flow is known.
#[inline(always)]
pub fn flow(flow: &Flow) {
    if let Some(record) = record(Record::FLOW) {
        record.source = flow.source;
        record.destination = flow.destination;
        record.source_port = flow.ports.source;
        record.destination_port = flow.ports.destination;
        record.protocol = flow.protocol;
        record.is_error = u8::from(flow.is_error);
    }
}

/// Its service is found.
#[inline(always)]
pub fn service(index: u32, hash: u64) {
    if let Some(record) = record(Record::SERVICE) {
        record.service = index;
        record.hash = hash;
    }
}

/// Its slot is read.
#[inline(always)]
pub fn slot(slot: Slot) {
    if let Some(record) = record(Record::SLOT) {
        record.slot = slot.0;
    }
}

/// Its flow was looked up in the flow table; `kind` is none for an ICMP error.
#[inline(always)]
pub fn entry(entry: Option<FlowEntry>, kind: Option<PacketKind>) {
    let Some(record) = record(Record::LOOKED_UP) else {
        return;
    };
    record.kind = kind.map_or(0, |kind| kind as u8 + 1);
    if let Some(entry) = entry {
        record.stages |= Record::ENTRY;
        record.entry = entry;
    }
}

/// Something was done with the flow table.
#[inline(always)]
pub fn flow_event(event: FlowEvent) {
    if let Some(record) = record(Record::LOOKED_UP) {
        record.flow_event = event as u8 + 1;
    }
}

/// It is known whether its connection ID names a backend. Said by who explains alone: a trace does not show it.
#[inline(always)]
pub fn quic(event: u32, server_id: u64) {
    if !is_explaining() {
        return;
    }
    if let Some(record) = record(Record::QUIC) {
        record.quic_event = event as u8 + 1;
        record.server_id = server_id;
    }
}

/// Its backend is chosen.
#[inline(always)]
pub fn backend(index: u32) {
    if let Some(record) = record(Record::BACKEND) {
        record.backend = index;
    }
}

/// It names a second owner.
#[inline(always)]
pub fn second(index: u32) {
    if let Some(record) = record(Record::BACKEND) {
        record.second = index;
    }
}

/// It has its verdict: the record is sent, if it is wanted.
#[inline(always)]
pub fn end(packet: &Packet, verdict: Verdict) {
    let Some(scratch) = scratch() else {
        return;
    };
    if scratch.active == 0 {
        return;
    }
    scratch.event.record.verdict = verdict as u32;
    if !is_explaining() && !is_wanted(scratch) {
        return;
    }
    if matches!(verdict.action(), Action::Forward | Action::Answer) {
        scratch.event.record.length_out = packet.length() as u32;
        copy(packet, &mut scratch.event.after);
    }
    // By reference: an event is larger than the stack.
    let event: &Event = &scratch.event;
    if EVENTS.output(event, 0).is_err() {
        scratch.lost += 1;
    }
}

/// Whether the filter wants the packet, and the limit has room for it.
#[inline(always)]
fn is_wanted(scratch: &mut Scratch) -> bool {
    let Some(filter) = filter() else {
        return false;
    };
    if !filter.wants(&scratch.event.record) {
        return false;
    }
    let second = scratch.event.record.time / NANOSECONDS;
    if scratch.second != second {
        scratch.second = second;
        scratch.sent = 0;
    }
    if scratch.sent >= filter.limit {
        scratch.lost += 1;
        return false;
    }
    scratch.sent += 1;
    true
}

/// Whether the packet at hand is one of those that are looked at.
#[inline(always)]
fn is_sampled() -> bool {
    match filter() {
        Some(filter) if !is_explaining() && filter.sample > 1 => {
            // SAFETY: the helper takes nothing.
            unsafe { bpf_get_prandom_u32() }.is_multiple_of(filter.sample)
        }
        _ => true,
    }
}

#[inline(always)]
fn filter() -> Option<&'static Filter> {
    // SAFETY: an element of an array map stays where it is; it is written before the program is attached.
    TRACE_FILTER.get_ptr(0).map(|filter| unsafe { &*filter })
}

/// The record of the packet at hand, which has come to this stage.
#[inline(always)]
fn record(stage: u32) -> Option<&'static mut Record> {
    let record = &mut scratch()?.event.record;
    record.stages |= stage;
    Some(record)
}

/// This CPU's scratch; none when nothing is to be recorded.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    if is_off() {
        return None;
    }
    // SAFETY: the element is this CPU's and XDP programs are not preempted by one another on a CPU; no caller keeps
    // the reference while another hook runs.
    TRACE_SCRATCH
        .get_ptr_mut(0)
        .map(|scratch| unsafe { &mut *scratch })
}

/// Copies the start of the frame.
#[inline(always)]
fn copy(packet: &Packet, to: &mut [u8; SNAP]) {
    // Opaque, so that the bounds are compared where the verifier sees them. Counted from 0, as kernels such as 6.1 do not
    // learn from a comparison with 0 that there is a byte to copy; and opaque before that, for a pointer takes no part in it.
    let last = black_box(black_box(packet.length() as u64).wrapping_sub(1));
    let length = if last >= SNAP as u64 {
        SNAP as u64
    } else {
        last + 1
    };
    // SAFETY: the buffer is as long as `length` at most; the context is the program's own.
    let _ = unsafe {
        bpf_xdp_load_bytes(
            packet.context().ctx,
            0,
            to.as_mut_ptr().cast(),
            length as u32,
        )
    };
}
