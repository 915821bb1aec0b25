//! A frame of a few words: protocol, addresses, flags. Enough for the balancer to choose a backend by.

use crate::problem::Problem;
use lb_common::header::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use std::net::{IpAddr, SocketAddr};

/// MAC address of the sender: locally administered, nobody's.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// TTL and hop limit of a packet that has come some way.
const TTL: u8 = 60;
/// Largest packet that the kernel runs through a program.
const LARGEST: usize = 3_400;

/// What a packet is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words<'a> {
    /// `tcp`, `udp` or `icmp` (an echo request).
    pub protocol: &'a str,
    /// Address and port; for `icmp` the address alone.
    pub source: &'a str,
    /// Likewise.
    pub destination: &'a str,
    /// TCP flags, separated by commas.
    pub flags: &'a str,
    /// What follows the UDP or TCP header.
    pub payload: &'a [u8],
    /// Bytes of the IP packet; nothing: as small as can be.
    pub size: Option<u16>,
}

/// The frame, to the MAC address `receiver`.
///
/// # Errors
/// What is wrong with the words.
pub fn build(words: &Words<'_>, receiver: [u8; 6]) -> Result<Vec<u8>, Problem> {
    let is_echo = match words.protocol {
        "tcp" | "udp" => false,
        "icmp" => true,
        other => {
            return Err(Problem::new(
                "protocol",
                other,
                "no protocol that can be built",
                "choose tcp, udp or icmp, or give a whole frame",
            ));
        }
    };
    let source = end("source", words.source, is_echo)?;
    let destination = end("destination", words.destination, is_echo)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Problem::new(
            "destination",
            words.destination,
            format!("not of the same family as the source {}", words.source),
            "give both as IPv4 or both as IPv6",
        ));
    }
    let number = match (words.protocol, source.is_ipv4()) {
        ("tcp", _) => PROTOCOL_TCP,
        ("udp", _) => PROTOCOL_UDP,
        (_, true) => PROTOCOL_ICMP,
        (_, false) => PROTOCOL_ICMPV6,
    };
    let mut payload = match number {
        PROTOCOL_TCP => tcp(source.port(), destination.port(), flags(words.flags)?),
        PROTOCOL_UDP => udp(source.port(), destination.port()),
        PROTOCOL_ICMP => vec![8, 0, 0, 0, 0, 1, 0, 1],
        _ => vec![128, 0, 0, 0, 0, 1, 0, 1],
    };
    if !is_echo {
        payload.extend_from_slice(words.payload);
    }
    let header = if source.is_ipv4() { 20 } else { 40 };
    fill(&mut payload, header, number, words.size)?;
    checksum(&mut payload, number, source.ip(), destination.ip());
    let ethertype: [u8; 2] = if source.is_ipv4() {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    };
    let mut frame = [&receiver[..], &SENDER, &ethertype].concat();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend(ipv4(from.octets(), to.octets(), number, payload.len()));
        }
        (from, to) => frame.extend(ipv6(&octets(from), &octets(to), number, payload.len())),
    }
    frame.extend(payload);
    Ok(frame)
}

fn end(field: &str, text: &str, is_echo: bool) -> Result<SocketAddr, Problem> {
    if is_echo {
        return text
            .parse()
            .map(|address| SocketAddr::new(address, 0))
            .map_err(|_| {
                Problem::new(
                    field,
                    text,
                    "not an IP address",
                    "give it without a port, such as 192.0.2.1 or 2001:db8::1",
                )
            });
    }
    text.parse().map_err(|_| {
        Problem::new(
            field,
            text,
            "not an address with a port",
            "give it like 192.0.2.1:443 or [2001:db8::1]:443",
        )
    })
}

fn flags(text: &str) -> Result<u8, Problem> {
    let flag = |name: &str| match name.trim() {
        "fin" => Ok(0x01),
        "syn" => Ok(0x02),
        "rst" => Ok(0x04),
        "psh" => Ok(0x08),
        "ack" => Ok(0x10),
        "urg" => Ok(0x20),
        other => Err(Problem::new(
            "flags",
            other,
            "no TCP flag",
            "choose from syn, ack, fin, rst, psh and urg, separated by commas",
        )),
    };
    text.split(',')
        .try_fold(0, |all, name| Ok(all | flag(name)?))
}

/// Makes the packet as large as is wanted.
fn fill(
    payload: &mut Vec<u8>,
    header: usize,
    number: u8,
    size: Option<u16>,
) -> Result<(), Problem> {
    let least = header + payload.len();
    let size = size.map_or(least, usize::from);
    if !(least..=LARGEST).contains(&size) {
        return Err(Problem::new(
            "size",
            size,
            "not a size that such a packet can have here",
            format!("choose {least} to {LARGEST} bytes"),
        ));
    }
    payload.resize(size - header, 0);
    if number == PROTOCOL_UDP {
        let length = (payload.len() as u16).to_be_bytes();
        put(payload, 4, length);
    }
    Ok(())
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    // Sequence and acknowledgement 1, 20 bytes of header, window 64,240.
    let rest = [0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0];
    [ports, rest.to_vec()].concat()
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    [
        source.to_be_bytes(),
        destination.to_be_bytes(),
        [0, 0],
        [0, 0],
    ]
    .concat()
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: usize) -> Vec<u8> {
    let [high, low] = (20 + payload as u16).to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 1, 0x40, 0, TTL, protocol, 0, 0];
    header.extend([source, destination].concat());
    let sum = fold(&[&header]);
    put(&mut header, 10, sum);
    header
}

