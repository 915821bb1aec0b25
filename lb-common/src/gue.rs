//! Generic UDP Encapsulation, version 0 (draft-ietf-intarea-gue-09): an outer IP header, a UDP header whose source port
//! spreads flows, and four bytes that say which IP version follows.
//!
//! **Invariants.** Fields are in network byte order. The UDP checksum is 0: over IPv4 it is optional (RFC 768), over
//! IPv6 a tunnel may leave it out (RFC 6935, RFC 6936), and its receiver has to allow that.

use crate::{
    address::Address,
    backend::Mode,
    header::{Inner, Ipv4Header, Ipv6Header, PROTOCOL_UDP},
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

/// GUE header without optional fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GueHeader {
    /// Version (2 bits), whether this is a control message (1), length of the optional fields in 32-bit words (5): all 0.
    pub version_control_length: u8,
    /// Protocol number of what follows: IPv4 or IPv6 in IP.
    pub protocol: u8,
    /// Which optional fields there are: none.
    pub flags: u16,
}

/// All that precedes a packet on its way through IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GueOverIpv4 {
    ip: Ipv4Header,
    udp: UdpHeader,
    gue: GueHeader,
}

/// All that precedes a packet on its way through IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GueOverIpv6 {
    ip: Ipv6Header,
    udp: UdpHeader,
    gue: GueHeader,
}

const _: () = assert!(size_of::<UdpHeader>() == 8);
const _: () = assert!(size_of::<GueHeader>() == 4);
const _: () = assert!(size_of::<GueOverIpv4>() == mtu::overhead(Mode::Gue, true) as usize);
const _: () = assert!(size_of::<GueOverIpv6>() == mtu::overhead(Mode::Gue, false) as usize);
const _: () = assert!(size_of::<Ipv4Header>() == mtu::overhead(Mode::Ipip, true) as usize);
const _: () = assert!(size_of::<Ipv6Header>() == mtu::overhead(Mode::Ipip, false) as usize);

impl GueOverIpv4 {
    /// The headers of `inner`; addresses and port in network order. The IP header follows the rules of
    /// [`Ipv4Header::encapsulating`].
    #[inline(always)]
    pub fn encapsulating(
        inner: &Inner,
        source: u32,
        destination: u32,
        port: u16,
        flow_hash: u64,
    ) -> Self {
        let (udp, gue, payload) = inside(inner, port, flow_hash);
        let ip = Ipv4Header::encapsulating(&payload, source, destination);
        Self { ip, udp, gue }
    }
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
}

/// What the outer IP header carries, and what that header has to know of it.
#[inline(always)]
fn inside(inner: &Inner, port: u16, flow_hash: u64) -> (UdpHeader, GueHeader, Inner) {
    let headers = (size_of::<UdpHeader>() + size_of::<GueHeader>()) as u16;
    let length = headers.wrapping_add(inner.length);
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
        length,
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
