//! Generic UDP Encapsulation, version 0 (draft-ietf-intarea-gue-09): an outer IP header, a UDP header whose source port
//! spreads flows, and four bytes that say which IP version follows.
//!
//! Behind these four bytes there may be the *second owner* of the packet's flow, as private data of GUE (section 3.4):
//! words that the header's length counts and that no flag announces, which receivers that do not know them skip. It is
//! another backend in mode `gue`, to which the first hands the packet on if it has no socket for it.
//!
//! **Invariants.** Fields are in network byte order. The UDP checksum is 0: over IPv4 it is optional (RFC 768), over
//! IPv6 a tunnel may leave it out (RFC 6935, RFC 6936), and its receiver has to allow that.

use crate::{
    address::Address,
    backend::Mode,
    checksum,
    header::{EndsV4, Inner, Ipv4Header, Ipv6Header, PROTOCOL_UDP},
    mtu,
};

/// The port that backends take GUE on unless the service says otherwise (IANA), host order.
pub const DEFAULT_PORT: u16 = 6_080;

/// Lowest source port: flows use the dynamic ports (RFC 6335, section 6).
const FIRST_SOURCE_PORT: u16 = 0xc000;

/// UDP header (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHeader {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Bytes of this header and what follows it.
    pub length: u16,
    /// Checksum; 0: none.
    pub checksum: u16,
}

/// GUE header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GueHeader {
    /// Version (2 bits) and whether this is a control message (1), all 0; length of what is behind the header, in 32-bit
    /// words (5).
    pub version_control_length: u8,
    /// Protocol number of what follows: IPv4 or IPv6 in IP.
    pub protocol: u8,
    /// Which optional fields there are: none.
    pub flags: u16,
}

impl GueHeader {
    /// Whether it is of version 0, no control message, and without flags.
    #[inline(always)]
    pub const fn is_plain_data(&self) -> bool {
        self.version_control_length & 0xe0 == 0 && self.flags == 0
    }

    /// Bytes behind the header that belong to it, at most 124.
    #[inline(always)]
    pub const fn surplus(&self) -> usize {
        (self.version_control_length & 0x1f) as usize * 4
    }
}

/// First word of a second owner.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondWord {
    /// [`SecondWord::KIND`]: what follows, and which version of it.
    pub kind: u8,
    /// Bytes of the address that follows: 4 or 16, as the outer IP header has.
    pub length: u8,
    /// UDP port on which it takes GUE.
    pub port: u16,
}

impl SecondWord {
    /// In `kind`: a second owner, version 1.
    pub const KIND: u8 = 0x21;
}

/// A second owner with an IPv4 address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondV4 {
    /// What it is.
    pub word: SecondWord,
    /// Its address.
    pub address: u32,
}

/// A second owner with an IPv6 address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondV6 {
    /// What it is.
    pub word: SecondWord,
    /// Its address.
    pub address: Address,
}

impl SecondV4 {
    /// Names `address`, port `port`, both in network order.
    #[inline(always)]
    pub const fn new(address: u32, port: u16) -> Self {
        let word = SecondWord {
            kind: SecondWord::KIND,
            length: 4,
            port,
        };
        Self { word, address }
    }
}

impl SecondV6 {
    /// Names `address`, port `port`, in network order.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        let word = SecondWord {
            kind: SecondWord::KIND,
            length: 16,
            port,
        };
        Self { word, address }
    }
}

/// All that precedes a packet on its way through IPv4, but for a second owner.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GueOverIpv4 {
    /// Outer IP header.
    pub ip: Ipv4Header,
    /// UDP header.
    pub udp: UdpHeader,
    /// GUE header.
    pub gue: GueHeader,
}

/// All that precedes a packet on its way through IPv6, but for a second owner.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GueOverIpv6 {
    /// Outer IP header.
    pub ip: Ipv6Header,
    /// UDP header.
    pub udp: UdpHeader,
    /// GUE header.
    pub gue: GueHeader,
}

const _: () = assert!(size_of::<UdpHeader>() == 8);
const _: () = assert!(size_of::<GueHeader>() == 4);
const _: () = assert!(size_of::<SecondWord>() == 4);
const _: () = assert!(size_of::<SecondV4>() == 8);
const _: () = assert!(size_of::<SecondV6>() == 20);
const _: () = assert!(
    size_of::<GueOverIpv4>() + size_of::<SecondV4>() == mtu::overhead(Mode::Gue, true) as usize
);
const _: () = assert!(
    size_of::<GueOverIpv6>() + size_of::<SecondV6>() == mtu::overhead(Mode::Gue, false) as usize
);
const _: () = assert!(size_of::<Ipv4Header>() == mtu::overhead(Mode::Ipip, true) as usize);
const _: () = assert!(size_of::<Ipv6Header>() == mtu::overhead(Mode::Ipip, false) as usize);

