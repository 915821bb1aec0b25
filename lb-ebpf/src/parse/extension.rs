//! IPv6 extension headers (RFC 8200, section 4): what is behind them. Their order and their options are the backend's to judge.
//!
//! **Invariant.** The walk is bounded, so that no packet costs more than a few headers' worth of it.

use super::Fragment;
use lb_common::{
    header::{ExtensionHeader, FragmentId, PROTOCOL_FRAGMENT, PROTOCOL_ROUTING},
    verdict::Verdict,
};
use lb_ebpf::{
    packet::{Header, Packet},
    verifier,
};

/// Most extension headers of a packet that are followed.
const MAX_HEADERS: usize = 6;
/// Most bytes that they may have together.
const MAX_BYTES: usize = 256;

/// What the last header announces.
pub struct Payload {
    /// Protocol; of a later fragment perhaps that of an extension header, since what is in front is all that is known.
    pub protocol: u8,
    /// Where it starts, from the start of the frame.
    pub offset: usize,
    /// Which part of the packet there is.
    pub fragment: Fragment,
    /// Identification, as it lies in the packet, if it is a fragment.
    pub fragment_id: u32,
}

/// What is behind the extension headers, if any, that start at `start` with one of `protocol`; the IP packet ends at
/// `end`.
#[inline(always)]
pub fn payload(
    packet: &Packet,
    protocol: u8,
    start: usize,
    end: usize,
) -> Result<Payload, Verdict> {
    let mut payload = Payload {
        protocol,
        offset: start,
        fragment: Fragment::Whole,
        fragment_id: 0,
    };
    for _ in 0..MAX_HEADERS {
        if !ExtensionHeader::is(payload.protocol) {
            return Ok(payload);
        }
        let header: ExtensionHeader = packet.read(payload.offset).ok_or(Verdict::PassTruncated)?;
        let is_fragment = payload.protocol == PROTOCOL_FRAGMENT;
        if is_fragment {
            let id: FragmentId = packet
                .read(payload.offset + ExtensionHeader::LENGTH)
                .ok_or(Verdict::PassTruncated)?;
            payload.fragment_id = id.0;
        }
        payload.offset = forget(payload.offset + header.bytes(payload.protocol));
        if payload.offset > end {
            return Err(Verdict::PassTruncated);
        }
        if payload.offset - start > MAX_BYTES {
            return Err(Verdict::PassExtensionHeaders);
        }
        if payload.protocol == PROTOCOL_ROUTING && header.is_routed_on() {
            return Err(Verdict::PassExtensionHeaders);
        }
        payload.protocol = header.next_header;
        if is_fragment && header.is_later_fragment() {
            payload.fragment = Fragment::Later;
            return Ok(payload);
        }
        // A fragment that is both first and last is a whole packet (RFC 6946).
        if is_fragment && header.has_more_fragments() {
            payload.fragment = Fragment::First;
        }
    }
    if ExtensionHeader::is(payload.protocol) {
        return Err(Verdict::PassExtensionHeaders);
    }
    Ok(payload)
}

/// The same offset, of which the verifier knows only that it is below 4,096: whichever way through the headers led to it,
/// it is one state. Without this, kernels such as 6.1 and 6.12 go through the rest of the program once for each
/// way: 175,000 instructions in place of 27,000.
#[inline(always)]
fn forget(offset: usize) -> usize {
    // No offset here reaches 4,096: at most 62 bytes of Ethernet, tags and IPv6 before the headers, MAX_BYTES of them, and the
    // 2,048 of one that is refused for its length.
    (verifier::forget(offset as u32) & 0xfff) as usize
}
