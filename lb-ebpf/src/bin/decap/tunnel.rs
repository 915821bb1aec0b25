//! What a frame's outer and inner headers say.
//!
//! **Invariant.** Nothing here changes a frame or depends on how it is attached to the kernel.

use core::ffi::c_void;
use lb_common::{
    address::Address,
    decap::{Reason, ecn, with_traffic_class},
    gue::GueHeader,
    header::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, FRAGMENT_OFFSET, Ipv4Header, Ipv6Header,
        MORE_FRAGMENTS, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_UDP, Ports,
    },
};
use lb_ebpf::packet::{Header, Packet};

/// Bytes of a UDP header.
const UDP_LENGTH: usize = 8;

/// A frame that headers can be read from.
pub trait Frame {
    /// The header at `offset` bytes from the start of the Ethernet header; `None` where the frame ends before it does.
    fn load<T: Header>(&self, offset: usize) -> Option<T>;

    /// The context, as helpers of the kernel want it.
    fn context(&self) -> *mut c_void;
}

impl Frame for Packet {
    #[inline(always)]
    fn load<T: Header>(&self, offset: usize) -> Option<T> {
        self.read(offset)
    }

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.context().ctx.cast()
    }
}

/// The tunnel that a frame came through.
pub struct Tunnel {
    /// Bytes of all headers between Ethernet's and the inner IP header.
    pub outer_length: usize,
    /// Bytes of them that GUE's header counts and no flag announces: perhaps a second owner.
    pub surplus: usize,
    /// Bytes of what is inside, as the outer IP header has it.
    pub payload: usize,
    /// Family of the outer packet.
    pub outer_is_v4: bool,
    /// Family of the inner packet.
    pub inner_is_v4: bool,
    /// DSCP and ECN of the outer header.
    pub traffic_class: u8,
    /// TTL or hop limit of the outer header.
    pub ttl: u8,
    /// Outer source: a balancer's address.
    pub source: Address,
    /// Outer destination: an address of this host.
    pub destination: Address,
    /// [`Reason::Ipip`] or [`Reason::Gue`].
    pub reason: Reason,
}

/// Reads the outer headers.
#[inline(always)]
pub fn outer<F: Frame>(frame: &F) -> Result<Tunnel, Reason> {
    let ethernet: EthernetHeader = frame.load(0).ok_or(Reason::NotTunnelled)?;
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => over_v4(frame),
        ETHERTYPE_IPV6 => over_v6(frame),
        _ => Err(Reason::NotTunnelled),
    }
}

#[inline(always)]
fn over_v4<F: Frame>(frame: &F) -> Result<Tunnel, Reason> {
    let header: Ipv4Header = frame
        .load(EthernetHeader::LENGTH)
        .ok_or(Reason::NotTunnelled)?;
    let fragment = u16::from_be(header.fragment) & (MORE_FRAGMENTS | FRAGMENT_OFFSET);
    // Whether UDP behind options is GUE is not worth a look: it is passed either way.
    let plain = header.version_ihl == 0x45 && fragment == 0;
    let payload = usize::from(u16::from_be(header.total_length));
    let tunnel = Tunnel {
        outer_length: Ipv4Header::LENGTH,
        surplus: 0,
        payload: payload.wrapping_sub(Ipv4Header::LENGTH),
        outer_is_v4: true,
        inner_is_v4: true,
        traffic_class: header.traffic_class,
        ttl: header.ttl,
        source: Address::from_v4_word(header.source),
        destination: Address::from_v4_word(header.destination),
        reason: Reason::Ipip,
    };
    match header.protocol {
        PROTOCOL_IPV4 | PROTOCOL_IPV6 | PROTOCOL_UDP if payload < Ipv4Header::LENGTH => {
            Err(Reason::Malformed)
        }
        PROTOCOL_IPV4 | PROTOCOL_IPV6 if !plain => Err(Reason::Malformed),
        PROTOCOL_UDP if !plain => Err(Reason::NotTunnelled),
        protocol => carried(frame, protocol, tunnel),
    }
}

#[inline(always)]
fn over_v6<F: Frame>(frame: &F) -> Result<Tunnel, Reason> {
    let header: Ipv6Header = frame
        .load(EthernetHeader::LENGTH)
        .ok_or(Reason::NotTunnelled)?;
    let tunnel = Tunnel {
        outer_length: Ipv6Header::LENGTH,
        surplus: 0,
        payload: usize::from(u16::from_be(header.payload_length)),
        outer_is_v4: false,
        inner_is_v4: true,
        traffic_class: header.traffic_class(),
        ttl: header.hop_limit,
        source: header.source,
        destination: header.destination,
        reason: Reason::Ipip,
    };
    carried(frame, header.next_header, tunnel)
}

