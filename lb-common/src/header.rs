//! Ethernet and IP headers as they lie in a frame, and the outer headers that encapsulation adds.
//!
//! **Invariants.** Multi-byte fields are in network byte order, as in the packet; arguments and results that are in
//! host order say so. Fields are whole words rather than byte arrays because eBPF copies words in one instruction
//! each (the headers of network-types are byte arrays; its numbers are used). No type has implicit padding and every
//! bit pattern is valid, so a header can be read from any bytes.

use crate::{address::Address, checksum};
use network_types::{eth::EtherType, ip::IpProto};

/// EtherType of IPv4, as it lies in the frame.
pub const ETHERTYPE_IPV4: u16 = EtherType::Ipv4 as u16;
/// EtherType of IPv6, as it lies in the frame.
pub const ETHERTYPE_IPV6: u16 = EtherType::Ipv6 as u16;
/// EtherType of a customer's VLAN tag (IEEE 802.1Q), as it lies in the frame.
pub const ETHERTYPE_VLAN: u16 = EtherType::Ieee8021q as u16;
/// EtherType of a service provider's VLAN tag (IEEE 802.1ad), as it lies in the frame.
pub const ETHERTYPE_SERVICE_VLAN: u16 = EtherType::Ieee8021ad as u16;

/// IP protocol number of IPv4 in IP (RFC 2003).
pub const PROTOCOL_IPV4: u8 = IpProto::Ipv4 as u8;
/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = IpProto::Icmp as u8;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = IpProto::Tcp as u8;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = IpProto::Udp as u8;
/// IP protocol number of IPv6 in IP (RFC 2473, RFC 4213).
pub const PROTOCOL_IPV6: u8 = IpProto::Ipv6 as u8;
/// IPv6 hop-by-hop options, an extension header (RFC 8200, section 4.3).
pub const PROTOCOL_HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
/// IPv6 routing header (RFC 8200, section 4.4).
pub const PROTOCOL_ROUTING: u8 = IpProto::Ipv6Route as u8;
/// IPv6 fragment header (RFC 8200, section 4.5).
pub const PROTOCOL_FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
/// Authentication header (RFC 4302).
pub const PROTOCOL_AUTHENTICATION: u8 = IpProto::Ah as u8;
/// IPv6 destination options (RFC 8200, section 4.6).
pub const PROTOCOL_DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;

/// Flag "more fragments" of [`Ipv4Header::fragment`], host order.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Flag "don't fragment" of [`Ipv4Header::fragment`], host order.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Fragment offset in [`Ipv4Header::fragment`], host order.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// TTL or hop limit of an outer header: the recommended default (RFC 1700), enough for any data centre.
pub const OUTER_TTL: u8 = 64;

/// Two half words, one behind the other, as a word.
#[inline(always)]
pub const fn word(first: u16, second: u16) -> u32 {
    if cfg!(target_endian = "little") {
        first as u32 | (second as u32) << 16
    } else {
        (first as u32) << 16 | second as u32
    }
}

/// A MAC address as three 16-bit words, as they lie in the frame.
pub type Mac = [u16; 3];

/// Ethernet header, untagged; of a tagged frame the part before the first tag's control field.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetHeader {
    /// Destination MAC.
    pub destination: Mac,
    /// Source MAC.
    pub source: Mac,
    /// One of `ETHERTYPE_*`, or another.
    pub ethertype: u16,
}

impl EthernetHeader {
    /// Whether it is addressed to a group of hosts: multicast or broadcast.
    #[inline(always)]
    pub const fn is_to_group(&self) -> bool {
        self.destination[0].to_ne_bytes()[0] & 1 != 0
    }
}

/// A VLAN tag without its EtherType, which stands where an untagged frame has that of its payload, and with the
/// EtherType that follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Priority, drop eligibility and VLAN identifier.
    pub control: u16,
    /// What comes next: as in [`EthernetHeader::ethertype`].
    pub ethertype: u16,
}

/// Ethernet header with one VLAN tag.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaggedHeader {
    /// Addresses and the tag's EtherType.
    pub ethernet: EthernetHeader,
    /// The tag.
    pub tag: VlanTag,
}

/// Ethernet header with two VLAN tags.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubleTaggedHeader {
    /// Addresses and the outer tag's EtherType.
    pub ethernet: EthernetHeader,
    /// The outer tag.
    pub outer: VlanTag,
    /// The inner tag.
    pub inner: VlanTag,
}

/// The header of a frame up to the IP packet, with or without VLAN tags.
pub trait LinkHeader: Copy {
    /// The part with the addresses.
    fn ethernet(&mut self) -> &mut EthernetHeader;

