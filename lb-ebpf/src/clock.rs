//! The clock of the rare paths: CLOCK_MONOTONIC, a few milliseconds behind at the most, in exchange for being cheap.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

const NANOSECONDS: u64 = 1_000_000_000;

/// Nanoseconds.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: the helper reads a clock and takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Seconds, cut to 32 bits.
#[inline(always)]
pub fn seconds() -> u32 {
    (nanoseconds() / NANOSECONDS) as u32
}
