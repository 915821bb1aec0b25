//! Frames with headers that belong together, and here and there one that does not.

use super::{
    pool::{self, Flow},
    world::{BACKENDS, LONG_QUIC, QUIC},
};
use crate::runner::LONGEST;
use fastrand::Rng;
use std::net::IpAddr;

/// Most headers of IP within another.
const DEPTH: u32 = 3;
const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];

/// Whether something that happens once in `times` happens.
pub fn once_in(random: &mut Rng, times: u32) -> bool {
    random.u32(..times) == 0
}

/// A frame of this flow or about it. The draw of another flow is for what is quoted or tunnelled.
pub fn frame(random: &mut Rng, flow: &Flow, other: &Flow, out: &mut Vec<u8>) {
    out.clear();
    let to = if once_in(random, 64) { 3 } else { 2 };
    out.extend_from_slice(&[to, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    let tags = match random.u8(..32) {
        0..22 => 0,
        22..27 => 1,
        27..31 => 2,
        _ => 3,
    };
    for _ in 0..tags {
        out.extend_from_slice(if random.bool() {
            &[0x81, 0x00]
        } else {
            &[0x88, 0xa8]
        });
        out.extend_from_slice(&random.u16(..).to_be_bytes());
    }
    let ethertype: u16 = match (random.u8(..100), flow.is_v4()) {
        (0, _) => random.u16(..),
        (_, true) => 0x0800,
        (_, false) => 0x86dd,
    };
    out.extend_from_slice(&ethertype.to_be_bytes());
    packet(random, flow, other, 0, out);
    if once_in(random, 6) {
        let padding = random.usize(1..=46);
        out.resize(out.len() + padding, 0xee);
    }
    out.truncate(LONGEST);
}

/// An IP packet.
fn packet(random: &mut Rng, flow: &Flow, other: &Flow, depth: u32, out: &mut Vec<u8>) {
    match (flow.source, flow.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            v4(
                random,
                (source.octets(), destination.octets()),
                flow,
                other,
                depth,
                out,
            );
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            v6(
                random,
                (octets(source), octets(destination)),
                flow,
                other,
                depth,
                out,
            );
        }
    }
}

fn v4(
    random: &mut Rng,
    (source, destination): ([u8; 4], [u8; 4]),
    flow: &Flow,
    other: &Flow,
    depth: u32,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let words = if once_in(random, 5) {
        random.u8(5..=15)
    } else {
        5
    };
    let flags: u16 = match random.u8(..24) {
        0 => 0x2000,
        1 => random.u16(..),
        2 => 0x2005,
        3..10 => 0,
        _ => 0x4000,
    };
    let protocol = protocol(random, flow, true);
    out.extend_from_slice(&[0x40 | words, random.u8(..), 0, 0]);
    let id = pool::datagram(random) as u16;
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&[random.u8(..), protocol, 0, 0]);
    out.extend_from_slice(&source);
    out.extend_from_slice(&destination);
    out.resize(start + usize::from(words) * 4, 1);
    payload(random, protocol, flow, other, depth, out);
    let length = (out.len() - start) as u16;
    let length = lie(random, length);
    out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    if once_in(random, 200) {
        out[start] = random.u8(..);
    }
}

fn v6(
    random: &mut Rng,
    (source, destination): ([u8; 16], [u8; 16]),
    flow: &Flow,
    other: &Flow,
    depth: u32,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.extend_from_slice(&(0x6000_0000 | random.u32(..) >> 4).to_be_bytes());
    let protocol = protocol(random, flow, false);
    out.extend_from_slice(&[0, 0, protocol, random.u8(..)]);
    out.extend_from_slice(&source);
    out.extend_from_slice(&destination);
    let mut next = start + 6;
    if once_in(random, 4) {
        let most = if once_in(random, 8) { 9 } else { 3 };
        for _ in 0..random.u8(1..=most) {
            next = extension(random, next, out);
        }
    }
    out[next] = protocol;
    payload(random, protocol, flow, other, depth, out);
    let length = (out.len() - start - 40) as u16;
    let length = lie(random, length);
    out[start + 4..start + 6].copy_from_slice(&length.to_be_bytes());
    if once_in(random, 200) {
        out[start] = random.u8(..);
    }
}

/// An extension header, announced at `next`; says where what follows it is announced.
fn extension(random: &mut Rng, next: usize, out: &mut Vec<u8>) -> usize {
    let number = EXTENSIONS[random.usize(..EXTENSIONS.len())];
    let length = if once_in(random, 12) {
        random.u8(..)
    } else {
        random.u8(..4)
    };
    let bytes = match number {
        44 => 8,
        51 => 4 * (usize::from(length) + 2),
        _ => 8 * (usize::from(length) + 1),
    };
    out[next] = number;
    let at = out.len();
    out.resize(at + bytes, 0xab);
    out[at + 1] = length;
    match number {
        43 => out[at + 3] = u8::from(once_in(random, 6)),
        44 => {
            // Most often first and last at once, or first, or a later one.
            let word = match random.u8(..6) {
                0 => random.u16(..),
                1 => 1,
                2 => 0x29,
                _ => 0,
            };
            out[at + 2..at + 4].copy_from_slice(&word.to_be_bytes());
            out[at + 4..at + 8].copy_from_slice(&pool::datagram(random).to_be_bytes());
        }
        _ => {}
    }
    at
}