impl GueOverIpv4 {
    /// The headers of `inner`; port in network order. The IP header follows the rules of
    /// [`Ipv4Header::encapsulating`].
    #[inline(always)]
    pub fn encapsulating(inner: &Inner, ends: EndsV4, port: u16, flow_hash: u64) -> Self {
        let (udp, gue, payload) = inside(inner, port, flow_hash);
        let ip = Ipv4Header::encapsulating(&payload, ends);
        Self { ip, udp, gue }
    }

    /// The same with a second owner behind them.
    #[inline(always)]
    pub fn with_second(self) -> Self {
        const MORE: u16 = size_of::<SecondV4>() as u16;
        let (udp, gue) = with_second(self.udp, self.gue, MORE);
        let total_length = longer(self.ip.total_length, MORE);
        let sum = checksum::replaced(self.ip.checksum, self.ip.total_length, total_length);
        Self {
            ip: Ipv4Header {
                total_length,
                checksum: sum,
                ..self.ip
            },
            udp,
            gue,
        }
    }

    /// The same on the way from the first owner to the second, whom nothing is behind them to name; address and port in
    /// network order. The way ends here for a TTL of 1: `None`.
    #[inline(always)]
    pub fn handed_on(self, destination: u32, port: u16) -> Option<Self> {
        const LESS: u16 = size_of::<SecondV4>() as u16;
        if self.ip.ttl <= 1 {
            return None;
        }
        let mut ip = Ipv4Header {
            total_length: longer(self.ip.total_length, LESS.wrapping_neg()),
            ttl: self.ip.ttl - 1,
            checksum: 0,
            destination,
            ..self.ip
        };
        ip.checksum = ip.sum();
        let (udp, gue) = handed_on(self.udp, self.gue, port, LESS);
        Some(Self { ip, udp, gue })
    }
}

impl UdpHeader {
    /// The same with more bytes behind it.
    #[inline(always)]
    fn longer(self, more: u16) -> Self {
        let length = longer(self.length, more);
        Self { length, ..self }
    }
}

/// A length in network order and so many bytes more.
#[inline(always)]
const fn longer(length: u16, more: u16) -> u16 {
    u16::from_be(length).wrapping_add(more).to_be()
}

/// Both with a second owner of `more` bytes behind them.
#[inline(always)]
fn with_second(udp: UdpHeader, gue: GueHeader, more: u16) -> (UdpHeader, GueHeader) {
    let gue = GueHeader {
        version_control_length: (more / 4) as u8,
        ..gue
    };
    (udp.longer(more), gue)
}

/// Both on the way to the second owner, who took `less` bytes.
#[inline(always)]
fn handed_on(udp: UdpHeader, gue: GueHeader, port: u16, less: u16) -> (UdpHeader, GueHeader) {
    let udp = UdpHeader {
        destination: port,
        checksum: 0,
        ..udp.longer(less.wrapping_neg())
    };
    let gue = GueHeader {
        version_control_length: 0,
        ..gue
    };
    (udp, gue)
}

impl GueOverIpv6 {
    /// The headers of `inner`; port in network order. The IP header follows the rules of
    /// [`Ipv6Header::encapsulating`].
    #[inline(always)]
    pub fn encapsulating(
        inner: &Inner,
        source: Address,
        destination: Address,
        port: u16,
        flow_hash: u64,
    ) -> Self {
        let (udp, gue, payload) = inside(inner, port, flow_hash);
        let ip = Ipv6Header::encapsulating(&payload, source, destination, flow_hash);
        Self { ip, udp, gue }
    }

    /// The same with a second owner behind them.
    #[inline(always)]
    pub fn with_second(self) -> Self {
        const MORE: u16 = size_of::<SecondV6>() as u16;
        let (udp, gue) = with_second(self.udp, self.gue, MORE);
        Self {
            ip: Ipv6Header {
                payload_length: longer(self.ip.payload_length, MORE),
                ..self.ip
            },
            udp,
            gue,
        }
    }

    /// See [`GueOverIpv4::handed_on`].
    #[inline(always)]
    pub fn handed_on(self, destination: Address, port: u16) -> Option<Self> {
        const LESS: u16 = size_of::<SecondV6>() as u16;
        if self.ip.hop_limit <= 1 {
            return None;
        }
        let ip = Ipv6Header {
            payload_length: longer(self.ip.payload_length, LESS.wrapping_neg()),
            hop_limit: self.ip.hop_limit - 1,
            destination,
            ..self.ip
        };
        let (udp, gue) = handed_on(self.udp, self.gue, port, LESS);
        Some(Self { ip, udp, gue })
    }
}

