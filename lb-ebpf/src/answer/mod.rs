//! What the balancer answers by itself, in the place of the address that a packet was sent to. The answer leaves by the
//! interface the packet came in on, back to the MAC address that it came from, in the same VLANs.
//!
//! **Invariants.** Only what one host has sent to us is answered, never an ICMP error (RFC 1122, section 3.2.2; RFC 4443, section
//! 2.4), so that no answer leads to another. Each CPU answers at a bounded rate. A packet that is not answered is as it came.

mod echo;
mod too_big;

pub use self::{echo::echo, too_big::too_big};

use crate::parse::Ip;
use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use lb_common::{
    header::EthernetHeader,
    rate::{self, Answer},
};
use lb_ebpf::{clock, packet::Packet};

#[btf_map]
static ANSWERS: PerCpuArray<u64, { Answer::COUNT as usize }> = PerCpuArray::new();

/// Whether the packet is from one host and to us alone.
#[inline(always)]
fn is_answerable(packet: &Packet, ip: &Ip) -> bool {
    let to_us = packet
        .read::<EthernetHeader>(0)
        .is_some_and(|header| !header.is_to_group());
    to_us && ip.is_v4 == ip.source.is_v4() && ip.source.is_of_one_host()
}

/// Takes an answer from this CPU's bucket; none is left if not.
#[inline(always)]
fn is_within_rate(answer: Answer) -> bool {
    let Some(bucket) = ANSWERS.get_ptr_mut(answer as u32) else {
        return false;
    };
    // SAFETY: the element is this CPU's and XDP programs are not preempted by one another on a CPU.
    unsafe {
        let Some(spent) = rate::take(*bucket, clock::nanoseconds()) else {
            return false;
        };
        *bucket = spent;
    }
    true
}
