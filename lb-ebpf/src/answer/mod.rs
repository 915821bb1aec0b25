//! What the balancer answers by itself, in the place of the address that a packet was sent to. The answer leaves by the
//! interface the packet came in on, back to the MAC address that it came from, in the same VLANs.
//!
//! **Invariants.** Only what one host has sent to us is answered, never an ICMP error (RFC 1122, section 3.2.2; RFC 4443, section
//! 2.4), so that no answer leads to another. Each CPU answers at a bounded rate. A packet that is not answered is as it came.

mod echo;
mod too_big;

use crate::{
    outcome::Outcome,
    parse::{self, Ip},
};
use aya_ebpf::{bindings::xdp_md, btf_maps::PerCpuArray, macros::btf_map};
use lb_common::{
    header::EthernetHeader,
    rate::{self, Answer},
    verdict::Verdict,
};
use lb_ebpf::{clock, packet::Packet};

#[btf_map]
static ANSWERS: PerCpuArray<u64, { Answer::COUNT as usize }> = PerCpuArray::new();

/// Answers a packet if its outcome asks for that.
#[inline(always)]
pub fn answer(packet: &Packet, outcome: Outcome) -> Outcome {
    if !outcome.is_answerable() {
        return outcome;
    }
    let context = packet.context().ctx;
    Outcome::of(if packet.is_in_frags() {
        anew::<true>(context, outcome.word())
    } else {
        anew::<false>(context, outcome.word())
    })
}

/// Parses the packet once more: this is rare, and a function of its own leaves the stack and the code of the others alone.
#[inline(never)]
fn anew<const FRAGS: bool>(context: *mut xdp_md, word: u32) -> u32 {
    let outcome = Outcome::of(word);
    let mut packet = Packet::of::<FRAGS>(context);
    let ip = parse::link(&packet).and_then(|(family, tags)| parse::ip(&packet, family, tags));
    let Ok(ip) = ip else {
        return outcome.verdict() as u32;
    };
    let verdict = match outcome.verdict() {
        Verdict::DropTooBig => too_big::too_big(&mut packet, &ip, outcome.mtu()),
        other => echo::echo(&mut packet, &ip).unwrap_or(other),
    };
    verdict as u32
}

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
