//! Frames that read well in a test: what a packet is, not where its bytes lie.
//!
//! Built by `etherparse`, so that nothing the XDP program believes about headers is believed here too.

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv4Options,
    Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader,
};
use std::net::{IpAddr, SocketAddr};

/// MAC of whoever sent the frame to the balancer.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x01];
/// MAC of the balancer's interface.
pub const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x02];

/// Length of an Ethernet header without VLAN tags.
pub const ETHERNET: usize = 14;

/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// Flags of a TCP header (RFC 9293, section 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Aborts a connection.
    pub const RST: u8 = 0x04;
    /// Data should not wait.
    pub const PSH: u8 = 0x08;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

/// The L4 protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, a segment of an established connection.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// IP protocol number.
    pub fn number(self) -> IpNumber {
        match self {
            Self::Tcp => IpNumber::TCP,
            Self::Udp => IpNumber::UDP,
        }
    }
}

/// A TCP or UDP packet from the router to the balancer.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Source address and port.
    pub from: SocketAddr,
    /// Destination address and port, of the same family.
    pub to: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// VLAN tags, outermost first: EtherType, and the 16 bits of priority and VLAN.
    pub tags: Vec<(u16, u16)>,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 only.
    pub dont_fragment: bool,
    /// IPv4 only: more fragments follow.
    pub more_fragments: bool,
    /// IPv4 only: fragment offset in units of 8 bytes.
    pub fragment_offset: u16,
    /// IPv4 only: identification.
    pub id: u16,
    /// IPv4 only: options, a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6 only: extension headers, each with its protocol number and its bytes, of which the first will be replaced
    /// by the number of what follows.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// TCP only: flags, as in [`flag`].
    pub flags: u8,
    /// In place of the TCP or UDP header and what follows it: a message of ICMP, or of ICMPv6 over IPv6.
    pub icmp: Option<Vec<u8>>,
    /// What follows the TCP or UDP header.
    pub payload: Vec<u8>,
    /// Bytes after the end of the IP packet, as Ethernet pads short frames.
    pub padding: usize,
}

impl Packet {
    /// A packet with `payload` bytes of payload. Addresses are written as in `"10.0.0.1:80"`, `"[fd00::1]:80"`.
    ///
    /// # Panics
    /// If an address cannot be parsed.
    pub fn new(protocol: Protocol, from: &str, to: &str, payload: usize) -> Self {
        let parse =
            |text: &str| -> SocketAddr { text.parse().unwrap_or_else(|e| panic!("{text}: {e}")) };
        Self {
            from: parse(from),
            to: parse(to),
            protocol,
            tags: Vec::new(),
            traffic_class: 0,
            ttl: 57,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            id: 0x1d1d,
            options: Vec::new(),
            extensions: Vec::new(),
            flags: flag::ACK,
            icmp: None,
            payload: (0..payload).map(|i| i as u8).collect(),
            padding: 0,
        }
    }

