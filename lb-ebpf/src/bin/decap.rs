//! The decapsulator for a backend's interface: strips the outer headers of IP in IP and of GUE, passes everything else
//! untouched. It stands in for the kernel's tunnel modules where those are missing.
//!
//! **Invariant.** Only a frame whose outer header is plain (no options, no fragment, no extension header) is changed.
//! The tunnel's end is not checked: attach it only where all IP in IP comes from the balancer.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    gue::{self, GueHeader, UdpHeader},
    header::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, FRAGMENT_OFFSET, Ipv4Header, Ipv6Header,
        MORE_FRAGMENTS, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_UDP,
    },
};
use lb_ebpf::packet::{Header, Packet};

/// Entry point. A frame is passed to the stack in either case; it is dropped only if it was half changed, which the
/// bounds checks before the change rule out.
#[xdp]
fn decap(context: XdpContext) -> u32 {
    let mut packet = Packet::new(context);
    let Some((outer_length, ethertype)) = tunnelled(&packet) else {
        return xdp_action::XDP_PASS;
    };
    match strip(&mut packet, outer_length, ethertype) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_DROP,
    }
}

/// Entry point of a program that passes every frame: a veth takes what its peer sends by XDP_TX only if it runs a native
/// program itself, and a router between the balancer and its backends must not decapsulate.
#[xdp]
fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Length of the outer headers and EtherType of the inner packet, if the frame carries IP in IP or GUE.
#[inline(always)]
fn tunnelled(packet: &Packet) -> Option<(usize, u16)> {
    let ethernet: EthernetHeader = packet.read(0)?;
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => {
            let outer: Ipv4Header = packet.read(EthernetHeader::LENGTH)?;
            let fragment = u16::from_be(outer.fragment) & (MORE_FRAGMENTS | FRAGMENT_OFFSET);
            (outer.version_ihl == 0x45 && fragment == 0).then_some(())?;
            inner(packet, Ipv4Header::LENGTH, outer.protocol)
        }
        ETHERTYPE_IPV6 => {
            let outer: Ipv6Header = packet.read(EthernetHeader::LENGTH)?;
            inner(packet, Ipv6Header::LENGTH, outer.next_header)
        }
        _ => None,
    }
}

/// Length of all outer headers and EtherType of what they carry, behind an IP header of this length and protocol.
#[inline(always)]
fn inner(packet: &Packet, ip_length: usize, protocol: u8) -> Option<(usize, u16)> {
    if protocol != PROTOCOL_UDP {
        return Some((ip_length, inner_ethertype(protocol)?));
    }
    let udp: UdpHeader = packet.read(EthernetHeader::LENGTH + ip_length)?;
    (udp.destination == gue::DEFAULT_PORT.to_be()).then_some(())?;
    let before = ip_length + UdpHeader::LENGTH;
    let header: GueHeader = packet.read(EthernetHeader::LENGTH + before)?;
    (header.version_control_length == 0 && header.flags == 0).then_some(())?;
    Some((
        before + GueHeader::LENGTH,
        inner_ethertype(header.protocol)?,
    ))
}

#[inline(always)]
fn inner_ethertype(protocol: u8) -> Option<u16> {
    match protocol {
        PROTOCOL_IPV4 => Some(ETHERTYPE_IPV4),
        PROTOCOL_IPV6 => Some(ETHERTYPE_IPV6),
        _ => None,
    }
}

/// Cuts the outer header and puts the Ethernet header in front of the inner packet.
#[inline(always)]
fn strip(packet: &mut Packet, outer_length: usize, ethertype: u16) -> Option<()> {
    let ethernet: EthernetHeader = packet.read(0)?;
    packet.move_head(outer_length as i32)?;
    packet.write(
        0,
        EthernetHeader {
            ethertype,
            ..ethernet
        },
    )
}

/// See the balancer's.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The program runs in the kernel; for other targets it is only checked.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
