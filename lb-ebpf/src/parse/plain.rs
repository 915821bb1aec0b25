//! What nearly all packets are: untagged, whole, TCP or UDP right behind an IP header without options or extension headers. One
//! comparison with the end of the frame is enough for these.
//!
//! **Invariant.** What is plain is parsed as [`super::ip`] and [`super::flow`] would.

use super::Flow;
use lb_common::{
    address::Address,
    header::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, FRAGMENT_OFFSET, Inner, Ipv4Header,
        Ipv6Header, MORE_FRAGMENTS, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_TCP, PROTOCOL_UDP,
        PlainV4, PlainV6, Ports,
    },
};
use lb_ebpf::packet::{Front, Header, Packet, Pair};

/// Why a packet is not plain.
pub enum NotPlain {
    /// The frame says that it carries something else.
    OtherFamily,
    /// It is not of the kind, or too short.
    Other,
}

/// The headers of a plain packet of one family. One that is too short for IPv4 is too short for IPv6 as well.
pub trait Plain: Header {
    /// Whether it is IPv4.
    const IS_V4: bool;

    /// Bytes of the IP packet if `front`, of this length, is what a plain one begins with.
    fn length(front: &Front, packet: &Packet) -> Result<u16, NotPlain>;

    /// Its flow.
    fn flow(front: &Front) -> Option<Flow>;

    /// What an outer header takes from the IP packet behind `Before`.
    fn inner<Before: Header>(front: &Front) -> Option<Inner>;
}

impl Plain for PlainV4 {
    const IS_V4: bool = true;

    #[inline(always)]
    fn length(front: &Front, packet: &Packet) -> Result<u16, NotPlain> {
        let Self { ethernet, ip, .. } = front.read(0).ok_or(NotPlain::Other)?;
        if ethernet.ethertype != ETHERTYPE_IPV4 {
            return Err(NotPlain::OtherFamily);
        }
        let length = u16::from_be(ip.total_length);
        if ip.version_ihl != 0x45
            || ip.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be() != 0
            || usize::from(length) < Ipv4Header::LENGTH + Ports::LENGTH
            || !fits(packet, length.into())
            || !is_tcp_or_udp(ip.protocol)
        {
            return Err(NotPlain::Other);
        }
        Ok(length)
    }

    #[inline(always)]
    fn flow(front: &Front) -> Option<Flow> {
        let Self { ip, ports, .. } = front.read_words::<[u8; 0], Self>()?;
        let source = Address::from_v4_word(ip.source);
        let destination = Address::from_v4_word(ip.destination);
        let plain: Self = front.read(0)?;
        Some(flow(source, destination, ports, plain.ip.protocol))
    }

    #[inline(always)]
    fn inner<Before: Header>(front: &Front) -> Option<Inner> {
        Some(Inner {
            protocol: PROTOCOL_IPV4,
            start: u32::from_be(front.word::<Before, 0>()?),
            id_and_flags: front.word::<Before, 4>()? & Inner::id_and_flags(u16::MAX, true),
        })
    }
}

impl Plain for PlainV6 {
    const IS_V4: bool = false;

    #[inline(always)]
    fn length(front: &Front, packet: &Packet) -> Result<u16, NotPlain> {
        let Self { ethernet, ip, .. } = front.read(0).ok_or(NotPlain::Other)?;
        if ethernet.ethertype != ETHERTYPE_IPV6 {
            return Err(NotPlain::OtherFamily);
        }
        let length = Ipv6Header::LENGTH + usize::from(u16::from_be(ip.payload_length));
        if length < Ipv6Header::LENGTH + Ports::LENGTH
            || length > usize::from(u16::MAX)
            || !fits(packet, length)
            || !is_tcp_or_udp(ip.next_header)
        {
            return Err(NotPlain::Other);
        }
        let Self { ip, .. } = front.read_words::<[u8; 0], Self>().ok_or(NotPlain::Other)?;
        if ip.version() != 6 || ip.destination.is_v4() {
            return Err(NotPlain::Other);
        }
        Ok(length as u16)
    }

    #[inline(always)]
    fn flow(front: &Front) -> Option<Flow> {
        let Self { ip, ports, .. } = front.read_words::<[u8; 0], Self>()?;
        let plain: Self = front.read(0)?;
        let protocol = plain.ip.next_header;
        Some(flow(ip.source, ip.destination, ports, protocol))
    }

    #[inline(always)]
    fn inner<Before: Header>(front: &Front) -> Option<Inner> {
        let Pair(_, ip) = front.read::<Pair<Before, Ipv6Header>>(0)?;
        let length = u16::from_be(ip.payload_length) + Ipv6Header::LENGTH as u16;
        Some(Inner {
            protocol: PROTOCOL_IPV6,
            start: Inner::start(ip.traffic_class(), length),
            id_and_flags: Inner::id_and_flags(0, true),
        })
    }
}

#[inline(always)]
fn is_tcp_or_udp(protocol: u8) -> bool {
    protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP
}

/// Whether the frame has room for so many bytes of IP.
#[inline(always)]
fn fits(packet: &Packet, length: usize) -> bool {
    length <= packet.length() - EthernetHeader::LENGTH
}

#[inline(always)]
fn flow(source: Address, destination: Address, ports: Ports, protocol: u8) -> Flow {
    Flow {
        source,
        destination,
        ports,
        protocol,
        is_error: false,
    }
}
