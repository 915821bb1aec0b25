//! What the XDP programs share: access to the frame.
//!
//! The programs themselves are `main.rs` (the balancer) `bin/decap` (a backend's decapsulator) and `bin/bench`
//! (what measures the others).

#![cfg_attr(target_arch = "bpf", no_std)]

pub mod clock;
pub mod packet;

/// Never called: the verifier refuses a program in which a panic is reachable.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
