//! The counters, one set a CPU, so that counting is an addition without a lock.

use crate::trace;
use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use lb_common::{
    flow_table::FlowEvent,
    limits::{DEFAULT_BACKENDS, DEFAULT_SERVICES},
    stats::Counter,
    verdict::Verdict,
};

#[btf_map]
static VERDICTS: PerCpuArray<u64, { Verdict::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static SERVICE_STATS: PerCpuArray<Counter, { DEFAULT_SERVICES as usize }> = PerCpuArray::new();

#[btf_map]
static BACKEND_STATS: PerCpuArray<Counter, { DEFAULT_BACKENDS as usize }> = PerCpuArray::new();

#[btf_map]
static FLOW_EVENTS: PerCpuArray<u64, { FlowEvent::COUNT as usize }> = PerCpuArray::new();

/// Counts a packet that is not forwarded under its verdict.
#[inline(always)]
pub fn count_verdict(verdict: Verdict) {
    increment(VERDICTS.get_ptr_mut(verdict as u32));
}

/// Counts what became of a packet in the flow table.
#[inline(always)]
pub fn count_flow(event: FlowEvent) {
    increment(FLOW_EVENTS.get_ptr_mut(event as u32));
    trace::flow_event(event);
}

/// Counts what became of a packet whose connection ID was read: the number of a [`FlowEvent`], with this server ID if it has one.
#[inline(always)]
pub fn count_quic(event: u32, server_id: u64) {
    increment(FLOW_EVENTS.get_ptr_mut(event));
    trace::quic(event, server_id);
}

/// Counts a forwarded packet, of `bytes` as received, for its service and its backend.
#[inline(always)]
pub fn count_forwarded(service: u32, backend: u32, bytes: u64) {
    add(SERVICE_STATS.get_ptr_mut(service), bytes);
    add(BACKEND_STATS.get_ptr_mut(backend), bytes);
}

#[inline(always)]
fn increment(count: Option<*mut u64>) {
    if let Some(count) = count {
        // SAFETY: the element is this CPU's and XDP programs are not preempted by one another on a CPU.
        unsafe { *count += 1 }
    }
}

#[inline(always)]
fn add(counter: Option<*mut Counter>, bytes: u64) {
    if let Some(counter) = counter {
        // SAFETY: as in `increment`.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}