/// What the outer IP header carries, and what that header has to know of it.
#[inline(always)]
fn inside(inner: &Inner, port: u16, flow_hash: u64) -> (UdpHeader, GueHeader, Inner) {
    let headers = (size_of::<UdpHeader>() + size_of::<GueHeader>()) as u16;
    let length = headers.wrapping_add(inner.length());
    let udp = UdpHeader {
        source: source_port(flow_hash).to_be(),
        destination: port,
        length: length.to_be(),
        checksum: 0,
    };
    let gue = GueHeader {
        version_control_length: 0,
        protocol: inner.protocol,
        flags: 0,
    };
    let payload = Inner {
        protocol: PROTOCOL_UDP,
        start: inner.start.wrapping_add(headers.into()),
        ..*inner
    };
    (udp, gue, payload)
}

/// The source port of a flow, host order: of bits of its hash that its slot does not depend on.
#[inline(always)]
const fn source_port(flow_hash: u64) -> u16 {
    FIRST_SOURCE_PORT | (flow_hash >> 32) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a value without padding.
    fn bytes<T: Copy>(value: &T) -> Vec<u8> {
        // SAFETY: the types of this test are `repr(C)` and of integers, without padding (asserted above).
        unsafe { core::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }.to_vec()
    }

    fn inner() -> Inner {
        Inner {
            protocol: 4,
            start: Inner::start(0xb8, 100),
            id_and_flags: Inner::id_and_flags(7, false),
        }
    }

    #[test]
    fn a_second_owner_is_a_word_and_an_address() {
        let (v4, port) = (u32::from_ne_bytes([10, 0, 1, 8]), 6_081_u16.to_be());
        assert_eq!(
            bytes(&SecondV4::new(v4, port)),
            [0x21, 4, 0x17, 0xc1, 10, 0, 1, 8]
        );
        let v6 = Address([0xfd_u32, 0, 0, 0x0100_0000]);
        let expected = [&[0x21, 16, 0x17, 0xc1, 0xfd][..], &[0; 14], &[1]].concat();
        assert_eq!(bytes(&SecondV6::new(v6, port)), expected);
    }

    #[test]
    fn naming_one_and_handing_on_undo_each_other_but_for_the_way() {
        let plain = GueOverIpv4::encapsulating(&inner(), EndsV4::new(1, 2), 3, 0);
        let named = plain.with_second();
        assert_eq!(named.ip.total_length, (100_u16 + 40).to_be());
        assert_eq!(named.ip.checksum, named.ip.sum());
        assert_eq!((named.gue.surplus(), plain.gue.surplus()), (8, 0));
        let on = named.handed_on(9, 10).unwrap();
        assert_eq!((on.ip.destination, on.udp.destination), (9, 10));
        assert_eq!((on.ip.ttl, on.ip.checksum), (63, on.ip.sum()));
        assert_eq!(
            (on.ip.total_length, on.udp.length),
            (plain.ip.total_length, plain.udp.length)
        );
        assert_eq!((on.gue, on.ip.source), (plain.gue, plain.ip.source));
        let mut last = named;
        last.ip.ttl = 1;
        assert_eq!(last.handed_on(9, 10), None);

        let (from, to) = (Address([1, 2, 3, 4]), Address([5, 6, 7, 8]));
        let plain = GueOverIpv6::encapsulating(&inner(), from, from, 3, 0);
        let named = plain.with_second();
        assert_eq!(named.ip.payload_length, (100_u16 + 32).to_be());
        assert_eq!(named.gue.surplus(), 20);
        let on = named.handed_on(to, 10).unwrap();
        assert_eq!((on.ip.destination, on.udp.destination), (to, 10));
        assert_eq!((on.ip.hop_limit, on.gue), (63, plain.gue));
        assert_eq!(on.udp.length, plain.udp.length);
        let mut last = named;
        last.ip.hop_limit = 1;
        assert_eq!(last.handed_on(to, 10), None);
    }

    #[test]
    fn source_ports_are_the_dynamic_ones_and_use_all_of_them() {
        let ports: std::collections::BTreeSet<u16> = (0..1_u64 << 16)
            .map(|bits| source_port(bits << 32 | 0xdead_beef))
            .collect();
        assert_eq!(ports.len(), 1 << 14);
        assert!(ports.iter().all(|port| *port >= 49_152));
        assert_eq!(source_port(u64::from(u32::MAX)), 49_152, "the slot's bits");
    }
}
