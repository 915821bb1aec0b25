//! The balancer: forwards packets for services to their backends, passes everything else untouched.
//!
//! This file only turns a verdict into a count and an XDP action, but for packets that have gone the straight way: they are counted
//! there. Modules in the order of the packet's path.
//!
//! **Invariants.** Every packet gets exactly one verdict and is counted once: under it, or for the service and the backend that it is forwarded to.
//! A packet that is passed or dropped has not been altered. No routing look-up on the path; a clock and a flow table for tracked slots alone.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod answer;
mod backend;
mod exit;
mod flow_set;
mod flow_table;
mod forward;
mod fragment;
mod outcome;
mod parse;
mod pipeline;
mod quic;
mod service;
mod slot;
mod stats;
mod straight;
mod trace;

use aya_ebpf::{
    Global,
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::debug;
use lb_common::{
    maps,
    verdict::{Action, Verdict},
};
use lb_ebpf::packet::Packet;
use outcome::Outcome;
use straight::Fate;

/// Tells which version of the maps' meaning this object was built for.
#[unsafe(no_mangle)]
#[used]
static LAYOUT_VERSION: Global<u32> = Global::new(maps::LAYOUT_VERSION);

/// Entry point: see [`maps::PROGRAM`].
#[xdp]
fn guideway(context: XdpContext) -> u32 {
    match straight::balance(context.ctx) {
        Fate::Done(action) => action,
        Fate::Refused => end(&Packet::new(context), Verdict::DropNoBackend.into()),
        Fate::Open => run(&Packet::new(context)),
    }
}

/// Entry point: see [`maps::FRAGS_PROGRAM`].
#[xdp(frags)]
fn guideway_frags(context: XdpContext) -> u32 {
    match straight::balance(context.ctx) {
        Fate::Done(action) => action,
        Fate::Refused => end(&Packet::in_frags(context), Verdict::DropNoBackend.into()),
        Fate::Open => run(&Packet::in_frags(context)),
    }
}

#[inline(always)]
fn run(packet: &Packet) -> u32 {
    trace::begin(packet);
    end(packet, answer::answer(packet, pipeline::balance(packet)))
}

#[inline(always)]
fn end(packet: &Packet, outcome: Outcome) -> u32 {
    let verdict = outcome.verdict();
    trace::end(packet, verdict);
    let action = match verdict.action() {
        Action::Forward => return outcome.exit(),
        Action::Answer => xdp_action::XDP_TX,
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => {
            let context = packet.context().ctx;
            if packet.is_in_frags() {
                log_drop::<true>(context, verdict as u32);
            } else {
                log_drop::<false>(context, verdict as u32);
            }
            xdp_action::XDP_DROP
        }
    };
    stats::count_verdict(verdict);
    action
}

/// A function of its own: what it says is put together on the stack, which is short.
#[inline(never)]
fn log_drop<const FRAGS: bool>(context: *mut xdp_md, verdict: u32) {
    let packet = Packet::of::<FRAGS>(context);
    debug!(
        packet.context(),
        "dropped {} bytes: verdict {}",
        packet.length(),
        verdict
    );
}

/// The helpers that we call are open to any licence; the dual one keeps GPL-only helpers within reach.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The program runs in the kernel; for other targets it is only checked.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
