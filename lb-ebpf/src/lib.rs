//! What the XDP programs share: access to the frame, the clock, and what is hidden from verifier and compiler.
//!
//! The programs themselves are `main.rs` (the balancer) `bin/decap` (a backend's decapsulator) and `bin/bench`
//! (what measures the others).

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod clock;
pub mod packet;
pub mod verifier;
mod words;

/// Never called: the verifier refuses a program in which a panic is reachable.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
