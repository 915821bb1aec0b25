//! ICMP errors (RFC 792, RFC 4443) about packets that a backend has sent: source and destination of the quoted packet are
//! those of the client's packets the other way round. The first four bytes of the quoted L4 header are enough.
//!
//! **Invariant.** An error counts only if it is addressed to the source of what it quotes, like the flow's own packets;
//! so nobody's ICMP to another address ends up at a backend.

use super::{Flow, Fragment, Ip, ipv4, l4};
use lb_common::{
    address::Address,
    header::{IcmpHeader, Ipv4Header, Ipv6Header, PROTOCOL_TCP, PROTOCOL_UDP, Ports},
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// The flow that an error quotes.
#[inline(always)]
pub fn quoted(packet: &Packet, ip: &Ip) -> Result<Flow, Verdict> {
    let message: IcmpHeader = l4::read(packet, ip, 0).ok_or(Verdict::PassTruncated)?;
    if !message.is_error(ip.is_v4) {
        return Err(Verdict::PassNotTcpUdp);
    }
    let quote = if ip.is_v4 {
        quote_v4(packet, ip)?
    } else {
        quote_v6(packet, ip)?
    };
    if quote.protocol != PROTOCOL_TCP && quote.protocol != PROTOCOL_UDP {
        return Err(Verdict::PassNotTcpUdp);
    }
    if quote.source != ip.destination {
        return Err(Verdict::PassNoService);
    }
    let ports: Ports =
        l4::read(packet, ip, IcmpHeader::LENGTH + quote.header).ok_or(Verdict::PassTruncated)?;
    Ok(Flow {
        source: quote.destination,
        destination: quote.source,
        ports: ports.swapped(),
        protocol: quote.protocol,
        is_error: true,
    })
}

/// The IP header of a quoted packet.
struct Quote {
    source: Address,
    destination: Address,
    protocol: u8,
    /// Bytes of the header.
    header: usize,
}

#[inline(always)]
fn quote_v4(packet: &Packet, ip: &Ip) -> Result<Quote, Verdict> {
    let header: Ipv4Header =
        l4::read(packet, ip, IcmpHeader::LENGTH).ok_or(Verdict::PassTruncated)?;
    let length = usize::from(header.version_ihl & 0xf) * 4;
    if header.version_ihl >> 4 != 4 || length < Ipv4Header::LENGTH {
        return Err(Verdict::PassMalformed);
    }
    if ipv4::fragment(u16::from_be(header.fragment)) == Fragment::Later {
        return Err(Verdict::PassFragment);
    }
    Ok(Quote {
        source: Address::from_v4_word(header.source),
        destination: Address::from_v4_word(header.destination),
        protocol: header.protocol,
        header: length,
    })
}

#[inline(always)]
fn quote_v6(packet: &Packet, ip: &Ip) -> Result<Quote, Verdict> {
    let header: Ipv6Header =
        l4::read(packet, ip, IcmpHeader::LENGTH).ok_or(Verdict::PassTruncated)?;
    if header.version() != 6 {
        return Err(Verdict::PassMalformed);
    }
    Ok(Quote {
        source: header.source,
        destination: header.destination,
        protocol: header.next_header,
        header: Ipv6Header::LENGTH,
    })
}
