//! The headers of a frame, a line each: as far as they can be read.

use lb_common::{
    gue::SecondWord,
    header::{
        PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_TCP, PROTOCOL_UDP,
    },
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Headers that are told at most.
const MOST: usize = 16;

/// What comes next in the frame.
enum Next {
    Ethertype(u16),
    Protocol(u8),
    Gue,
    End,
}

/// A line for each header. UDP to `gue_port` is taken for GUE.
pub fn headers(frame: &[u8], gue_port: u16) -> Vec<String> {
    let mut lines = Vec::new();
    let Some((line, mut next)) = ethernet(frame) else {
        return lines;
    };
    lines.push(line);
    let mut rest = frame.get(14..).unwrap_or_default();
    while lines.len() < MOST {
        let read = match next {
            Next::Ethertype(0x8100 | 0x88a8) => vlan(rest),
            Next::Ethertype(0x0800) | Next::Protocol(PROTOCOL_IPV4) => ipv4(rest),
            Next::Ethertype(0x86dd) | Next::Protocol(PROTOCOL_IPV6) => ipv6(rest),
            Next::Protocol(PROTOCOL_TCP) => tcp(rest),
            Next::Protocol(PROTOCOL_UDP) => udp(rest, gue_port),
            Next::Protocol(PROTOCOL_ICMP) => icmp(rest, "ICMP"),
            Next::Protocol(PROTOCOL_ICMPV6) => icmp(rest, "ICMPv6"),
            Next::Gue => gue(rest),
            Next::Ethertype(_) | Next::Protocol(_) | Next::End => None,
        };
        let Some((line, length, following)) = read else {
            break;
        };
        lines.push(line);
        rest = rest.get(length..).unwrap_or_default();
        next = following;
    }
    lines
}

type Read = Option<(String, usize, Next)>;

fn ethernet(frame: &[u8]) -> Option<(String, Next)> {
    let kind = word(frame, 12)?;
    let (to, from) = (frame.get(..6)?, frame.get(6..12)?);
    let line = format!("Ethernet {} > {}, type {kind:#06x}", mac(from), mac(to));
    Some((line, Next::Ethertype(kind)))
}

fn vlan(bytes: &[u8]) -> Read {
    let (control, kind) = (word(bytes, 0)?, word(bytes, 2)?);
    let line = format!("VLAN {}, priority {}", control & 0xfff, control >> 13);
    Some((line, 4, Next::Ethertype(kind)))
}

fn ipv4(bytes: &[u8]) -> Read {
    let header: [u8; 20] = bytes.get(..20)?.try_into().ok()?;
    let [
        first,
        class,
        l0,
        l1,
        i0,
        i1,
        f0,
        f1,
        ttl,
        protocol,
        _,
        _,
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
    ] = header;
    let length = u16::from_be_bytes([l0, l1]);
    let (id, fragment) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([f0, f1]));
    let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
    let mut line = format!(
        "IPv4 {source} > {destination}, protocol {protocol}, {length} bytes, TTL {ttl}, id {id:#06x}{}",
        class_text(class)
    );
    if fragment & 0x4000 != 0 {
        line += ", DF";
    }
    if fragment & 0x3fff != 0 {
        line += &format!(", fragment at {}", (fragment & 0x1fff) * 8);
    }
    let next = if fragment & 0x1fff == 0 {
        Next::Protocol(protocol)
    } else {
        Next::End
    };
    Some((line, usize::from(first & 0xf) * 4, next))
}

fn ipv6(bytes: &[u8]) -> Read {
    let header = bytes.get(..40)?;
    let (first, payload) = (
        u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?),
        word(header, 4)?,
    );
    let (protocol, hops) = (*header.get(6)?, *header.get(7)?);
    let address = |at: usize| -> Option<Ipv6Addr> {
        let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
        Some(octets.into())
    };
    let line = format!(
        "IPv6 {} > {}, next header {protocol}, {} bytes, hop limit {hops}, flow label {:#07x}{}",
        address(8)?,
        address(24)?,
        u32::from(payload) + 40,
        first & 0xf_ffff,
        class_text((first >> 20) as u8)
    );
    Some((line, 40, Next::Protocol(protocol)))
}

fn class_text(class: u8) -> String {
    if class == 0 {
        String::new()
    } else {
        format!(", DSCP {}, ECN {}", class >> 2, class & 3)
    }
}