/// The flow's own protocol, ICMP, a tunnel, or anything.
fn protocol(random: &mut Rng, flow: &Flow, is_v4: bool) -> u8 {
    match random.u8(..64) {
        0..50 => flow.protocol,
        50..58 if is_v4 => 1,
        50..58 => 58,
        58..60 => 4,
        60..62 => 41,
        62 => [47, 50, 132, 1, 58, 59][random.usize(..6)],
        _ => random.u8(..),
    }
}

fn payload(
    random: &mut Rng,
    protocol: u8,
    flow: &Flow,
    other: &Flow,
    depth: u32,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    match protocol {
        6 => tcp(random, flow, out),
        17 => udp(random, flow, out),
        1 | 58 => icmp(random, flow, other, depth, out),
        4 | 41 if depth < DEPTH => packet(random, other, flow, depth + 1, out),
        _ => data(random, 40, out),
    }
    // Cut off within the header.
    if once_in(random, 24) {
        let keep = random.usize(..=28);
        out.truncate(start + keep);
    }
}

fn tcp(random: &mut Rng, flow: &Flow, out: &mut Vec<u8>) {
    out.extend_from_slice(&flow.source_port.to_be_bytes());
    out.extend_from_slice(&flow.destination_port.to_be_bytes());
    out.extend_from_slice(&random.u64(..).to_be_bytes());
    let flags = match random.u8(..8) {
        0..2 => 0x02,
        2 => random.u8(..),
        3 => [0x11, 0x04, 0x14, 0x12, 0xc2, 0x00][random.usize(..6)],
        _ => 0x10,
    };
    out.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let most = most_data(random);
    data(random, most, out);
}

fn udp(random: &mut Rng, flow: &Flow, out: &mut Vec<u8>) {
    out.extend_from_slice(&flow.source_port.to_be_bytes());
    out.extend_from_slice(&flow.destination_port.to_be_bytes());
    out.extend_from_slice(&random.u32(..).to_be_bytes());
    if random.bool() {
        quic(random, out);
    }
    let most = most_data(random);
    data(random, most, out);
}

/// The start of a QUIC packet, whose connection ID most often names a backend of some service.
fn quic(random: &mut Rng, out: &mut Vec<u8>) {
    let start = out.len();
    let (rotation, length) = if random.bool() { QUIC } else { LONG_QUIC };
    let rotation = match random.u8(..12) {
        0 => 7,
        1 => random.u8(..8),
        _ => rotation,
    };
    let server = u64::from(random.u32(..BACKENDS + 4)).to_be_bytes();
    let mut id = vec![rotation << 5 | random.u8(..32)];
    id.extend_from_slice(&server[8 - usize::from(length)..]);
    id.resize(id.len() + random.usize(..8), random.u8(..));
    if random.bool() {
        out.push(random.u8(..) | 0x80);
        out.extend_from_slice(&[0, 0, 0, 1]);
        out.push(if once_in(random, 8) {
            random.u8(..22)
        } else {
            id.len() as u8
        });
    } else {
        out.push(random.u8(..) & 0x7f);
    }
    out.extend_from_slice(&id);
    if once_in(random, 8) {
        let keep = random.usize(..=out.len() - start);
        out.truncate(start + keep);
    }
}

/// Most packets are small, since the kernel's share of a run grows with them.
fn most_data(random: &mut Rng) -> usize {
    match random.u8(..64) {
        0 => 3_400,
        1..4 => 1_500,
        4..8 => 600,
        _ => 60,
    }
}

fn data(random: &mut Rng, most: usize, out: &mut Vec<u8>) {
    let length = random.usize(..=most);
    out.resize(out.len() + length, random.u8(..));
}

/// An error about the reply of the flow's backend, or another message. The quote is a whole packet, cut somewhere.
fn icmp(random: &mut Rng, flow: &Flow, other: &Flow, depth: u32, out: &mut Vec<u8>) {
    let kind = match (random.u8(..10), flow.is_v4()) {
        (0, _) => random.u8(..),
        (_, true) => [3, 3, 11, 12, 8][random.usize(..5)],
        (_, false) => [1, 2, 2, 3, 4, 128][random.usize(..6)],
    };
    let code = if random.bool() { 0 } else { random.u8(..16) };
    out.extend_from_slice(&[kind, code]);
    out.extend_from_slice(&random.u16(..).to_be_bytes());
    out.extend_from_slice(&random.u32(..).to_be_bytes());
    if depth >= DEPTH {
        return;
    }
    let about = if once_in(random, 8) { other } else { flow };
    // What a backend sent to the client; the message is for its sender, the VIP.
    let reply = about.reversed();
    let start = out.len();
    packet(random, &reply, other, depth + 1, out);
    if random.bool() {
        let keep = random.usize(20..=80);
        out.truncate(start + keep);
    }
}

/// A length that is most often right.
fn lie(random: &mut Rng, length: u16) -> u16 {
    match random.u8(..80) {
        0 => random.u16(..),
        1 => length.wrapping_add(1),
        2 => length.wrapping_sub(random.u16(1..=32)),
        _ => length,
    }
}
