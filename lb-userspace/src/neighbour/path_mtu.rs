//! What routers behind the first hop say of packets that are too large for the way to a backend (RFC 1191, RFC 8201): for an
//! encapsulated packet they tell the host that encapsulated it, not the client. The fast path then tells clients.
//!
//! **Invariants.** What is told counts for a backend's address only, never lowers an MTU below the floor of its family, and is
//! forgotten after `table::PATH_MTU_AGE`.

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
};
use tokio::net::UdpSocket;
use tracing::warn;

/// Lowest MTU that is believed: 576 bytes is what every IPv4 host takes (RFC 791), 1,280 every IPv6 link (RFC 8200).
const FLOOR_V4: u16 = 576;
const FLOOR_V6: u16 = 1_280;
/// What we send to backends: IPv4 or IPv6 in IP, and UDP.
const TUNNELS: [u8; 3] = [4, 41, 17];
/// Bits of `struct icmp_filter` and `struct icmp6_filter` (linux/icmp.h, linux/icmpv6.h): types that are kept away.
const ONLY_UNREACHABLE: [u32; 1] = [!(1 << 3)];
const ONLY_TOO_BIG: [u32; 8] = {
    let mut blocked = [u32::MAX; 8];
    blocked[0] = !(1 << 2);
    blocked
};
/// `ICMP_FILTER` and `ICMPV6_FILTER`, of the levels `SOL_RAW` and `SOL_ICMPV6`.
const FILTER: libc::c_int = 1;
const SOL_RAW: libc::c_int = 255;
const SOL_ICMPV6: libc::c_int = 58;

/// Packets to `address` may have `mtu` bytes at the most, outer header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathMtu {
    pub(super) address: IpAddr,
    pub(super) mtu: u16,
}

/// Raw sockets that hear what is told to this host; tokio has no type of their own for them.
#[derive(Debug)]
pub(super) struct Listener {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Listener {
    /// Opens the sockets. What cannot be opened is said and done without.
    pub(super) fn open() -> Self {
        let v4 = open(
            AddressFamily::Inet,
            SockProtocol::Icmp,
            SOL_RAW,
            &ONLY_UNREACHABLE,
        );
        let v6 = open(
            AddressFamily::Inet6,
            SockProtocol::IcmpV6,
            SOL_ICMPV6,
            &ONLY_TOO_BIG,
        );
        for (family, socket) in [("IPv4", &v4), ("IPv6", &v6)] {
            if let Err(error) = socket {
                warn!(
                    "what routers say of packets that are too large will not be heard over {family}, for which lbd needs CAP_NET_RAW: {error}"
                );
            }
        }
        Self {
            v4: v4.ok(),
            v6: v6.ok(),
        }
    }

    /// The next thing told. Cancel safe.
    pub(super) async fn listen(&self) -> PathMtu {
        tokio::select! {
            told = next(self.v4.as_ref(), read_v4) => told,
            told = next(self.v6.as_ref(), read_v6) => told,
        }
    }
}

fn open(
    family: AddressFamily,
    protocol: SockProtocol,
    level: libc::c_int,
    filter: &[u32],
) -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Raw, flags, protocol)?;
    // SAFETY: the kernel reads as many bytes of `filter` as are said to be there, during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            FILTER,
            filter.as_ptr().cast(),
            size_of_val(filter) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

async fn next(socket: Option<&UdpSocket>, read: fn(&[u8]) -> Option<PathMtu>) -> PathMtu {
    let Some(socket) = socket else {
        return std::future::pending().await;
    };
    let mut message = [0; 576];
    loop {
        let received = socket.recv(&mut message).await;
        // An error of one message, such as ENOBUFS, says nothing of the next.
        let length = received.unwrap_or_default();
        if let Some(told) = message.get(..length).and_then(read) {
            return told;
        }
    }
}