    /// The bytes of the frame.
    pub fn frame(&self) -> Vec<u8> {
        let l4 = self.l4();
        let mut frame = self.link(ROUTER_MAC, BALANCER_MAC, self.from.is_ipv4());
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = self.ipv4(from.octets(), to.octets(), l4.len());
                header.header_checksum = header.calc_header_checksum();
                frame.extend_from_slice(&header.to_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let extensions = self.extension_headers();
                let mut header = self.ipv6(from.octets(), to.octets(), extensions.len() + l4.len());
                if let Some((first, _)) = self.extensions.first() {
                    header.next_header = IpNumber(*first);
                }
                frame.extend_from_slice(&header.to_bytes());
                frame.extend_from_slice(&extensions);
            }
            (from, to) => panic!("{from} and {to} are of two families"),
        }
        frame.extend_from_slice(&l4);
        // Not zeros: padding that a program took for data would show.
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }

    /// Protocol number of what follows the IP header and its extensions.
    fn number(&self) -> IpNumber {
        match (&self.icmp, self.from.is_ipv4()) {
            (None, _) => self.protocol.number(),
            (Some(_), true) => IpNumber::ICMP,
            (Some(_), false) => IpNumber::IPV6_ICMP,
        }
    }

    /// Bytes before the IP packet.
    pub fn l3_offset(&self) -> usize {
        ETHERNET + 4 * self.tags.len()
    }

    /// What `frame` should look like when it is sent on at layer 2, to this MAC.
    pub fn readdressed(&self, next_hop: [u8; 6]) -> Vec<u8> {
        let mut frame = self.frame();
        frame[..12].copy_from_slice(&ethernet(BALANCER_MAC, next_hop, true)[..12]);
        frame
    }

    /// The Ethernet header with the packet's tags, for a packet of either family.
    fn link(&self, source: [u8; 6], destination: [u8; 6], is_v4: bool) -> Vec<u8> {
        let mut header = ethernet(source, destination, is_v4);
        let ether_type = header.split_off(12);
        for (tag, control) in &self.tags {
            header.extend_from_slice(&tag.to_be_bytes());
            header.extend_from_slice(&control.to_be_bytes());
        }
        header.extend_from_slice(&ether_type);
        header
    }

    fn ipv4(&self, source: [u8; 4], destination: [u8; 4], payload: usize) -> Ipv4Header {
        Ipv4Header {
            dscp: (self.traffic_class >> 2).try_into().expect("six bits"),
            ecn: (self.traffic_class & 3).try_into().expect("two bits"),
            total_len: (20 + self.options.len() + payload) as u16,
            identification: self.id,
            dont_fragment: self.dont_fragment,
            more_fragments: self.more_fragments,
            fragment_offset: IpFragOffset::try_new(self.fragment_offset).expect("13 bits"),
            time_to_live: self.ttl,
            protocol: self.number(),
            header_checksum: 0,
            source,
            destination,
            options: Ipv4Options::try_from(self.options.as_slice()).expect("options in words"),
        }
    }

    fn ipv6(&self, source: [u8; 16], destination: [u8; 16], payload: usize) -> Ipv6Header {
        Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: Ipv6FlowLabel::try_new(0x54321).expect("20 bits"),
            payload_length: payload as u16,
            next_header: self.number(),
            hop_limit: self.ttl,
            source,
            destination,
        }
    }

    /// The extension headers, each naming what follows it.
    fn extension_headers(&self) -> Vec<u8> {
        let followers = self.extensions.iter().skip(1).map(|(number, _)| *number);
        let followers = followers.chain([self.number().0]);
        let mut all = Vec::new();
        for ((_, bytes), follower) in self.extensions.iter().zip(followers) {
            all.push(follower);
            all.extend_from_slice(&bytes[1..]);
        }
        all
    }

    /// The L4 header and the payload. Its checksum is left at 0: no balancer looks at it.
    fn l4(&self) -> Vec<u8> {
        if let Some(message) = &self.icmp {
            return message.clone();
        }
        let (source, destination) = (self.from.port(), self.to.port());
        let mut bytes = match self.protocol {
            Protocol::Tcp => {
                let is = |flag| self.flags & flag != 0;
                let header = TcpHeader {
                    fin: is(flag::FIN),
                    syn: is(flag::SYN),
                    rst: is(flag::RST),
                    psh: is(flag::PSH),
                    ack: is(flag::ACK),
                    ..TcpHeader::new(source, destination, 0x0102_0304, 0xffff)
                };
                header.to_bytes().to_vec()
            }
            Protocol::Udp => {
                let length = (8 + self.payload.len()) as u16;
                let header = UdpHeader {
                    source_port: source,
                    destination_port: destination,
                    length,
                    checksum: 0,
                };
                header.to_bytes().to_vec()
            }
        };
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// An Ethernet header for an IP packet.
pub fn ethernet(source: [u8; 6], destination: [u8; 6], is_v4: bool) -> Vec<u8> {
    let ether_type = if is_v4 {
        EtherType::IPV4
    } else {
        EtherType::IPV6
    };
    Ethernet2Header {
        source,
        destination,
        ether_type,
    }
    .to_bytes()
    .to_vec()
}

/// What `packet` should look like once it is encapsulated from `source` to `destination` and sent to `next_hop`;
/// `flow_label` is the outer one, if the outer header is IPv6.
///
/// # Panics
/// If the addresses are of two families.
pub fn encapsulated(
    packet: &Packet,
    source: IpAddr,
    destination: IpAddr,
    next_hop: [u8; 6],
    flow_label: u32,
) -> Vec<u8> {
    let inner = packet.frame().split_off(packet.l3_offset());
    let length = (inner.len() - packet.padding) as u16;
    let is_v4 = packet.from.is_ipv4();
    let protocol = if is_v4 {
        IpNumber::IPV4
    } else {
        IpNumber::IPV6
    };
    let outer = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let dont_fragment = !is_v4 || packet.dont_fragment;
            let mut header = Ipv4Header {
                total_len: 20 + length,
                // Fragments share an identification, and packets around them must not.
                identification: if is_v4 {
                    packet.id ^ packet.fragment_offset
                } else {
                    0
                },
                dont_fragment,
                more_fragments: false,
                fragment_offset: IpFragOffset::ZERO,
                time_to_live: 64,
                protocol,
                options: Ipv4Options::new(),
                ..packet.ipv4(source.octets(), destination.octets(), 0)
            };
            header.header_checksum = header.calc_header_checksum();
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                flow_label: Ipv6FlowLabel::try_new(flow_label).expect("20 bits"),
                payload_length: length,
                next_header: protocol,
                hop_limit: 64,
                ..packet.ipv6(source.octets(), destination.octets(), 0)
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        (source, destination) => panic!("{source} and {destination} are of two families"),
    };
    let mut frame = packet.link(BALANCER_MAC, next_hop, source.is_ipv4());
    outer.write(&mut frame).expect("a Vec takes every write");
    frame.extend_from_slice(&inner);
    frame
}
