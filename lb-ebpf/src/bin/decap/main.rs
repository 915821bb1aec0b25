//! The decapsulator for a backend's interface: strips the outer header of IP in IP (all four pairs of families) and of
//! GUE, and passes everything else untouched. It stands in for the kernel's tunnel modules where those are missing.
//!
//! **Invariants.** Whether a packet is changed follows from `tunnel` (what it is) and `policy` (whether it is for us)
//! alone, which are the same for XDP and for traffic control, and whether it is delivered or handed on from `second`.
//! Only a frame whose outer header is plain (no options, no fragment, no extension header) is changed. The frame is
//! untagged: VLANs are interfaces of their own on a backend.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod policy;
mod second;
mod skb;
mod socket;
mod tunnel;
mod xdp;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::decap::Reason;
use lb_ebpf::packet::Packet;
use second::HandOn;
use skb::Skb;
use tunnel::{Inner, Tunnel};

/// Entry point at the driver.
#[xdp]
fn decap(context: XdpContext) -> u32 {
    let mut packet = Packet::new(context);
    match run(&mut packet) {
        Ok((reason, answer)) => {
            policy::count(reason);
            answer
        }
        Err(reason) => {
            policy::count(reason);
            match reason {
                Reason::Congested | Reason::Failed => xdp_action::XDP_DROP,
                _ => xdp_action::XDP_PASS,
            }
        }
    }
}

/// Entry point in traffic control, ingress: for interfaces that take no XDP program.
#[classifier]
fn decap_tc(context: TcContext) -> i32 {
    let mut skb = Skb(context);
    match run(&mut skb) {
        Ok((reason, answer)) => {
            policy::count(reason);
            answer
        }
        Err(reason) => {
            policy::count(reason);
            match reason {
                Reason::Congested | Reason::Failed => skb::DROP,
                _ => skb::PASS,
            }
        }
    }
}

/// Entry point of a program that passes every frame: a veth takes what its peer sends by XDP_TX only if it runs a native
/// program itself, and a router between the balancer and its backends must not decapsulate.
#[xdp(frags)]
fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Delivers a tunnel's packet or hands it on. Returns what is counted and the answer to the kernel, or why the frame is left
/// as it is.
#[inline(always)]
fn run<F: Delivery>(frame: &mut F) -> Result<(Reason, F::Answer), Reason> {
    let tunnel = tunnel::outer(frame)?;
    policy::check_ends(&tunnel)?;
    let inner = tunnel::inner(frame, &tunnel)?;
    let inner = inner.marked(tunnel.traffic_class)?;
    let (second, reason) = second::owner(frame, &tunnel, &inner);
    let answer = match second {
        None => frame.strip(&tunnel, inner)?,
        Some(second) => second::hand_on(frame, &tunnel, &second).ok_or(Reason::Failed)?,
    };
    Ok((reason, answer))
}

/// A frame that can be delivered, or handed on.
trait Delivery: HandOn {
    /// Cuts the outer header, so that the Ethernet header is in front of the inner packet.
    fn strip(&mut self, tunnel: &Tunnel, inner: Inner) -> Result<Self::Answer, Reason>;
}

/// See the balancer's.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The programs run in the kernel; for other targets they are only checked.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
