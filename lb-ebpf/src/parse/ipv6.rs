//! The IPv6 header (RFC 8200). Extension headers, fragments among them, are not followed: such packets pass.

use super::{Fragment, Ip, Tags};
use lb_common::{
    header::{Ipv6Header, PROTOCOL_TCP, PROTOCOL_UDP},
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
    if header.next_header != PROTOCOL_TCP && header.next_header != PROTOCOL_UDP {
        return Err(Verdict::PassNotTcpUdp);
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
        protocol: header.next_header,
        traffic_class: header.traffic_class(),
        length: length as u16,
        l4_offset: offset + Ipv6Header::LENGTH,
        dont_fragment: true,
        id: 0,
        fragment: Fragment::Whole,
    })
}
