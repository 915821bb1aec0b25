//! The frame as it leaves: layer 2, and IP in IP over both families (RFC 2003, 2473, 4213).

use super::{
    backend::{Backend, Mode},
    bytes,
    parse::Ip,
};
use lb_common::verdict::Verdict;

/// The frame for a backend, or why there is none. `hash` is that of the flow.
pub fn send(
    frame: &[u8],
    ip: &Ip,
    hash: u64,
    backend: &Backend,
    interface: u32,
) -> Result<Vec<u8>, Verdict> {
    let mode = backend.mode()?;
    if backend.mac == [0; 6] {
        return Err(Verdict::DropNoNextHop);
    }
    if backend.interface != interface {
        return Err(Verdict::DropWrongInterface);
    }
    let outer = match mode {
        Mode::L2 => Vec::new(),
        Mode::Ipip => outer(ip, hash, backend)?,
        Mode::Gue => return Err(Verdict::DropBadState),
    };
    if outer.len() + ip.length > backend.mtu {
        return Err(Verdict::DropTooBig);
    }
    let mut out = backend.mac.to_vec();
    // We send from the address that the frame was sent to.
    out.extend_from_slice(&frame[..6]);
    out.extend_from_slice(&frame[12..ip.link]);
    match outer.first().map(|first| first >> 4) {
        Some(4) => out[ip.link - 2..].copy_from_slice(&[0x08, 0x00]),
        Some(_) => out[ip.link - 2..].copy_from_slice(&[0x86, 0xdd]),
        None => {}
    }
    out.extend_from_slice(&outer);
    out.extend_from_slice(&frame[ip.link..]);
    Ok(out)
}

/// The outer IP header; its family is the backend's.
fn outer(ip: &Ip, hash: u64, backend: &Backend) -> Result<Vec<u8>, Verdict> {
    let four = bytes::is_v4(&backend.address);
    if four != bytes::is_v4(&backend.outer_source) {
        return Err(Verdict::DropBadState);
    }
    let protocol = if ip.four { 4 } else { 41 };
    if four {
        return Ok(outer_v4(ip, protocol, backend));
    }
    // 20 bits of the hash, its highest ones, are the flow label.
    let label = (hash >> 44).to_be_bytes();
    let class = ip.traffic_class;
    let mut outer = vec![0x60 | class >> 4, class << 4 | label[5], label[6], label[7]];
    outer.extend_from_slice(&(ip.length as u16).to_be_bytes());
    outer.extend_from_slice(&[protocol, 64]);
    outer.extend_from_slice(&backend.outer_source);
    outer.extend_from_slice(&backend.address);
    Ok(outer)
}

fn outer_v4(ip: &Ip, protocol: u8, backend: &Backend) -> Vec<u8> {
    let mut outer = vec![0x45, ip.traffic_class];
    outer.extend_from_slice(&((20 + ip.length) as u16).to_be_bytes());
    let id = if ip.dont_fragment { 0 } else { ip.id };
    outer.extend_from_slice(&id.to_be_bytes());
    outer.extend_from_slice(if ip.dont_fragment {
        &[0x40, 0]
    } else {
        &[0, 0]
    });
    outer.extend_from_slice(&[64, protocol, 0, 0]);
    outer.extend_from_slice(&backend.outer_source[12..]);
    outer.extend_from_slice(&backend.address[12..]);
    let sum = checksum(&outer);
    outer[10..12].copy_from_slice(&sum.to_be_bytes());
    outer
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
