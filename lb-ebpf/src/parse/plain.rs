//! What nearly all packets are: untagged, whole, TCP or UDP right behind an IP header without options or extension headers. One
//! comparison with the end of the frame is enough for these.
//!
//! **Invariant.** What is plain is parsed as [`super::ip`] and [`super::flow`] would.

use super::{Flow, Fragment, Ip, Tags};
use lb_common::{
    address::Address,
    header::{
        DONT_FRAGMENT, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader, FRAGMENT_OFFSET, Ipv4Header,
        Ipv6Header, MORE_FRAGMENTS, PROTOCOL_TCP, PROTOCOL_UDP, PlainV4, PlainV6, Ports,
    },
};
use lb_ebpf::packet::{Header as _, Packet};

/// Why a packet is not plain.
pub enum NotPlain {
    /// The frame says that it carries something else.
    OtherFamily,
    /// It is not of the kind, or too short.
    Other,
}

/// A plain packet of IPv4. One that is too short to be one is too short for IPv6 as well.
#[inline(always)]
pub fn v4(packet: &Packet) -> Result<(Ip, Flow), NotPlain> {
    let PlainV4 { ethernet, ip, .. } = packet.read(0).ok_or(NotPlain::Other)?;
    let length = u16::from_be(ip.total_length);
    if ethernet.ethertype != ETHERTYPE_IPV4 {
        return Err(NotPlain::OtherFamily);
    }
    if ip.version_ihl != 0x45
        || ip.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be() != 0
        || usize::from(length) < Ipv4Header::LENGTH + Ports::LENGTH
        || !fits(packet, usize::from(length))
        || !is_tcp_or_udp(ip.protocol)
    {
        return Err(NotPlain::Other);
    }
    // The same once more, as what is longer than two bytes is better read.
    let wide: PlainV4 = packet.read_words(0).ok_or(NotPlain::Other)?;
    let (source, destination) = (
        Address::from_v4_word(wide.ip.source),
        Address::from_v4_word(wide.ip.destination),
    );
    let parsed = Ip {
        tags: Tags::None,
        is_v4: true,
        source,
        destination,
        protocol: ip.protocol,
        traffic_class: ip.traffic_class,
        length,
        l4_offset: EthernetHeader::LENGTH + Ipv4Header::LENGTH,
        dont_fragment: ip.fragment & DONT_FRAGMENT.to_be() != 0,
        id: ip.id,
        fragment_id: ip.id.into(),
        fragment: Fragment::Whole,
    };
    let flow = flow(source, destination, wide.ports, ip.protocol);
    Ok((parsed, flow))
}

/// A plain packet of IPv6.
#[inline(always)]
pub fn v6(packet: &Packet) -> Result<(Ip, Flow), NotPlain> {
    let PlainV6 { ethernet, ip, .. } = packet.read(0).ok_or(NotPlain::Other)?;
    let length = Ipv6Header::LENGTH + usize::from(u16::from_be(ip.payload_length));
    if ethernet.ethertype != ETHERTYPE_IPV6 {
        return Err(NotPlain::OtherFamily);
    }
    if length < Ipv6Header::LENGTH + Ports::LENGTH
        || length > usize::from(u16::MAX)
        || !fits(packet, length)
        || !is_tcp_or_udp(ip.next_header)
    {
        return Err(NotPlain::Other);
    }
    let wide: PlainV6 = packet.read_words(0).ok_or(NotPlain::Other)?;
    let header = wide.ip;
    if header.version() != 6 || header.destination.is_v4() {
        return Err(NotPlain::Other);
    }
    let parsed = Ip {
        tags: Tags::None,
        is_v4: false,
        source: header.source,
        destination: header.destination,
        protocol: ip.next_header,
        traffic_class: header.traffic_class(),
        length: length as u16,
        l4_offset: EthernetHeader::LENGTH + Ipv6Header::LENGTH,
        dont_fragment: true,
        id: 0,
        fragment_id: 0,
        fragment: Fragment::Whole,
    };
    let flow = flow(
        header.source,
        header.destination,
        wide.ports,
        ip.next_header,
    );
    Ok((parsed, flow))
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
