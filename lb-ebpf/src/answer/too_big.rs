//! Path MTU discovery: who sent a packet that is too large once encapsulated is told the size that fits, by "fragmentation
//! needed" (RFC 792, RFC 1191) or "packet too big" (RFC 4443).
//!
//! IPv4 that may be fragmented is answered as well: we fragment nothing, and hosts that know the size do it themselves.

use super::{is_answerable, is_within_rate};
use crate::parse::{Fragment, Ip, Tags};
use lb_common::{
    header::{
        DoubleTaggedHeader, EthernetHeader, IcmpHeader, Ipv4Header, Ipv6Header, LinkHeader,
        PROTOCOL_TCP, PROTOCOL_UDP, TaggedHeader, Words,
    },
    icmp,
    rate::Answer,
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// Answers a packet that is larger than `mtu` bytes, or says why not.
#[inline(always)]
pub fn too_big(packet: &mut Packet, ip: &Ip, mtu: u16) -> Verdict {
    let is_error = ip.protocol != PROTOCOL_TCP && ip.protocol != PROTOCOL_UDP;
    if is_error || ip.fragment == Fragment::Later || !is_answerable(packet, ip) {
        return Verdict::DropTooBig;
    }
    if !is_within_rate(Answer::TooBig) {
        return Verdict::DropTooBig;
    }
    let answered = match ip.tags {
        Tags::None => answer::<EthernetHeader>(packet, ip, mtu),
        Tags::One => answer::<TaggedHeader>(packet, ip, mtu),
        Tags::Two => answer::<DoubleTaggedHeader>(packet, ip, mtu),
    };
    match answered {
        Some(()) => Verdict::AnsweredTooBig,
        None => Verdict::DropNoHeadroom,
    }
}

/// Puts the answer's headers before the packet, whose start becomes the quote; `L` is its link header.
#[inline(always)]
fn answer<L: Header + LinkHeader>(packet: &mut Packet, ip: &Ip, mtu: u16) -> Option<()> {
    let link = packet.read::<L>(0)?.returned();
    let quote = icmp::quote(ip.is_v4, ip.length());
    let sum = sum(packet, L::LENGTH, usize::from(quote))?;
    if ip.is_v4 {
        let (source, destination) = (ip.destination.v4_word(), ip.source.v4_word());
        let header = Ipv4Header::of_error(source, destination, quote);
        let message = IcmpHeader::fragmentation_needed(mtu, sum);
        put(packet, link, header, message, usize::from(quote))
    } else {
        let header = Ipv6Header::of_error(ip.destination, ip.source, quote);
        let message = IcmpHeader::packet_too_big(mtu, sum, &header);
        put(packet, link, header, message, usize::from(quote))
    }
}

/// Writes the headers over the room made for them and over the old link header, and cuts what is behind the quote.
#[inline(always)]
fn put<L: Header, T: Header>(
    packet: &mut Packet,
    link: L,
    header: T,
    message: IcmpHeader,
    quote: usize,
) -> Option<()> {
    let grown = T::LENGTH + IcmpHeader::LENGTH;
    packet.move_head(-(grown as i32))?;
    if packet.truncate(L::LENGTH + grown + quote).is_none() {
        // What was there is still there.
        packet.move_head(grown as i32)?;
        return None;
    }
    packet.write(0, link)?;
    packet.write(L::LENGTH, header)?;
    packet.write(L::LENGTH + T::LENGTH, message)
}

/// Sum of the 16-bit words of `length` bytes, a multiple of [`icmp::STEP`], from `start`.
#[inline(always)]
fn sum(packet: &Packet, start: usize, length: usize) -> Option<u64> {
    const MOST: usize = (icmp::QUOTE_V6 / icmp::STEP) as usize;
    let mut sum = 0;
    for step in 0..MOST {
        if step * Words::LENGTH >= length {
            break;
        }
        let Words([a, b, c, d, e, f, g, h]) = packet.read(start + step * Words::LENGTH)?;
        sum += u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d);
        sum += u64::from(e) + u64::from(f) + u64::from(g) + u64::from(h);
    }
    Some(sum)
}