fn ipv6(source: &[u8], destination: &[u8], protocol: u8, payload: usize) -> Vec<u8> {
    let [high, low] = (payload as u16).to_be_bytes();
    [
        &[0x60, 0, 0, 0, high, low, protocol, TTL],
        source,
        destination,
    ]
    .concat()
}

/// Fills in the checksum of the L4 header, with the pseudo-header of RFC 9293, section 3.1, and RFC 8200, section 8.1.
fn checksum(payload: &mut [u8], number: u8, source: IpAddr, destination: IpAddr) {
    let offset = match number {
        PROTOCOL_TCP => 16,
        PROTOCOL_UDP => 6,
        _ => 2,
    };
    let (source, destination) = (octets(source), octets(destination));
    let length = (payload.len() as u32).to_be_bytes();
    let sum = if number == PROTOCOL_ICMP {
        fold(&[payload])
    } else {
        fold(&[&source, &destination, &length, &[0, number], payload])
    };
    put(payload, offset, sum);
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of these parts, each but the last of even length.
fn fold(parts: &[&[u8]]) -> [u8; 2] {
    let word = |pair: &[u8]| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(u16::from_be_bytes([*high, 0])),
        _ => 0,
    };
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(word);
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn put(bytes: &mut [u8], offset: usize, value: [u8; 2]) {
    if let Some(place) = bytes.get_mut(offset..offset + 2) {
        place.copy_from_slice(&value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(protocol: &'a str, source: &'a str, destination: &'a str) -> Words<'a> {
        Words {
            protocol,
            source,
            destination,
            flags: "syn",
            payload: &[],
            size: None,
        }
    }

    #[test]
    fn a_syn_byte_by_byte() {
        let built = build(
            &words("tcp", "198.51.100.9:40000", "192.0.2.1:443"),
            [2, 0, 0, 0, 0, 9],
        );
        let expected = "020000000009020000000001080045000028000100004000";
        let text = super::super::hex::encode(&built.unwrap());
        assert_eq!(text.len(), 2 * 54);
        assert!(text.starts_with(&expected[..36]), "{text}");
        // Ports, sequence, acknowledgement, offset and flags.
        assert!(text.contains("9c4001bb00000001000000015002faf0"), "{text}");
    }

    #[test]
    fn what_follows_the_header_is_as_given() {
        let quic = Words {
            payload: &[0x40, 0x12, 0x34],
            ..words("udp", "198.51.100.9:40000", "192.0.2.1:443")
        };
        let built = build(&quic, [0; 6]).unwrap();
        assert_eq!(built[42..], [0x40, 0x12, 0x34]);
        assert_eq!(built[38..40], [0, 11]);
    }

    #[test]
    fn checksums_are_those_that_a_receiver_computes() {
        for (protocol, from, to) in [
            ("tcp", "198.51.100.9:40000", "192.0.2.1:443"),
            ("udp", "198.51.100.9:40000", "192.0.2.1:443"),
            ("icmp", "198.51.100.9", "192.0.2.1"),
            ("tcp", "[2001:db8::9]:40000", "[2001:db8::1]:443"),
            ("udp", "[2001:db8::9]:40000", "[2001:db8::1]:443"),
            ("icmp", "2001:db8::9", "2001:db8::1"),
        ] {
            let odd = Words {
                size: Some(101),
                ..words(protocol, from, to)
            };
            let frame = build(&odd, [0; 6]).unwrap();
            assert_eq!(frame.len(), 14 + 101);
            let (addresses, payload) = if frame[12] == 8 {
                assert_eq!(fold(&[&frame[14..34]]), [0, 0], "{protocol} {from}");
                (&frame[26..34], &frame[34..])
            } else {
                (&frame[22..54], &frame[54..])
            };
            let number = if frame[12] == 8 { frame[23] } else { frame[20] };
            let length = (payload.len() as u32).to_be_bytes();
            let whole = if number == PROTOCOL_ICMP {
                fold(&[payload])
            } else {
                fold(&[addresses, &length, &[0, number], payload])
            };
            assert_eq!(whole, [0, 0], "{protocol} {from}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let field = |words: Words<'_>| build(&words, [0; 6]).unwrap_err().field;
        let good = words("tcp", "198.51.100.9:1", "192.0.2.1:443");
        assert_eq!(
            field(Words {
                protocol: "sctp",
                ..good
            }),
            "protocol"
        );
        assert_eq!(
            field(Words {
                source: "198.51.100.9",
                ..good
            }),
            "source"
        );
        assert_eq!(
            field(Words {
                destination: "[::1]:1",
                ..good
            }),
            "destination"
        );
        assert_eq!(
            field(Words {
                flags: "syn,sin",
                ..good
            }),
            "flags"
        );
        assert_eq!(
            field(Words {
                size: Some(39),
                ..good
            }),
            "size"
        );
        assert_eq!(
            field(Words {
                size: Some(4_000),
                ..good
            }),
            "size"
        );
        assert_eq!(
            field(Words {
                protocol: "icmp",
                ..good
            }),
            "source"
        );
    }
}
