//! The IPv6 header (RFC 8200) and what is behind its extension headers.

use super::{Fragment, Ip, Tags, extension};
use lb_common::{
    header::{ExtensionHeader, Inner, Ipv6Header, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP},
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// Parses the header after Ethernet's and these tags.
#[inline(always)]
pub fn parse(packet: &Packet, tags: Tags) -> Result<Ip, Verdict> {
    let offset = tags.l3_offset();
    let header: Ipv6Header = packet.read(offset).ok_or(Verdict::PassTruncated)?;
    let length = Ipv6Header::LENGTH + usize::from(u16::from_be(header.payload_length));
    if header.version() != 6 || length > packet.length() - offset || length > usize::from(u16::MAX)
    {
        return Err(Verdict::PassMalformed);
    }
    let start = offset + Ipv6Header::LENGTH;
    let payload = extension::payload(packet, header.next_header, start, offset + length)?;
    match payload.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => {}
        PROTOCOL_ICMPV6 if payload.fragment == Fragment::Whole => {}
        // Only of a later fragment: its first one says what is behind.
        hidden if ExtensionHeader::is(hidden) => {}
        _ => return Err(Verdict::PassNotTcpUdp),
    }
    // Written as ::ffff:a.b.c.d it would find the service of a.b.c.d; no such address belongs on a wire (RFC 6890).
    if header.destination.is_v4() {
        return Err(Verdict::PassNoService);
    }
    Ok(Ip {
        tags,
        is_v4: false,
        source: header.source,
        destination: header.destination,
        protocol: payload.protocol,
        start: Inner::start(header.traffic_class(), length as u16),
        l4_offset: payload.offset,
        id_and_flags: Inner::id_and_flags(0, true),
        fragment_id: payload.fragment_id,
        fragment: payload.fragment,
    })
}
