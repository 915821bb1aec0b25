//! Whether this host has a socket that a packet is for.

use crate::tunnel::{Frame, Inner};
use aya_ebpf::{
    bindings::BPF_F_CURRENT_NETNS,
    helpers::generated::{
        bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    },
};
use lb_common::{
    address::Address,
    flow_table::{PacketKind, TcpFlags},
    header::{
        FRAGMENT_OFFSET, IcmpHeader, Ipv4Header, Ipv6Header, MORE_FRAGMENTS, PROTOCOL_ICMP,
        PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Ports,
    },
};
use lb_ebpf::packet::Header;

/// A flow of a client with this host.
pub struct Flow {
    is_v4: bool,
    client: Address,
    vip: Address,
    /// The source is the client's.
    ports: Ports,
    is_tcp: bool,
    /// Where the TCP header of a packet of the flow starts; 0 for an error about it.
    tcp: usize,
}

/// TCP's header (RFC 9293, section 3.1) without options.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpHeader {
    ports: Ports,
    numbers: [u32; 2],
    flags: TcpFlags,
    window: u16,
    checksum: u16,
    urgent: u16,
}

// SAFETY: `repr(C)`, integers only; its size says that there is no padding.
unsafe impl Header for TcpHeader {}

const _: () = assert!(size_of::<TcpHeader>() == 20);

impl Flow {
    /// The flow of the packet whose IP header is `inner`, at `offset`, or the one that an ICMP error quotes. None of what
    /// has no ports in their place: fragments, extension headers, other protocols.
    #[inline(always)]
    pub fn of<F: Frame>(frame: &F, offset: usize, inner: &Inner) -> Option<Self> {
        match inner {
            Inner::V4(header) => {
                let start = offset + length(header)?;
                if header.protocol == PROTOCOL_ICMP {
                    return Self::quoted(frame, start, true);
                }
                let flow = Self::v4(frame, start, header)?;
                Some(Self { tcp: start, ..flow })
            }
            Inner::V6(header) => {
                let start = offset + Ipv6Header::LENGTH;
                if header.next_header == PROTOCOL_ICMPV6 {
                    return Self::quoted(frame, start, false);
                }
                let flow = Self::v6(frame, start, header)?;
                Some(Self { tcp: start, ..flow })
            }
        }
    }

    /// The flow that the error at `offset` quotes, which this host has sent a packet of.
    #[inline(always)]
    fn quoted<F: Frame>(frame: &F, offset: usize, is_v4: bool) -> Option<Self> {
        let message: IcmpHeader = frame.load(offset)?;
        if !message.is_error(is_v4) {
            return None;
        }
        let quote = offset + IcmpHeader::LENGTH;
        let sent = if is_v4 {
            let header: Ipv4Header = frame.load(quote)?;
            Self::v4(frame, quote + length(&header)?, &header)?
        } else {
            let header: Ipv6Header = frame.load(quote)?;
            Self::v6(frame, quote + Ipv6Header::LENGTH, &header)?
        };
        Some(Self {
            client: sent.vip,
            vip: sent.client,
            ports: sent.ports.swapped(),
            ..sent
        })
    }

    #[inline(always)]
    fn v4<F: Frame>(frame: &F, start: usize, header: &Ipv4Header) -> Option<Self> {
        if u16::from_be(header.fragment) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
            return None;
        }
        Some(Self {
            is_v4: true,
            client: Address::from_v4_word(header.source),
            vip: Address::from_v4_word(header.destination),
            ports: frame.load(start)?,
            is_tcp: is_tcp(header.protocol)?,
            tcp: 0,
        })
    }

    #[inline(always)]
    fn v6<F: Frame>(frame: &F, start: usize, header: &Ipv6Header) -> Option<Self> {
        Some(Self {
            is_v4: false,
            client: header.source,
            vip: header.destination,
            ports: frame.load(start)?,
            is_tcp: is_tcp(header.next_header)?,
            tcp: 0,
        })
    }

    /// The kernel's `struct bpf_sock_tuple` and the bytes of it that count.
    #[inline(always)]
    fn tuple(&self) -> ([u32; 9], u32) {
        let Self { client, vip, .. } = self;
        let [a, b] = self.ports.source.to_ne_bytes();
        let [c, d] = self.ports.destination.to_ne_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        if self.is_v4 {
            let (client, vip) = (client.v4_word(), vip.v4_word());
            ([client, vip, ports, 0, 0, 0, 0, 0, 0], 12)
        } else {
            let ([a, b, c, d], [e, f, g, h]) = (client.0, vip.0);
            ([a, b, c, d, e, f, g, h, ports], 36)
        }
    }
}

/// Bytes of an IPv4 header with its options.
#[inline(always)]
fn length(header: &Ipv4Header) -> Option<usize> {
    let length = usize::from(header.version_ihl & 0xf) * 4;
    (length >= Ipv4Header::LENGTH).then_some(length)
}

#[inline(always)]
fn is_tcp(protocol: u8) -> Option<bool> {
    match protocol {
        PROTOCOL_TCP => Some(true),
        PROTOCOL_UDP => Some(false),
        _ => None,
    }
}

/// Whether this host has a socket for the packet. Of UDP any will do that would get it: what a socket has not been
/// connected for, it may have been asked before.
#[inline(always)]
pub fn takes<F: Frame>(frame: &F, flow: &Flow, inner: &Inner) -> bool {
    let (mut tuple, length) = flow.tuple();
    let tuple = (&raw mut tuple).cast();
    let (context, here) = (frame.context(), BPF_F_CURRENT_NETNS as u64);
    if !flow.is_tcp {
        // SAFETY: context and tuple live; a socket that is found is given back.
        unsafe {
            let socket = bpf_sk_lookup_udp(context, tuple, length, here, 0);
            let is_found = !socket.is_null();
            if is_found {
                bpf_sk_release(socket.cast());
            }
            return is_found;
        }
    }
    // Read before there is a socket to give back.
    let header = match flow.tcp {
        0 => None,
        start => frame.load::<TcpHeader>(start),
    };
    const LISTEN: u32 = 10;
    // SAFETY: as above.
    unsafe {
        let socket = bpf_skc_lookup_tcp(context, tuple, length, here, 0);
        if socket.is_null() {
            return false;
        }
        let takes = (*socket).state != LISTEN
            || header.is_some_and(|header| begins(socket.cast(), inner, header));
        bpf_sk_release(socket.cast());
        takes
    }
}

/// Whether a listening socket takes the packet: it opens a connection, or it answers a SYN cookie, of which the host
/// remembers nothing.
#[inline(always)]
fn begins(listener: *mut core::ffi::c_void, inner: &Inner, mut header: TcpHeader) -> bool {
    match header.flags.kind() {
        PacketKind::TcpSyn => return true,
        PacketKind::Tcp => {}
        PacketKind::TcpEnd | PacketKind::Udp => return false,
    }
    let tcp = (&raw mut header).cast();
    let length = TcpHeader::LENGTH as u32;
    // SAFETY: the caller holds the socket; both headers are copies on the stack, of these lengths.
    let answer = unsafe {
        match *inner {
            Inner::V4(mut ip) => bpf_tcp_check_syncookie(
                listener,
                (&raw mut ip).cast(),
                Ipv4Header::LENGTH as u32,
                tcp,
                length,
            ),
            Inner::V6(mut ip) => bpf_tcp_check_syncookie(
                listener,
                (&raw mut ip).cast(),
                Ipv6Header::LENGTH as u32,
                tcp,
                length,
            ),
        }
    };
    answer == 0
}