    /// The EtherType of the payload.
    fn ethertype(&mut self) -> &mut u16;

    /// The same header before another payload: other addresses, the same tags.
    #[inline(always)]
    fn readdressed(mut self, destination: Mac, source: Mac, ethertype: u16) -> Self {
        let ethernet = self.ethernet();
        (ethernet.destination, ethernet.source) = (destination, source);
        *self.ethertype() = ethertype;
        self
    }

    /// The destination MAC.
    #[inline(always)]
    fn destination(mut self) -> Mac {
        self.ethernet().destination
    }

    /// The header of an answer: back to where the frame came from, with the same tags.
    #[inline(always)]
    fn returned(mut self) -> Self {
        let ethernet = self.ethernet();
        (ethernet.destination, ethernet.source) = (ethernet.source, ethernet.destination);
        self
    }
}

impl LinkHeader for EthernetHeader {
    #[inline(always)]
    fn ethernet(&mut self) -> &mut EthernetHeader {
        self
    }

    #[inline(always)]
    fn ethertype(&mut self) -> &mut u16 {
        &mut self.ethertype
    }
}

impl LinkHeader for TaggedHeader {
    #[inline(always)]
    fn ethernet(&mut self) -> &mut EthernetHeader {
        &mut self.ethernet
    }

    #[inline(always)]
    fn ethertype(&mut self) -> &mut u16 {
        &mut self.tag.ethertype
    }
}

impl LinkHeader for DoubleTaggedHeader {
    #[inline(always)]
    fn ethernet(&mut self) -> &mut EthernetHeader {
        &mut self.ethernet
    }

    #[inline(always)]
    fn ethertype(&mut self) -> &mut u16 {
        &mut self.inner.ethertype
    }
}

/// IPv4 header without options (RFC 791, section 3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Version in the high four bits, header length in 32-bit words in the low four.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Length of header and payload, in bytes.
    pub total_length: u16,
    /// Groups the fragments of a packet.
    pub id: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: u16,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// IPv6 header (RFC 8200, section 3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Header {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_label: u32,
    /// Bytes after this header.
    pub payload_length: u16,
    /// Protocol of the payload or of the first extension header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

/// The first four bytes of an IPv6 extension header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionHeader {
    /// Protocol of what follows.
    pub next_header: u8,
    /// Length, in units that [`ExtensionHeader::bytes`] knows.
    pub length: u8,
    /// Of a fragment header, offset and flags; of a routing header, type and segments left.
    pub word: u16,
}

impl ExtensionHeader {
    /// Whether `protocol` is that of an extension header that can be skipped.
    #[inline(always)]
    pub const fn is(protocol: u8) -> bool {
        matches!(
            protocol,
            PROTOCOL_HOP_BY_HOP
                | PROTOCOL_ROUTING
                | PROTOCOL_FRAGMENT
                | PROTOCOL_AUTHENTICATION
                | PROTOCOL_DESTINATION_OPTIONS
        )
    }

    /// Bytes of the whole header, if it is one of this protocol.
    #[inline(always)]
    pub const fn bytes(&self, protocol: u8) -> usize {
        match protocol {
            PROTOCOL_FRAGMENT => 8,
            PROTOCOL_AUTHENTICATION => (self.length as usize + 2) * 4,
            _ => (self.length as usize + 1) * 8,
        }
    }

    /// Of a routing header: whether its destination is but a stop on the way.
    #[inline(always)]
    pub const fn is_routed_on(&self) -> bool {
        self.word.to_ne_bytes()[1] != 0
    }

    /// Of a fragment header: whether it is a later fragment than the first.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        u16::from_be(self.word) & 0xfff8 != 0
    }

    /// Of a fragment header: whether more fragments follow.
    #[inline(always)]
    pub const fn has_more_fragments(&self) -> bool {
        u16::from_be(self.word) & 1 != 0
    }
}

/// The last four bytes of an IPv6 fragment header: the identification.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentId(pub u32);

/// Any sixteen bytes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words(pub [u16; 8]);

/// The first four bytes of TCP and UDP.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

/// The headers of an untagged frame of IPv4 with TCP or UDP, without options.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainV4 {
    /// Link header.
    pub ethernet: EthernetHeader,
    /// IP header.
    pub ip: Ipv4Header,
    /// What TCP and UDP begin with.
    pub ports: Ports,
}

/// The headers of an untagged frame of IPv6 with TCP or UDP, without extension headers.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainV6 {
    /// Link header.
    pub ethernet: EthernetHeader,
    /// IP header.
    pub ip: Ipv6Header,
    /// What TCP and UDP begin with.
    pub ports: Ports,
}

