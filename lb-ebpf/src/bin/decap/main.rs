//! The decapsulator for a backend's interface: strips the outer header of IP in IP (all four pairs of families) and of
//! GUE, and passes everything else untouched. It stands in for the kernel's tunnel modules where those are missing.
//!
//! **Invariants.** Whether a packet is changed follows from `tunnel` (what it is) and `policy` (whether it is for us) alone,
//! which are the same for XDP and for traffic control. Only a frame whose outer header is plain (no options, no fragment,
//! no extension header) is changed. The frame is untagged: VLANs are interfaces of their own on a backend.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

mod policy;
mod skb;
mod tunnel;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    decap::Reason,
    header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader},
};
use lb_ebpf::packet::{Header, Packet};
use skb::Skb;
use tunnel::{Frame, Inner, Tunnel};

/// Entry point at the driver.
#[xdp]
fn decap(context: XdpContext) -> u32 {
    let mut packet = Packet::new(context);
    match settle(&packet).and_then(|(tunnel, inner)| strip(&mut packet, &tunnel, inner)) {
        Ok(reason) | Err(reason) => {
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
    match settle(&skb).and_then(|(tunnel, inner)| skb.strip(&tunnel, inner)) {
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

/// The tunnel that a frame came through and its inner header as it will be delivered, or why it is left as it is.
#[inline(always)]
fn settle<F: Frame>(frame: &F) -> Result<(Tunnel, Inner), Reason> {
    let tunnel = tunnel::outer(frame)?;
    policy::check_ends(&tunnel)?;
    let inner = tunnel::inner(frame, &tunnel)?;
    let inner = inner.marked(tunnel.traffic_class)?;
    Ok((tunnel, inner))
}

/// Cuts the outer header and puts the Ethernet header in front of the inner packet.
#[inline(always)]
fn strip(packet: &mut Packet, tunnel: &Tunnel, inner: Inner) -> Result<Reason, Reason> {
    let ethernet: EthernetHeader = packet.read(0).ok_or(Reason::Failed)?;
    packet
        .move_head(tunnel.outer_length as i32)
        .ok_or(Reason::Failed)?;
    let ethertype = if tunnel.inner_is_v4 {
        ETHERTYPE_IPV4
    } else {
        ETHERTYPE_IPV6
    };
    let link = EthernetHeader {
        ethertype,
        ..ethernet
    };
    packet.write(0, link).ok_or(Reason::Failed)?;
    match inner {
        Inner::V4(header) => packet.write(EthernetHeader::LENGTH, header),
        Inner::V6(header) => packet.write(EthernetHeader::LENGTH, header),
    }
    .ok_or(Reason::Failed)?;
    Ok(tunnel.reason)
}

/// See the balancer's.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The programs run in the kernel; for other targets they are only checked.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
