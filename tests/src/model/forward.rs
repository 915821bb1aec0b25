//! The frame as it leaves: layer 2, and IP in IP or in UDP over both families (RFC 2003, 2473, 4213;
//! draft-ietf-intarea-gue-09).

use super::{
    backend::{Backend, Mode},
    bytes::{self, Address},
    parse::Ip,
};
use lb_common::verdict::Verdict;

/// A frame for a backend.
pub struct Sent {
    pub frame: Vec<u8>,
    /// Whether it leaves by another interface than it came in on.
    pub across: bool,
}

/// The frame for a backend, perhaps with a second owner's name, or why there is none. `hash` is that of the flow; `exit`,
/// if the backend is behind another interface, is that interface's own MAC, if the packet can leave by it.
pub fn send(
    frame: &[u8],
    ip: &Ip,
    hash: u64,
    (backend, second): (&Backend, Option<&Backend>),
    exit: Option<Option<&[u8; 6]>>,
) -> Result<Sent, Verdict> {
    let mode = backend.mode()?;
    if backend.mac == [0; 6] {
        return Err(Verdict::DropNoNextHop);
    }
    // We send from the address that the frame was sent to, or from that of the other interface.
    let own = match exit {
        None => &frame[..6],
        Some(mac) => mac.ok_or(Verdict::DropWrongInterface)?.as_slice(),
    };
    let outer = match mode {
        Mode::L2 => Vec::new(),
        Mode::Ipip => outer(ip, protocol(ip), &[], hash, backend)?,
        Mode::Gue => outer(ip, UDP, &gue(ip, hash, backend, second), hash, backend)?,
    };
    if backend.overhead()? + ip.length > backend.mtu {
        return Err(Verdict::DropTooBig);
    }
    let mut out = backend.mac.to_vec();
    out.extend_from_slice(own);
    out.extend_from_slice(&frame[12..ip.link]);
    match outer.first().map(|first| first >> 4) {
        Some(4) => out[ip.link - 2..].copy_from_slice(&[0x08, 0x00]),
        Some(_) => out[ip.link - 2..].copy_from_slice(&[0x86, 0xdd]),
        None => {}
    }
    out.extend_from_slice(&outer);
    out.extend_from_slice(&frame[ip.link..]);
    let across = exit.is_some();
    Ok(Sent { frame: out, across })
}

const UDP: u8 = 17;

/// The number by which a packet is announced in front of it.
fn protocol(ip: &Ip) -> u8 {
    if ip.four { 4 } else { 41 }
}

/// UDP and GUE headers. The source port is a dynamic one, of bits 32 to 45 of the hash; no checksum. A second owner is
/// private data of GUE, counted in its first byte in words: 0x21, bytes of the address, port, address.
fn gue(ip: &Ip, hash: u64, backend: &Backend, second: Option<&Backend>) -> Vec<u8> {
    let source = 49_152 + (hash >> 32) % 16_384;
    let name = second.map_or_else(Vec::new, |second| {
        let address = match bytes::is_v4(&second.address) {
            true => &second.address[12..],
            false => &second.address[..],
        };
        let [high, low] = second.port.to_be_bytes();
        [&[0x21, address.len() as u8, high, low], address].concat()
    });
    let length = 12 + name.len() + ip.length;
    let fields = [source as u16, backend.port, length as u16, 0];
    let udp = fields.iter().flat_map(|field| field.to_be_bytes());
    let gue = [(name.len() / 4) as u8, protocol(ip), 0, 0];
    udp.chain(gue).chain(name).collect()
}

/// The outer source: in mode `ipip` it may be a prefix that flows fill, with bits 32 to 47 or 63 of the hash.
fn source(hash: u64, backend: &Backend) -> Address {
    let mut source = backend.outer_source;
    if backend.filled && backend.mode() == Ok(Mode::Ipip) {
        let filled = if bytes::is_v4(&source) { 14 } else { 12 };
        let bits = ((hash >> 32) as u32).to_be_bytes();
        for (byte, bits) in source[filled..].iter_mut().zip(&bits[filled - 12..]) {
            *byte |= bits;
        }
    }
    source
}

/// The outer IP header, whose family is the backend's, and `more` behind it.
fn outer(
    ip: &Ip,
    protocol: u8,
    more: &[u8],
    hash: u64,
    backend: &Backend,
) -> Result<Vec<u8>, Verdict> {
    let source = source(hash, backend);
    let four = bytes::is_v4(&backend.address);
    if four != bytes::is_v4(&source) {
        return Err(Verdict::DropBadState);
    }
    let length = more.len() + ip.length;
    let mut outer = if four {
        outer_v4(ip, protocol, length, &source, backend)
    } else {
        outer_v6(ip, protocol, length, hash, &source, backend)
    };
    outer.extend_from_slice(more);
    Ok(outer)
}

fn outer_v6(
    ip: &Ip,
    protocol: u8,
    length: usize,
    hash: u64,
    source: &Address,
    backend: &Backend,
) -> Vec<u8> {
    // 20 bits of the hash, its highest ones, are the flow label.
    let label = (hash >> 44).to_be_bytes();
    let class = ip.traffic_class;
    let mut outer = vec![0x60 | class >> 4, class << 4 | label[5], label[6], label[7]];
    outer.extend_from_slice(&(length as u16).to_be_bytes());
    outer.extend_from_slice(&[protocol, 64]);
    outer.extend_from_slice(source);
    outer.extend_from_slice(&backend.address);
    outer
}

fn outer_v4(ip: &Ip, protocol: u8, length: usize, source: &Address, backend: &Backend) -> Vec<u8> {
    let mut outer = vec![0x45, ip.traffic_class];
    outer.extend_from_slice(&((20 + length) as u16).to_be_bytes());
    outer.extend_from_slice(&ip.id.to_be_bytes());
    outer.extend_from_slice(if ip.dont_fragment {
        &[0x40, 0]
    } else {
        &[0, 0]
    });
    outer.extend_from_slice(&[64, protocol, 0, 0]);
    outer.extend_from_slice(&source[12..]);
    outer.extend_from_slice(&backend.address[12..]);
    let sum = checksum(&outer);
    outer[10..12].copy_from_slice(&sum.to_be_bytes());
    outer
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