/// Reads an IPv4 packet with a "fragmentation needed" about a packet of ours.
fn read_v4(packet: &[u8]) -> Option<PathMtu> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let icmp = packet.get(header..)?;
    let &[3, 4, _, _, _, _, high, low, ref quote @ ..] = icmp else {
        return None;
    };
    let destination: [u8; 4] = quote.get(16..20)?.try_into().ok()?;
    let ours = quote.first()? >> 4 == 4 && TUNNELS.contains(quote.get(9)?);
    // Routers from before RFC 1191 tell no size.
    let mtu = u16::from_be_bytes([high, low]);
    (ours && mtu != 0).then(|| PathMtu {
        address: Ipv4Addr::from(destination).into(),
        mtu: mtu.max(FLOOR_V4),
    })
}

/// Reads an ICMPv6 message that says "packet too big" about a packet of ours.
fn read_v6(icmp: &[u8]) -> Option<PathMtu> {
    let &[2, _, _, _, a, b, c, d, ref quote @ ..] = icmp else {
        return None;
    };
    let destination: [u8; 16] = quote.get(24..40)?.try_into().ok()?;
    let ours = quote.first()? >> 4 == 6 && TUNNELS.contains(quote.get(6)?);
    let mtu = u16::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    ours.then(|| PathMtu {
        address: Ipv6Addr::from(destination).into(),
        mtu: mtu.max(FLOOR_V6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(mtu: u16, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend([3, 4, 0, 0, 0, 0]);
        packet.extend(mtu.to_be_bytes());
        let mut quote = vec![0; 28];
        quote[0] = 0x45;
        quote[9] = protocol;
        quote[16..20].copy_from_slice(&[10, 3, 1, 2]);
        [packet, quote].concat()
    }

    fn v6(mtu: u32, protocol: u8) -> Vec<u8> {
        let mut message = vec![2, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        let mut quote = vec![0; 48];
        quote[0] = 0x60;
        quote[6] = protocol;
        quote[24..40].copy_from_slice(&"fd00:3::2".parse::<Ipv6Addr>().unwrap().octets());
        [message, quote].concat()
    }

    fn told(address: &str, mtu: u16) -> Option<PathMtu> {
        let address = address.parse().unwrap();
        Some(PathMtu { address, mtu })
    }

    #[test]
    fn what_is_told_of_our_packets_is_read_and_kept_above_the_floor() {
        for protocol in TUNNELS {
            assert_eq!(read_v4(&v4(1_400, protocol)), told("10.3.1.2", 1_400));
            assert_eq!(read_v6(&v6(1_400, protocol)), told("fd00:3::2", 1_400));
        }
        assert_eq!(read_v4(&v4(68, 4)), told("10.3.1.2", 576));
        assert_eq!(read_v6(&v6(0, 41)), told("fd00:3::2", 1_280));
        let mut options = v4(1_400, 4);
        options[0] = 0x46;
        options.splice(20..20, [1; 4]);
        assert_eq!(read_v4(&options), told("10.3.1.2", 1_400));
    }

    #[test]
    fn anything_else_is_left_alone() {
        assert_eq!(read_v4(&v4(0, 4)), None, "no size");
        assert_eq!(read_v4(&v4(1_400, 6)), None, "not a tunnel");
        assert_eq!(read_v6(&v6(1_400, 58)), None, "not a tunnel");
        assert_eq!(read_v6(&v6(100_000, 41)), None, "no size of a packet");
        for (at, value) in [(20, 11), (21, 3), (28, 0x65)] {
            let mut packet = v4(1_400, 4);
            packet[at] = value;
            assert_eq!(read_v4(&packet), None, "byte {at}");
        }
        let (v4, v6) = (v4(1_400, 4), v6(1_400, 41));
        for length in 0..48 {
            assert_eq!(read_v4(&v4[..length]), None, "{length} bytes");
            assert_eq!(read_v6(&v6[..length]), None, "{length} bytes");
        }
    }
}
