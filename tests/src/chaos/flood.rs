//! A SYN flood: real frames from random sources, sent through an AF_PACKET socket as fast as it takes them.

use crate::{
    netns::Namespace,
    topology::{CLIENT_V4, VIP_V4},
};
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use std::{
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

/// Where the sources are: 10.9.0.0/16, which the router routes to the client. Nobody has these addresses.
const SOURCES: [u8; 2] = [10, 9];
/// Different frames; they are sent round and round.
const FRAMES: usize = 1 << 17;
/// Frames in one system call.
const BATCH: usize = 64;
/// Ethernet, IPv4 and TCP headers without options.
const LENGTH: usize = 14 + 20 + 20;

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Frames that the kernel took.
    pub(super) packets: u64,
    /// Time of sending.
    pub(super) time: Duration,
}

/// Lets answers to the flood's sources find their way to the client, which drops them.
///
/// # Errors
/// When the router refuses the route.
pub(super) fn route_back(router: &Namespace) -> Result<()> {
    let [a, b] = SOURCES;
    router.ip(&format!("route add {a}.{b}.0.0/16 via {CLIENT_V4}"))
}

/// Frames of a flood to a port of the VIP.
#[derive(Debug)]
pub(super) struct Flood {
    frames: Vec<u8>,
    socket: OwnedFd,
}

impl Flood {
    /// Makes the frames and the socket. Call it in the client's namespace.
    ///
    /// # Errors
    /// When the client has no `eth0`, no route to its router, or the kernel refuses the socket.
    pub(super) fn new(port: u16, router: [u8; 6], seed: u64) -> Result<Self> {
        let index = nix::net::if_::if_nametoindex("eth0").context("the client has no eth0")?;
        Ok(Self {
            frames: frames(port, router, seed)?,
            socket: socket(index)?,
        })
    }

    /// Sends for `time`.
    ///
    /// # Errors
    /// What the kernel says, unless it is that its queue is full.
    pub(super) fn send(&self, time: Duration) -> Result<Sent> {
        let mut buffers: Vec<libc::iovec> = self
            .frames
            .chunks_exact(LENGTH)
            .map(|frame| libc::iovec {
                // sendmmsg(2) only reads from it.
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: LENGTH,
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = buffers.iter_mut().map(message).collect();
        let start = Instant::now();
        let mut packets = 0;
        'sending: loop {
            for batch in messages.chunks_mut(BATCH) {
                if start.elapsed() >= time {
                    break 'sending;
                }
                // SAFETY: the messages point to `buffers`, those to `self.frames`, and all live on; the count is theirs.
                let taken = unsafe {
                    libc::sendmmsg(
                        self.socket.as_raw_fd(),
                        batch.as_mut_ptr(),
                        batch.len() as u32,
                        0,
                    )
                };
                if taken >= 0 {
                    packets += taken as u64;
                    continue;
                }
                let error = io::Error::last_os_error();
                let full = [libc::ENOBUFS, libc::EAGAIN, libc::EINTR];
                ensure!(
                    error
                        .raw_os_error()
                        .is_some_and(|code| full.contains(&code)),
                    "cannot send a frame: {error}"
                );
            }
        }
        Ok(Sent {
            packets,
            time: start.elapsed(),
        })
    }
}

fn message(buffer: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: zeroes are a valid msghdr: no address, no buffers, no control data.
    let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
    message.msg_hdr.msg_iov = buffer;
    message.msg_hdr.msg_iovlen = 1;
    message
}

fn frames(port: u16, router: [u8; 6], seed: u64) -> Result<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut frames = Vec::with_capacity(FRAMES * LENGTH);
    for _ in 0..FRAMES {
        let [a, b] = SOURCES;
        let source = Ipv4Addr::new(a, b, random.u8(..), random.u8(1..=254));
        // The router does not look at the sender's MAC.
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], router)
            .ipv4(source.octets(), VIP_V4.octets(), 64)
            .tcp(random.u16(1_024..), port, random.u32(..), 64_240)
            .syn()
            .write(&mut frames, &[])?;
    }
    ensure!(
        frames.len() == FRAMES * LENGTH,
        "frames of another length than {LENGTH}"
    );
    Ok(frames)
}

/// A socket that sends whole frames on an interface and receives nothing.
fn socket(interface: u32) -> Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let descriptor =
        unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    ensure!(
        descriptor >= 0,
        "no AF_PACKET socket: {}",
        io::Error::last_os_error()
    );
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: zeroes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = interface as i32;
    // SAFETY: the pointer and the length are those of `address`.
    let bound = unsafe {
        libc::bind(
            descriptor,
            (&raw const address).cast(),
            mem::size_of_val(&address) as u32,
        )
    };
    ensure!(
        bound == 0,
        "cannot bind the AF_PACKET socket: {}",
        io::Error::last_os_error()
    );
    // Straight to the driver. Where the kernel has no such option, frames take the longer way.
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of `on`.
    let _ = unsafe {
        libc::setsockopt(
            descriptor,
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            mem::size_of_val(&on) as u32,
        )
    };
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    #[test]
    fn frames_are_syns_with_right_checksums_from_the_routed_sources() {
        let frames = frames(80, [2; 6], 1).unwrap();
        for frame in frames.chunks_exact(LENGTH).take(100) {
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) =
                (packet.net, packet.transport)
            else {
                panic!("no TCP over IPv4")
            };
            let ip = ip.header().to_header();
            assert_eq!(ip.source[..2], SOURCES);
            assert_eq!(ip.destination, VIP_V4.octets());
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert!(tcp.syn() && !tcp.ack());
            assert_eq!(tcp.destination_port(), 80);
            assert_eq!(
                tcp.checksum(),
                tcp.to_header().calc_checksum_ipv4(&ip, &[]).unwrap()
            );
        }
    }
}
