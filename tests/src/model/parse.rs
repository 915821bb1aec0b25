//! From a frame to what its headers say (IEEE 802.1Q, RFC 791, RFC 8200).

use super::bytes::{self, Address, be16, byte};
use lb_common::verdict::Verdict;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// Hop-by-hop options, routing, fragment, authentication, destination options.
const EXTENSIONS: [u8; 5] = [0, ROUTING, FRAGMENT, AUTHENTICATION, 60];

/// Which part of a packet a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    Later,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub struct Ip {
    /// Bytes in front of it: Ethernet header and tags.
    pub link: usize,
    pub four: bool,
    pub source: Address,
    pub destination: Address,
    /// TCP, UDP, or ICMP of the packet's family; of a later fragment of IPv6 perhaps that of an extension header.
    pub protocol: u8,
    pub traffic_class: u8,
    /// Its bytes, padding not among them.
    pub length: usize,
    /// Bytes of it in front of the L4 header.
    pub headers: usize,
    pub dont_fragment: bool,
    /// Of an outer IPv4 header: the packet's own, in which fragments differ by their offset; 0 for IPv6.
    pub id: u16,
    /// What the fragments of a datagram share; of IPv6 it is that of the last fragment header.
    pub datagram: u32,
    pub part: Part,
}

impl Ip {
    /// What is behind the headers, up to the end of the IP packet.
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let packet = &frame[self.link..self.link + self.length];
        packet.get(self.headers..).unwrap_or_default()
    }
}

/// The IP packet of a frame.
pub fn ip(frame: &[u8]) -> Result<Ip, Verdict> {
    let mut at = 12;
    let mut ethertype = be16(frame, at).ok_or(Verdict::PassTruncated)?;
    for _ in 0..2 {
        if ethertype != 0x8100 && ethertype != 0x88a8 {
            break;
        }
        at += 4;
        ethertype = be16(frame, at).ok_or(Verdict::PassTruncated)?;
    }
    match ethertype {
        0x0800 => v4(frame, at + 2),
        0x86dd => v6(frame, at + 2),
        _ => Err(Verdict::PassNotIp),
    }
}

fn v4(frame: &[u8], link: usize) -> Result<Ip, Verdict> {
    let packet = &frame[link..];
    if packet.len() < 20 {
        return Err(Verdict::PassTruncated);
    }
    let field = |at| be16(packet, at).ok_or(Verdict::PassTruncated);
    let headers = usize::from(packet[0] & 0x0f) * 4;
    let length = usize::from(field(2)?);
    if packet[0] >> 4 != 4 || headers < 20 || length < headers || length > packet.len() {
        return Err(Verdict::PassMalformed);
    }
    let flags = field(6)?;
    let part = part_v4(flags);
    let protocol = packet[9];
    let known = protocol == TCP || protocol == UDP || protocol == ICMP && part == Part::Whole;
    if !known {
        return Err(Verdict::PassNotTcpUdp);
    }
    Ok(Ip {
        link,
        four: true,
        source: bytes::address_v4(packet, 12).ok_or(Verdict::PassTruncated)?,
        destination: bytes::address_v4(packet, 16).ok_or(Verdict::PassTruncated)?,
        protocol,
        traffic_class: packet[1],
        length,
        headers,
        dont_fragment: flags & 0x4000 != 0,
        id: field(4)? ^ flags & 0x1fff,
        datagram: field(4)?.into(),
        part,
    })
}

/// What flags and fragment offset of IPv4 say.
pub fn part_v4(flags: u16) -> Part {
    match (flags & 0x1fff, flags & 0x2000) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    }
}

fn v6(frame: &[u8], link: usize) -> Result<Ip, Verdict> {
    let packet = &frame[link..];
    if packet.len() < 40 {
        return Err(Verdict::PassTruncated);
    }
    let length = 40 + usize::from(be16(packet, 4).ok_or(Verdict::PassTruncated)?);
    if packet[0] >> 4 != 6 || length > packet.len() || length > 65_535 {
        return Err(Verdict::PassMalformed);
    }
    let Payload {
        protocol,
        headers,
        part,
        datagram,
    } = extensions(&packet[..length], packet[6])?;
    let known = protocol == TCP || protocol == UDP || protocol == ICMPV6 && part == Part::Whole;
    // What a later fragment begins with may be hidden behind extension headers in the first one.
    let hidden = part == Part::Later && EXTENSIONS.contains(&protocol);
    if !known && !hidden {
        return Err(Verdict::PassNotTcpUdp);
    }
    let destination = bytes::address_v6(packet, 24).ok_or(Verdict::PassTruncated)?;
    if bytes::is_v4(&destination) {
        return Err(Verdict::PassNoService);
    }
    Ok(Ip {
        link,
        four: false,
        source: bytes::address_v6(packet, 8).ok_or(Verdict::PassTruncated)?,
        destination,
        protocol,
        traffic_class: packet[0] << 4 | packet[1] >> 4,
        length,
        headers,
        dont_fragment: true,
        id: 0,
        datagram,
        part,
    })
}

/// What the extension headers of an IPv6 packet lead to.
struct Payload {
    protocol: u8,
    headers: usize,
    part: Part,
    datagram: u32,
}

fn extensions(packet: &[u8], first: u8) -> Result<Payload, Verdict> {
    let (mut protocol, mut at, mut part, mut followed) = (first, 40, Part::Whole, 0);
    let mut datagram = 0;
    while EXTENSIONS.contains(&protocol) {
        if followed == 6 {
            return Err(Verdict::PassExtensionHeaders);
        }
        followed += 1;
        let next = byte(packet, at).ok_or(Verdict::PassTruncated)?;
        let length = usize::from(byte(packet, at + 1).ok_or(Verdict::PassTruncated)?);
        let bytes = match protocol {
            FRAGMENT => 8,
            AUTHENTICATION => 4 * (length + 2),
            _ => 8 * (length + 1),
        };
        let header = packet.get(at..at + bytes).ok_or(Verdict::PassTruncated)?;
        at += bytes;
        if at - 40 > 256 || protocol == ROUTING && header[3] != 0 {
            return Err(Verdict::PassExtensionHeaders);
        }
        if protocol == FRAGMENT {
            let word = u16::from_be_bytes([header[2], header[3]]);
            datagram = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            if word >> 3 != 0 {
                return Ok(Payload {
                    protocol: next,
                    headers: at,
                    part: Part::Later,
                    datagram,
                });
            }
            if word & 1 != 0 {
                part = Part::First;
            }
        }
        protocol = next;
    }
    Ok(Payload {
        protocol,
        headers: at,
        part,
        datagram,
    })
}
