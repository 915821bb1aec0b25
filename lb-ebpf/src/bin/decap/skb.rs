//! The frame as traffic control has it: a socket buffer, which may be large (GRO) and not in one piece.

use crate::{
    Delivery,
    second::{HandOn, Second, Way},
    tunnel::{Frame, Inner, Tunnel},
};
use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail},
    programs::TcContext,
};
use core::{ffi::c_void, mem::offset_of, ptr};
use lb_common::{
    decap::Reason,
    header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, Ipv4Header, Ipv6Header},
};
use lb_ebpf::packet::Header;

/// Answers to traffic control: TC_ACT_OK and TC_ACT_SHOT of the kernel's pkt_cls.h, whose type differs between the
/// bindings of architectures.
pub const PASS: i32 = 0;
/// See [`PASS`].
pub const DROP: i32 = 2;

/// The buffer.
pub struct Skb(pub TcContext);

impl Frame for Skb {
    #[inline(always)]
    fn load<T: Header>(&self, offset: usize) -> Option<T> {
        self.0.load(offset).ok()
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.skb.skb.cast()
    }
}

impl Delivery for Skb {
    /// What changes its family has to be received once more, as the kernel notes a buffer's family when it is received.
    ///
    /// The helper makes the kernel verify the inner checksum where the card has verified only the outer one.
    #[inline(always)]
    fn strip(&mut self, tunnel: &Tunnel, inner: Inner) -> Result<i32, Reason> {
        self.lengthen(tunnel)?;
        let cut = -(tunnel.outer_length as i32);
        // The segments of a large buffer are those of the inner packet, before and after.
        self.0
            .adjust_room(cut, BPF_ADJ_ROOM_MAC, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))
            .map_err(|_| Reason::Failed)?;
        match inner {
            Inner::V4(header) => self.store(EthernetHeader::LENGTH, &header)?,
            Inner::V6(header) => self.store(EthernetHeader::LENGTH, &header)?,
        }
        if tunnel.outer_is_v4 == tunnel.inner_is_v4 {
            return Ok(PASS);
        }
        let ethertype = if tunnel.inner_is_v4 {
            ETHERTYPE_IPV4
        } else {
            ETHERTYPE_IPV6
        };
        self.store(offset_of!(EthernetHeader, ethertype), &ethertype)?;
        // SAFETY: the kernel gave us this context.
        let interface = unsafe { (*self.0.skb.skb).ifindex };
        // SAFETY: the helper takes numbers only.
        let answer = unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) };
        Ok(answer as i32)
    }
}

impl Skb {
    /// Appends bytes where the kernel would refuse to cut: it leaves no less than a header of the outer family, and an
    /// inner IPv4 packet can be shorter than an IPv6 header. The stack trims what is behind the end of a packet. The kernel
    /// does not append to what it has itself encapsulated on the same machine (between namespaces): such a packet is dropped.
    #[inline(always)]
    fn lengthen(&mut self, tunnel: &Tunnel) -> Result<(), Reason> {
        let least = EthernetHeader::LENGTH + tunnel.outer_length + Ipv6Header::LENGTH;
        if tunnel.outer_is_v4 || self.0.len() as usize >= least {
            return Ok(());
        }
        // SAFETY: the kernel gave us this context; no pointer into the frame is kept anywhere.
        let status = unsafe { bpf_skb_change_tail(self.0.skb.skb, least as u32, 0) };
        if status == 0 {
            Ok(())
        } else {
            Err(Reason::Failed)
        }
    }

    #[inline(always)]
    fn store<T>(&mut self, offset: usize, value: &T) -> Result<(), Reason> {
        let stored = self.0.store(offset, value, u64::from(BPF_F_RECOMPUTE_CSUM));
        stored.map_err(|_| Reason::Failed)
    }
}

impl HandOn for Skb {
    type Answer = i32;

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the kernel gave us this context.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// The kernel cuts between the link header and the IP header; the headers that are written there are those that were
    /// cut off.
    #[inline(always)]
    fn replace<T: Header>(&mut self, second: &Second, outer: T) -> Option<()> {
        let cut = -(second.length as i32);
        self.0
            .adjust_room(cut, BPF_ADJ_ROOM_MAC, u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))
            .ok()?;
        self.store(EthernetHeader::LENGTH, &outer).ok()
    }

    /// The kernel finds the neighbour, and asks for it if need be.
    #[inline(always)]
    fn send(&mut self, way: &Way) -> Option<i32> {
        // SAFETY: the helper takes numbers, and no parameters by that null.
        Some(unsafe { bpf_redirect_neigh(way.interface, ptr::null_mut(), 0, 0) } as i32)
    }
}

const _: () = assert!(Ipv4Header::LENGTH < Ipv6Header::LENGTH);
