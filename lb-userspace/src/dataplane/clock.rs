//! The clock that the program stamps flow-table entries with, which no correction of the time of day moves.

use std::time::Duration;

/// CLOCK_MONOTONIC: the kernel's `bpf_ktime_get_coarse_ns`, up to a tick.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec. It cannot fail: the clock exists and the pointer is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// A moment as flow-table entries have it: whole seconds, cut to 32 bits (136 years of uptime).
pub const fn seconds(now: Duration) -> u32 {
    now.as_secs() as u32
}
