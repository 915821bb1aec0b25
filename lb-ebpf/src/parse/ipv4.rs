//! The IPv4 header (RFC 791), options skipped. Its checksum is the backend's to verify: it covers the inner header,
//! which we never change.

use super::{Fragment, Ip, Tags};
use lb_common::{
    address::Address,
    header::{
        DONT_FRAGMENT, FRAGMENT_OFFSET, Inner, Ipv4Header, MORE_FRAGMENTS, PROTOCOL_ICMP,
        PROTOCOL_TCP, PROTOCOL_UDP,
    },
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// Parses the header after Ethernet's and these tags.
#[inline(always)]
pub fn parse(packet: &Packet, tags: Tags) -> Result<Ip, Verdict> {
    let offset = tags.l3_offset();
    let header: Ipv4Header = packet.read(offset).ok_or(Verdict::PassTruncated)?;
    let header_length = usize::from(header.version_ihl & 0xf) * 4;
    let length = u16::from_be(header.total_length);
    if header.version_ihl >> 4 != 4
        || header_length < Ipv4Header::LENGTH
        || usize::from(length) < header_length
        || usize::from(length) > packet.length() - offset
    {
        return Err(Verdict::PassMalformed);
    }
    let flags = u16::from_be(header.fragment);
    let fragment = fragment(flags);
    match header.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => {}
        PROTOCOL_ICMP if fragment == Fragment::Whole => {}
        _ => return Err(Verdict::PassNotTcpUdp),
    }
    Ok(Ip {
        tags,
        is_v4: true,
        source: Address::from_v4_word(header.source),
        destination: Address::from_v4_word(header.destination),
        protocol: header.protocol,
        start: Inner::start(header.traffic_class, length),
        l4_offset: offset + header_length,
        id_and_flags: Inner::id_and_flags(
            header.id ^ (flags & FRAGMENT_OFFSET).to_be(),
            flags & DONT_FRAGMENT != 0,
        ),
        fragment_id: u32::from(header.id),
        fragment,
    })
}

/// What these flags, in host order, say.
#[inline(always)]
pub fn fragment(flags: u16) -> Fragment {
    if flags & FRAGMENT_OFFSET != 0 {
        Fragment::Later
    } else if flags & MORE_FRAGMENTS != 0 {
        Fragment::First
    } else {
        Fragment::Whole
    }
}
