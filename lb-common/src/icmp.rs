//! The ICMP messages that the balancer sends by itself, and their headers.
//!
//! **Invariant.** An error quotes a multiple of [`STEP`] bytes: the verifier walks every step of the sum over the quote, and
//! smaller steps would be many.

use crate::{
    address::Address,
    checksum,
    header::{
        DONT_FRAGMENT, IcmpHeader, Ipv4Header, Ipv6Header, OUTER_TTL, PROTOCOL_ICMP,
        PROTOCOL_ICMPV6, Words,
    },
};

/// Quotes are a multiple of this, in bytes.
pub const STEP: u16 = size_of::<Words>() as u16;
/// Bytes that an ICMP error quotes at the most: the IP packet then has as many of the 576 bytes that RFC 1812, section 4.3.2.3,
/// allows as whole steps fill.
pub const QUOTE_V4: u16 =
    (576 - (size_of::<Ipv4Header>() + size_of::<IcmpHeader>()) as u16) / STEP * STEP;
/// Bytes that an ICMPv6 error quotes at the most: the IP packet then has the least MTU of IPv6 (RFC 4443, section 2.4).
pub const QUOTE_V6: u16 = 1_280 - (size_of::<Ipv6Header>() + size_of::<IcmpHeader>()) as u16;

/// Type of a service with higher precedence than the traffic that it is about (RFC 1812, section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// How many bytes of an IP packet of `length` bytes an error quotes.
#[inline(always)]
pub const fn quote(is_v4: bool, length: u16) -> u16 {
    let most = if is_v4 { QUOTE_V4 } else { QUOTE_V6 };
    let quote = if length < most { length } else { most };
    quote / STEP * STEP
}

impl Ipv4Header {
    /// The header of an error that quotes `quote` bytes, addresses in network order.
    #[inline(always)]
    pub fn of_error(source: u32, destination: u32, quote: u16) -> Self {
        let headers = (size_of::<Self>() + size_of::<IcmpHeader>()) as u16;
        let mut header = Self {
            version_ihl: 0x45,
            traffic_class: INTERNETWORK_CONTROL,
            total_length: (headers + quote).to_be(),
            id: 0,
            fragment: DONT_FRAGMENT.to_be(),
            ttl: OUTER_TTL,
            protocol: PROTOCOL_ICMP,
            checksum: 0,
            source,
            destination,
        };
        header.checksum = header.sum();
        header
    }

    /// The header of an answer to a packet: back to its source, with a fresh TTL. A wrong checksum stays wrong.
    #[inline(always)]
    pub fn returned(self) -> Self {
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        let new = u16::from_ne_bytes([OUTER_TTL, self.protocol]);
        Self {
            ttl: OUTER_TTL,
            checksum: checksum::replaced(self.checksum, old, new),
            source: self.destination,
            destination: self.source,
            ..self
        }
    }
}

impl Ipv6Header {
    /// The header of an error that quotes `quote` bytes.
    #[inline(always)]
    pub fn of_error(source: Address, destination: Address, quote: u16) -> Self {
        Self {
            version_class_label: (6_u32 << 28).to_be(),
            payload_length: (size_of::<IcmpHeader>() as u16 + quote).to_be(),
            next_header: PROTOCOL_ICMPV6,
            hop_limit: OUTER_TTL,
            source,
            destination,
        }
    }

    /// The header of an answer to a packet: back to its source, with a fresh hop limit.
    #[inline(always)]
    pub fn returned(self) -> Self {
        Self {
            hop_limit: OUTER_TTL,
            source: self.destination,
            destination: self.source,
            ..self
        }
    }

    /// Sum over the pseudo-header of the payload, of which this is the header without extensions (RFC 8200, section 8.1).
    #[inline(always)]
    fn pseudo_sum(&self) -> u64 {
        let mut sum =
            u64::from(self.payload_length) + u64::from(u16::from(self.next_header).to_be());
        let (Address([a, b, c, d]), Address([e, f, g, h])) = (self.source, self.destination);
        sum += u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d);
        sum + u64::from(e) + u64::from(f) + u64::from(g) + u64::from(h)
    }
}

impl IcmpHeader {
    /// "Fragmentation needed and DF set" with the MTU of the next hop (RFC 1191, section 4); `quote` is the sum over the
    /// quote.
    #[inline(always)]
    pub fn fragmentation_needed(mtu: u16, quote: u64) -> Self {
        Self {
            kind: 3,
            code: 4,
            checksum: 0,
            rest: u32::from(mtu).to_be(),
        }
        .with_checksum(quote)
    }

    /// "Packet too big" (RFC 4443, section 3.2) behind `header`; `quote` is the sum over the quote.
    #[inline(always)]
    pub fn packet_too_big(mtu: u16, quote: u64, header: &Ipv6Header) -> Self {
        Self {
            kind: 2,
            code: 0,
            checksum: 0,
            rest: u32::from(mtu).to_be(),
        }
        .with_checksum(quote + header.pseudo_sum())
    }

    #[inline(always)]
    fn with_checksum(self, rest: u64) -> Self {
        let first = u16::from_ne_bytes([self.kind, self.code]);
        let sum = u64::from(first) + u64::from(self.rest) + rest;
        Self {
            checksum: checksum::finish_words(sum),
            ..self
        }
    }

    /// Whether the message is an echo request.
    #[inline(always)]
    pub const fn is_echo_request(&self, is_v4: bool) -> bool {
        let kind = if is_v4 {
            ECHO_REQUEST_V4
        } else {
            ECHO_REQUEST_V6
        };
        self.kind == kind && self.code == 0
    }

    /// The header of the reply to this echo request, whose addresses are turned round. A wrong checksum stays wrong.
    #[inline(always)]
    pub fn echo_reply(self, is_v4: bool) -> Self {
        let kind = if is_v4 { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
        let old = u16::from_ne_bytes([self.kind, self.code]);
        let new = u16::from_ne_bytes([kind, self.code]);
        Self {
            kind,
            checksum: checksum::replaced(self.checksum, old, new),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_as_long_as_they_may_be_in_whole_steps() {
        for (is_v4, length, expected) in [
            (true, 1_500, 544),
            (true, 544, 544),
            (true, 543, 528),
            (false, 1_500, 1_232),
            (false, 1_231, 1_216),
            (false, 65_535, 1_232),
        ] {
            assert_eq!(quote(is_v4, length), expected, "{length}");
        }
    }
}