const _: () = assert!(size_of::<PlainV4>() == 14 + 20 + 4);
const _: () = assert!(size_of::<PlainV6>() == 14 + 40 + 4);
const _: () = assert!(size_of::<EthernetHeader>() == 14);
const _: () = assert!(size_of::<VlanTag>() == 4);
const _: () = assert!(size_of::<TaggedHeader>() == 18);
const _: () = assert!(size_of::<DoubleTaggedHeader>() == 22);
const _: () = assert!(size_of::<Ipv4Header>() == 20);
const _: () = assert!(size_of::<Ipv6Header>() == 40);
const _: () = assert!(size_of::<ExtensionHeader>() == 4);
const _: () = assert!(size_of::<FragmentId>() == 4);
const _: () = assert!(size_of::<Ports>() == 4);
const _: () = assert!(size_of::<IcmpHeader>() == 8);

impl Ports {
    /// Those of the other direction.
    #[inline(always)]
    pub const fn swapped(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
        }
    }
}

/// What precedes the quoted packet in an error of ICMP (RFC 792) or ICMPv6 (RFC 4443).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpHeader {
    /// Type of the message.
    pub kind: u8,
    /// What it means depends on the type.
    pub code: u8,
    /// Checksum of the message.
    pub checksum: u16,
    /// A pointer, an MTU or nothing.
    pub rest: u32,
}

impl IcmpHeader {
    /// Whether the message is an error about a packet, which it quotes: of ICMP destination unreachable, time exceeded
    /// and parameter problem; of ICMPv6 those and packet too big.
    #[inline(always)]
    pub const fn is_error(&self, is_v4: bool) -> bool {
        if is_v4 {
            matches!(self.kind, 3 | 11 | 12)
        } else {
            matches!(self.kind, 1..=4)
        }
    }
}

/// What an outer header takes from the packet that it will carry.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    /// [`PROTOCOL_IPV4`] or [`PROTOCOL_IPV6`].
    pub protocol: u8,
    /// What the first word of an IPv4 header would be that had no other length than the inner packet's ([`Inner::start`]), host order.
    pub start: u32,
    /// The second word of an IPv4 header, as it lies in memory ([`Inner::id_and_flags`]).
    pub id_and_flags: u32,
}

impl Inner {
    /// DSCP and ECN, which are copied (the uniform model of RFC 2983 and the normal mode of RFC 6040), and the length of the inner
    /// IP packet in bytes, host order, without Ethernet padding, in a word.
    #[inline(always)]
    pub const fn start(traffic_class: u8, length: u16) -> u32 {
        0x45 << 24 | (traffic_class as u32) << 16 | length as u32
    }

    /// The identification of an inner packet, network order, and whether routers must not fragment it, in a word. That is always so for IPv6,
    /// which has none. An unfragmentable packet is atomic and needs no identification, but may have any (RFC 6864, section 4.1); for others that of
    /// the inner packet is as unique as its sender made it.
    #[inline(always)]
    pub const fn id_and_flags(id: u16, dont_fragment: bool) -> u32 {
        let flags = if dont_fragment { DONT_FRAGMENT } else { 0 };
        word(id, flags.to_be())
    }

    /// DSCP and ECN.
    #[inline(always)]
    const fn traffic_class(&self) -> u8 {
        (self.start >> 16) as u8
    }

    /// Length of the inner IP packet in bytes, host order.
    #[inline(always)]
    pub const fn length(&self) -> u16 {
        self.start as u16
    }
}

/// Source and destination of an outer IPv4 header.
#[derive(Clone, Copy, Debug)]
pub struct EndsV4 {
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// A sum of the 16-bit words of both, as they lie in memory, of 17 bits at the most.
    pub sum: u32,
}

impl EndsV4 {
    /// From one address to another.
    pub const fn new(source: u32, destination: u32) -> Self {
        let sum = checksum::halves(source) + checksum::halves(destination);
        let sum = checksum::halves(sum);
        Self {
            source,
            destination,
            sum,
        }
    }
}

impl Ipv4Header {
    /// The outer header of `inner` (RFC 2003, section 3.1; RFC 4213, section 3.5).
    /// The sum of the lengths must not exceed [`crate::mtu::LARGEST`].
    #[inline(always)]
    pub fn encapsulating(inner: &Inner, ends: EndsV4) -> Self {
        let first = inner.start.wrapping_add(size_of::<Self>() as u32).to_be();
        let second = inner.id_and_flags;
        let third = u16::from_ne_bytes([OUTER_TTL, inner.protocol]);
        let sum = u64::from(third) + u64::from(ends.sum) + u64::from(first) + u64::from(second);
        let checksum = if cfg!(target_endian = "little") {
            checksum::finish_small(sum)
        } else {
            checksum::finish_words(sum)
        };
        let third = word(third, checksum);
        let words = [first, second, third, ends.source, ends.destination];
        // SAFETY: both are 20 bytes, and every bit pattern is a header.
        unsafe { core::mem::transmute(words) }
    }