/// Completes what is known of a tunnel from the protocol that its outer IP header names.
#[inline(always)]
fn carried<F: Frame>(frame: &F, protocol: u8, tunnel: Tunnel) -> Result<Tunnel, Reason> {
    match protocol {
        PROTOCOL_IPV4 => Ok(tunnel),
        PROTOCOL_IPV6 => Ok(Tunnel {
            inner_is_v4: false,
            ..tunnel
        }),
        PROTOCOL_UDP => gue(frame, tunnel),
        _ => Err(Reason::NotTunnelled),
    }
}

/// GUE, version 0, a data message without optional fields (draft-ietf-intarea-gue-09, section 3). The outer UDP checksum
/// is not looked at: the inner packet has its own (RFC 6936). Private data that is not a second owner is skipped, as the
/// kernel does.
#[inline(always)]
fn gue<F: Frame>(frame: &F, tunnel: Tunnel) -> Result<Tunnel, Reason> {
    let udp = EthernetHeader::LENGTH + tunnel.outer_length;
    let ports: Ports = frame.load(udp).ok_or(Reason::NotTunnelled)?;
    if ports.destination != crate::policy::gue_port() {
        return Err(Reason::NotTunnelled);
    }
    let header: GueHeader = frame.load(udp + UDP_LENGTH).ok_or(Reason::Malformed)?;
    let surplus = header.surplus();
    let added = UDP_LENGTH + GueHeader::LENGTH + surplus;
    if !header.is_plain_data() || tunnel.payload < added {
        return Err(Reason::Malformed);
    }
    let inner_is_v4 = match header.protocol {
        PROTOCOL_IPV4 => true,
        PROTOCOL_IPV6 => false,
        _ => return Err(Reason::Malformed),
    };
    Ok(Tunnel {
        outer_length: tunnel.outer_length + added,
        surplus,
        payload: tunnel.payload - added,
        inner_is_v4,
        reason: Reason::Gue,
        ..tunnel
    })
}

/// An inner IP header.
#[derive(Clone, Copy)]
pub enum Inner {
    /// IPv4, perhaps with options behind it.
    V4(Ipv4Header),
    /// IPv6.
    V6(Ipv6Header),
}

/// Reads the inner header, of a packet that is whole and for an address that we take packets for.
///
/// Each family is judged by itself: a destination out of either would be one register of two meanings to the verifier of
/// Linux 6.1, which refuses that.
#[inline(always)]
pub fn inner<F: Frame>(frame: &F, tunnel: &Tunnel) -> Result<Inner, Reason> {
    let offset = EthernetHeader::LENGTH + tunnel.outer_length;
    if tunnel.inner_is_v4 {
        let header: Ipv4Header = frame.load(offset).ok_or(Reason::Malformed)?;
        let length = usize::from(u16::from_be(header.total_length));
        if header.version_ihl >> 4 != 4 || length > tunnel.payload {
            return Err(Reason::Malformed);
        }
        crate::policy::check_destination(Address::from_v4_word(header.destination))?;
        Ok(Inner::V4(header))
    } else {
        let header: Ipv6Header = frame.load(offset).ok_or(Reason::Malformed)?;
        let length = Ipv6Header::LENGTH + usize::from(u16::from_be(header.payload_length));
        if header.version() != 6 || length > tunnel.payload {
            return Err(Reason::Malformed);
        }
        crate::policy::check_destination(header.destination)?;
        Ok(Inner::V6(header))
    }
}

impl Inner {
    /// The header with the congestion that the outer traffic class tells of.
    #[inline(always)]
    pub fn marked(self, outer: u8) -> Result<Self, Reason> {
        let class = match self {
            Self::V4(header) => header.traffic_class,
            Self::V6(header) => header.traffic_class(),
        };
        let marked = class & !3 | ecn(outer, class).ok_or(Reason::Congested)?;
        Ok(match self {
            _ if marked == class => self,
            Self::V4(header) => Self::V4(with_traffic_class(header, marked)),
            Self::V6(header) => {
                let change = u32::from(class ^ marked) << 20;
                Self::V6(Ipv6Header {
                    version_class_label: header.version_class_label ^ change.to_be(),
                    ..header
                })
            }
        })
    }
}
