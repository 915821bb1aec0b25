//! The frame as XDP has it.

use crate::{
    Delivery,
    second::{HandOn, Second, Way},
    tunnel::{Inner, Tunnel},
};
use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect};
use lb_common::{
    backend::NextHop,
    decap::Reason,
    header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, LinkHeader},
};
use lb_ebpf::packet::{Header, Packet};

impl Delivery for Packet {
    #[inline(always)]
    fn strip(&mut self, tunnel: &Tunnel, inner: Inner) -> Result<u32, Reason> {
        let ethernet: EthernetHeader = self.read(0).ok_or(Reason::Failed)?;
        self.move_head(tunnel.outer_length as i32)
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
        self.write(0, link).ok_or(Reason::Failed)?;
        match inner {
            Inner::V4(header) => self.write(EthernetHeader::LENGTH, header),
            Inner::V6(header) => self.write(EthernetHeader::LENGTH, header),
        }
        .ok_or(Reason::Failed)?;
        Ok(xdp_action::XDP_PASS)
    }
}

impl HandOn for Packet {
    type Answer = u32;

    #[inline(always)]
    fn interface(&self) -> u32 {
        Packet::interface(self)
    }

    #[inline(always)]
    fn replace<T: Header>(&mut self, second: &Second, outer: T) -> Option<()> {
        let link: EthernetHeader = self.read(0)?;
        self.move_head(second.length as i32)?;
        self.write(0, link)?;
        self.write(EthernetHeader::LENGTH, outer)
    }

    /// Where the kernel knows no next hop, the frame goes back to the one that brought it: a router, or a balancer that
    /// forwards.
    #[inline(always)]
    fn send(&mut self, way: &Way) -> Option<u32> {
        let link: EthernetHeader = self.read(0)?;
        let Some((own, next_hop)) = way.macs else {
            self.write(0, link.returned())?;
            return Some(xdp_action::XDP_TX);
        };
        let link = EthernetHeader {
            source: NextHop::new(own).words(),
            destination: NextHop::new(next_hop).words(),
            ..link
        };
        self.write(0, link)?;
        if way.interface == Packet::interface(self) {
            return Some(xdp_action::XDP_TX);
        }
        // SAFETY: the helper takes numbers only.
        Some(unsafe { bpf_redirect(way.interface, 0) } as u32)
    }
}