    /// The checksum that this header should carry, computed as if it carried 0.
    #[inline(always)]
    pub fn sum(&self) -> u16 {
        let header = Self {
            checksum: 0,
            ..*self
        };
        // SAFETY: a header is 20 bytes without padding, so every byte is initialised.
        let words: [u32; 5] = unsafe { core::mem::transmute(header) };
        checksum::finish_words(words.into_iter().map(u64::from).sum())
    }
}

impl Ipv6Header {
    /// The outer header of `inner` (RFC 2473, section 3; RFC 4213 the other way round). The high 20 bits of
    /// `flow_hash` become the flow label, so that routers and network cards spread tunnelled flows (RFC 6438).
    #[inline(always)]
    pub fn encapsulating(
        inner: &Inner,
        source: Address,
        destination: Address,
        flow_hash: u64,
    ) -> Self {
        let label = (flow_hash >> 44) as u32;
        Self {
            version_class_label: (6 << 28 | u32::from(inner.traffic_class()) << 20 | label).to_be(),
            payload_length: inner.length().to_be(),
            next_header: inner.protocol,
            hop_limit: OUTER_TTL,
            source,
            destination,
        }
    }

    /// IP version.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (u32::from_be(self.version_class_label) >> 28) as u8
    }

    /// DSCP and ECN.
    #[inline(always)]
    pub const fn traffic_class(&self) -> u8 {
        (u32::from_be(self.version_class_label) >> 20) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mtu;

    const INNER: Inner = Inner {
        protocol: PROTOCOL_IPV4,
        start: Inner::start(0xb9, 1_400),
        id_and_flags: Inner::id_and_flags(0x1234, false),
    };

    fn v4(header: Ipv4Header) -> [u8; 20] {
        // SAFETY: Ipv4Header is 20 bytes without padding.
        unsafe { core::mem::transmute(header) }
    }

    #[test]
    fn numbers_are_those_of_the_registries() {
        assert_eq!(ETHERTYPE_IPV4.to_ne_bytes(), [0x08, 0x00]);
        assert_eq!(ETHERTYPE_IPV6.to_ne_bytes(), [0x86, 0xdd]);
        assert_eq!(ETHERTYPE_VLAN.to_ne_bytes(), [0x81, 0x00]);
        assert_eq!(ETHERTYPE_SERVICE_VLAN.to_ne_bytes(), [0x88, 0xa8]);
        let protocols = [PROTOCOL_IPV4, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_IPV6];
        assert_eq!(protocols, [4, 6, 17, 41]);
        assert_eq!([PROTOCOL_ICMP, PROTOCOL_ICMPV6], [1, 58]);
        let extensions: Vec<u8> = (0..=255).filter(|p| ExtensionHeader::is(*p)).collect();
        assert_eq!(extensions, [0, 43, 44, 51, 60]);
    }

    #[test]
    fn extension_headers_know_their_length_and_meaning() {
        let header = |length, word: [u8; 2]| ExtensionHeader {
            next_header: 6,
            length,
            word: u16::from_ne_bytes(word),
        };
        for (protocol, length, bytes) in [
            (0, 0, 8),
            (43, 2, 24),
            (60, 255, 2_048),
            (44, 255, 8),
            (51, 4, 24),
            (51, 255, 1_028),
        ] {
            assert_eq!(header(length, [0, 0]).bytes(protocol), bytes, "{protocol}");
        }
        assert!(header(2, [0, 1]).is_routed_on() && !header(2, [4, 0]).is_routed_on());
        for (word, later, more) in [
            ([0, 0], false, false),
            ([0, 1], false, true),
            ([0, 8], true, false),
            ([1, 1], true, true),
            ([0, 6], false, false),
        ] {
            let header = header(0, word);
            let found = (header.is_later_fragment(), header.has_more_fragments());
            assert_eq!(found, (later, more), "{word:?}");
        }
    }

    #[test]
    fn errors_are_told_from_other_messages() {
        let errors = |is_v4| -> Vec<u8> {
            let header = |kind| IcmpHeader {
                kind,
                code: 3,
                checksum: 0,
                rest: 0,
            };
            (0..=255)
                .filter(|kind| header(*kind).is_error(is_v4))
                .collect()
        };
        assert_eq!(errors(true), [3, 11, 12]);
        assert_eq!(errors(false), [1, 2, 3, 4]);
    }

    #[test]
    fn outer_ipv4_header_byte_by_byte() {
        let source = u32::from_ne_bytes([10, 0, 0, 1]);
        let destination = u32::from_ne_bytes([10, 0, 0, 2]);
        let bytes = v4(Ipv4Header::encapsulating(
            &INNER,
            EndsV4::new(source, destination),
        ));
        assert_eq!(
            bytes[..10],
            [
                0x45,
                0xb9,
                0x05,
                0x8c,
                0x34_u8.swap_bytes(),
                0x12,
                0,
                0,
                64,
                4
            ]
        );
        assert_eq!(bytes[12..], [10, 0, 0, 1, 10, 0, 0, 2]);
        let sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        assert_eq!(
            checksum::finish(sum),
            0,
            "a header with a right checksum sums to all ones"
        );
    }

    #[test]
    fn dont_fragment_and_the_id_are_copied() {
        for (dont_fragment, flags) in [(true, DONT_FRAGMENT), (false, 0)] {
            let inner = Inner {
                id_and_flags: Inner::id_and_flags(0x1234, dont_fragment),
                ..INNER
            };
            let header = Ipv4Header::encapsulating(&inner, EndsV4::new(1, 2));
            assert_eq!((header.fragment, header.id), (flags.to_be(), 0x1234));
        }
    }

    #[test]
    fn every_header_has_the_right_checksum() {
        let words = [
            0,
            1,
            0xffff,
            0x1_0000,
            0xfffe_ffff,
            0xffff_ffff,
            0x0a00_0001,
        ];
        for (source, destination) in words
            .iter()
            .flat_map(|source| words.iter().map(move |destination| (*source, *destination)))
        {
            let lengths = [1_400, 0x00ff, mtu::LARGEST - 1, mtu::LARGEST];
            for (dont_fragment, length) in lengths.into_iter().flat_map(|l| [(false, l), (true, l)])
            {
                let inner = Inner {
                    protocol: 0xff,
                    start: Inner::start(0xff, length - size_of::<Ipv4Header>() as u16),
                    id_and_flags: Inner::id_and_flags(0xffff, dont_fragment),
                };
                let header = Ipv4Header::encapsulating(&inner, EndsV4::new(source, destination));
                assert_eq!(header.checksum, header.sum(), "{source:x} {destination:x}");
            }
        }
    }

    #[test]
    fn a_readdressed_header_keeps_its_tags() {
        let ethernet = EthernetHeader {
            destination: [1; 3],
            source: [2; 3],
            ethertype: ETHERTYPE_VLAN,
        };
        let (outer, inner) = (
            VlanTag {
                control: 7,
                ethertype: ETHERTYPE_VLAN,
            },
            VlanTag {
                control: 8,
                ethertype: ETHERTYPE_IPV6,
            },
        );
        let (to, from) = ([3; 3], [1; 3]);
        let readdressed = EthernetHeader {
            destination: to,
            source: from,
            ..ethernet
        };
        let double = DoubleTaggedHeader {
            ethernet,
            outer,
            inner,
        };
        let expected = DoubleTaggedHeader {
            ethernet: readdressed,
            outer,
            inner: VlanTag {
                ethertype: ETHERTYPE_IPV4,
                ..inner
            },
        };
        assert_eq!(double.readdressed(to, from, ETHERTYPE_IPV4), expected);
        let single = TaggedHeader {
            ethernet,
            tag: inner,
        };
        let expected = TaggedHeader {
            ethernet: readdressed,
            tag: expected.inner,
        };
        assert_eq!(single.readdressed(to, from, ETHERTYPE_IPV4), expected);
        assert_eq!(single.destination(), double.destination());
    }

    #[test]
    fn outer_ipv6_header_carries_class_length_and_label() {
        let (source, destination) = (Address([1; 4]), Address([2; 4]));
        let header = Ipv6Header::encapsulating(&INNER, source, destination, 0xabcd_e123_4567_89ab);
        assert_eq!(
            header.version_class_label.to_ne_bytes(),
            [0x6b, 0x9a, 0xbc, 0xde]
        );
        assert_eq!((header.version(), header.traffic_class()), (6, 0xb9));
        assert_eq!(header.payload_length.to_ne_bytes(), 1_400_u16.to_be_bytes());
        assert_eq!((header.next_header, header.hop_limit), (4, 64));
        assert_eq!((header.source, header.destination), (source, destination));
    }
}
