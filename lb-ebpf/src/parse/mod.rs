//! From bytes to the fields that the later stages need.
//!
//! **Invariant.** Lengths are checked against the frame here and trusted afterwards. Every error is a `Pass*`
//! verdict: what cannot be understood cannot be ours.

mod eth;
mod extension;
mod icmp;
mod ipv4;
mod ipv6;
pub mod l4;
pub mod plain;

pub use eth::{Family, Tags, parse as link};

use crate::forward::Described;
use lb_common::{
    address::Address,
    header::{Inner, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_TCP, PROTOCOL_UDP, Ports},
    verdict::Verdict,
};
use lb_ebpf::{packet::Packet, verifier};

/// Which part of an IP packet this is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// The whole packet.
    Whole,
    /// The first fragment: it has the ports, but not everything.
    First,
    /// A later fragment: no ports.
    Later,
}

/// A packet of TCP, UDP or ICMP, as its IP header describes it.
pub struct Ip {
    /// VLAN tags of the frame.
    pub tags: Tags,
    /// IPv4 or IPv6; the addresses say the same, at the price of three comparisons.
    pub is_v4: bool,
    /// Source address.
    pub source: Address,
    /// Destination address: perhaps a VIP.
    pub destination: Address,
    /// TCP or UDP, or ICMP of the packet's family, which is never a fragment. Of a later IPv6 fragment perhaps an extension
    /// header's.
    pub protocol: u8,
    /// DSCP and ECN, and bytes of the IP packet, header included, Ethernet padding not ([`Inner::start`]).
    pub start: u32,
    /// Offset of the L4 header from the start of the frame.
    pub l4_offset: usize,
    /// Identification for an outer IPv4 header and whether routers must not fragment it ([`Inner::id_and_flags`]): the packet's own, different for
    /// each fragment. 0 for IPv6.
    pub id_and_flags: u32,
    /// Identification that the fragments of a datagram share, as it lies in the packet; meaningless in a whole IPv6 packet.
    pub fragment_id: u32,
    /// Whole or fragment.
    pub fragment: Fragment,
}

impl Ip {
    /// What an outer header has to know of it.
    #[inline(always)]
    pub fn described(&self) -> Described {
        let inner = Inner {
            protocol: if self.is_v4 {
                PROTOCOL_IPV4
            } else {
                PROTOCOL_IPV6
            },
            start: self.start,
            id_and_flags: self.id_and_flags,
        };
        Described::new(self.tags, inner)
    }

    /// The same, of whose addresses the compiler keeps two words each, and not the four that they were read in, nor what it knows of
    /// those of IPv4.
    #[inline(always)]
    pub fn in_halves(self) -> Self {
        let hidden = |address: Address| {
            let [start, end] = address.halves();
            Address::of_halves(verifier::hide(start), verifier::hide(end))
        };
        Self {
            source: hidden(self.source),
            destination: hidden(self.destination),
            ..self
        }
    }

    /// Bytes of the IP packet, header included, Ethernet padding not.
    #[inline(always)]
    pub fn length(&self) -> u16 {
        self.start as u16
    }
}

/// Parses the IP header behind these tags and what extends it.
#[inline(always)]
pub fn ip(packet: &Packet, family: Family, tags: Tags) -> Result<Ip, Verdict> {
    match family {
        Family::V4 => ipv4::parse(packet, tags),
        Family::V6 => ipv6::parse(packet, tags),
    }
}

/// The flow that a packet is about, as the client's packets have it.
pub struct Flow {
    /// Address of the client.
    pub source: Address,
    /// Perhaps a VIP.
    pub destination: Address,
    /// Ports of both.
    pub ports: Ports,
    /// TCP or UDP.
    pub protocol: u8,
    /// Whether the packet is an ICMP error about the flow, and not of it.
    pub is_error: bool,
}

/// The flow of a TCP or UDP packet, or the one that an ICMP error quotes.
#[inline(always)]
pub fn flow(packet: &Packet, ip: &Ip) -> Result<Flow, Verdict> {
    if ip.protocol != PROTOCOL_TCP && ip.protocol != PROTOCOL_UDP {
        return icmp::quoted(packet, ip);
    }
    Ok(Flow {
        source: ip.source,
        destination: ip.destination,
        ports: l4::ports(packet, ip)?,
        protocol: ip.protocol,
        is_error: false,
    })
}