fn tcp(bytes: &[u8]) -> Read {
    let flags = *bytes.get(13)?;
    let names = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
    let set: Vec<&str> = names
        .iter()
        .enumerate()
        .filter(|(bit, _)| flags & (1 << bit) != 0)
        .map(|(_, name)| *name)
        .collect();
    let line = format!(
        "TCP {} > {}, flags {}",
        word(bytes, 0)?,
        word(bytes, 2)?,
        set.join(",")
    );
    Some((line, 20, Next::End))
}

fn udp(bytes: &[u8], gue_port: u16) -> Read {
    let (source, destination, length) = (word(bytes, 0)?, word(bytes, 2)?, word(bytes, 4)?);
    let line = format!("UDP {source} > {destination}, {length} bytes");
    let next = if destination == gue_port {
        Next::Gue
    } else {
        Next::End
    };
    Some((line, 8, next))
}

/// draft-ietf-intarea-gue-09, section 3.
fn gue(bytes: &[u8]) -> Read {
    let (first, protocol) = (*bytes.first()?, *bytes.get(1)?);
    let length = 4 + usize::from(first & 0x1f) * 4;
    let second = match bytes.get(4..length) {
        Some(second) => second_owner(second).unwrap_or_default(),
        None => String::new(),
    };
    let line = format!(
        "GUE version {}, protocol {protocol}, {length} bytes of header{second}",
        first >> 6
    );
    Some((line, length, Next::Protocol(protocol)))
}

/// The second owner that a GUE header names (`lb_common::gue`).
fn second_owner(bytes: &[u8]) -> Option<String> {
    let (port, address) = (word(bytes, 2)?, bytes.get(4..)?);
    let address = match (bytes.get(..2)?, address.len()) {
        ([SecondWord::KIND, 4], 4) => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        ([SecondWord::KIND, 16], 16) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    let end = SocketAddr::new(address, port);
    Some(format!(", second owner {end}"))
}

fn icmp(bytes: &[u8], name: &str) -> Read {
    let line = format!("{name} type {}, code {}", bytes.first()?, bytes.get(1)?);
    Some((line, 8, Next::End))
}

fn word(bytes: &[u8], offset: usize) -> Option<u16> {
    let pair: [u8; 2] = bytes.get(offset..offset + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(pair))
}

/// A MAC address as people write it.
pub fn mac(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

#[cfg(test)]
mod tests {
    use super::{
        super::frame::{Words, build},
        *,
    };
    use lb_common::gue::DEFAULT_PORT;

    fn frame(protocol: &str, source: &str, destination: &str) -> Vec<u8> {
        let words = Words {
            protocol,
            source,
            destination,
            flags: "syn,ack",
            payload: &[],
            size: None,
        };
        build(&words, [2, 0, 0, 0, 0, 9]).unwrap()
    }

    #[test]
    fn nested_headers_are_told_in_order() {
        let inner = frame("tcp", "198.51.100.9:40000", "192.0.2.1:443");
        assert_eq!(
            headers(&inner, DEFAULT_PORT),
            [
                "Ethernet 02:00:00:00:00:01 > 02:00:00:00:00:09, type 0x0800",
                "IPv4 198.51.100.9 > 192.0.2.1, protocol 6, 40 bytes, TTL 60, id 0x0001, DF",
                "TCP 40000 > 443, flags syn,ack",
            ]
        );
        let mut outer = frame("udp", "[fd00::1]:50000", "[fd00::2]:6080");
        outer.extend([0, 4, 0, 0]);
        outer.extend(&inner[14..]);
        let lines = headers(&outer, DEFAULT_PORT);
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert_eq!(
            lines[1],
            "IPv6 fd00::1 > fd00::2, next header 17, 48 bytes, hop limit 60, flow label 0x00000"
        );
        assert_eq!(lines[3], "GUE version 0, protocol 4, 4 bytes of header");
        assert_eq!(headers(&outer, 7).len(), 3);
    }

    #[test]
    fn frames_cut_anywhere_are_told_as_far_as_they_go() {
        let whole = frame("icmp", "2001:db8::9", "2001:db8::1");
        let mut least = 0;
        for length in 0..=whole.len() {
            let lines = headers(&whole[..length], DEFAULT_PORT).len();
            assert!(lines >= least);
            least = lines;
        }
        assert_eq!(least, 3);
    }
}
