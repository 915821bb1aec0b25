//! What the balancer answers by itself: packets that are too large (RFC 1191, RFC 4443) and pings (RFC 792, RFC 4443).

use super::{
    Done, Model,
    backend::Backend,
    bytes::{self, Address, byte},
    forward::checksum,
    parse::{self, Ip, Part},
};
use lb_common::verdict::Verdict;

/// Bytes of an ICMP header.
const HEADER: usize = 8;
const TTL: u8 = 64;

impl Model {
    /// The answer to a packet that is too large for the way to this backend, if there is to be one.
    pub(super) fn too_big(
        &self,
        frame: &[u8],
        ip: &Ip,
        backend: &Backend,
    ) -> Result<Done, Verdict> {
        let of_flow = ip.protocol == parse::TCP || ip.protocol == parse::UDP;
        if self.silent || !of_flow || ip.part == Part::Later || !is_from_one_host_to_us(frame, ip) {
            return Err(Verdict::DropTooBig);
        }
        let mtu = backend.mtu.saturating_sub(backend.overhead()?) as u16;
        // There is no size that fits.
        if mtu == 0 {
            return Err(Verdict::DropTooBig);
        }
        let original = &frame[ip.link..ip.link + ip.length];
        // Whole steps of 16 bytes, within 576 bytes of IPv4 or 1,280 of IPv6.
        let most = if ip.four { 576 - 28 } else { 1_280 - 48 };
        let quote = &original[..original.len().min(most) / 16 * 16];
        let mut message = if ip.four {
            vec![3, 4, 0, 0, 0, 0]
        } else {
            vec![2, 0, 0, 0, 0, 0]
        };
        message.extend_from_slice(&mtu.to_be_bytes());
        message.extend_from_slice(quote);
        let mut answer = returned(frame, ip.link);
        let length = message.len() as u16;
        if ip.four {
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let mut header = vec![0x45, 0xc0];
            header.extend_from_slice(&(20 + length).to_be_bytes());
            header.extend_from_slice(&[0, 0, 0x40, 0, TTL, parse::ICMP, 0, 0]);
            header.extend_from_slice(&ip.destination[12..]);
            header.extend_from_slice(&ip.source[12..]);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            answer.extend_from_slice(&header);
        } else {
            let mut pseudo = [ip.destination, ip.source].concat();
            pseudo.extend_from_slice(&u32::from(length).to_be_bytes());
            pseudo.extend_from_slice(&[0, 0, 0, parse::ICMPV6]);
            pseudo.extend_from_slice(&message);
            let sum = checksum(&pseudo);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            answer.extend_from_slice(&[0x60, 0, 0, 0]);
            answer.extend_from_slice(&length.to_be_bytes());
            answer.extend_from_slice(&[parse::ICMPV6, TTL]);
            answer.extend_from_slice(&ip.destination);
            answer.extend_from_slice(&ip.source);
        }
        answer.extend_from_slice(&message);
        Ok(Done::Answered(Verdict::AnsweredTooBig, answer))
    }

    /// The reply to a ping, if the packet is one that is to be answered.
    pub(super) fn echo(&self, frame: &[u8], ip: &Ip) -> Result<Done, Verdict> {
        let message = ip.payload(frame);
        let (kind, code) = (byte(message, 0), byte(message, 1));
        let (request, reply) = if ip.four { (8, 0) } else { (128, 129) };
        let bare = if ip.four { 20 } else { 40 };
        let is_icmp = ip.protocol == parse::ICMP || ip.protocol == parse::ICMPV6;
        let wanted = is_icmp
            && message.len() >= HEADER
            && (kind, code) == (Some(request), Some(0))
            && ip.headers == bare
            && self
                .address(&ip.destination)
                .is_some_and(|entry| self.pingable.contains(&entry))
            && is_from_one_host_to_us(frame, ip);
        if !wanted {
            return Err(Verdict::PassNotTcpUdp);
        }
        if self.silent {
            return Err(Verdict::DropEcho);
        }
        let mut answer = returned(frame, ip.link);
        let mut header = frame[ip.link..ip.link + bare].to_vec();
        if ip.four {
            let (ttl, protocol) = (header[8], header[9]);
            let (old, new) = ([ttl, protocol], [TTL, protocol]);
            header[8] = TTL;
            replace(&mut header[10..12], old, new);
            swap(&mut header[12..20]);
        } else {
            header[7] = TTL;
            swap(&mut header[8..40]);
        }
        answer.extend_from_slice(&header);
        let start = answer.len();
        answer.extend_from_slice(&frame[ip.link + bare..]);
        answer[start] = reply;
        replace(&mut answer[start + 2..start + 4], [request, 0], [reply, 0]);
        Ok(Done::Answered(Verdict::AnsweredEcho, answer))
    }
}

/// What is in front of the IP packet, back to who sent it.
fn returned(frame: &[u8], link: usize) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..link]].concat()
}

/// Exchanges the two halves: two addresses.
fn swap(addresses: &mut [u8]) {
    addresses.rotate_left(addresses.len() / 2);
}

/// Brings a checksum up to date with a word that it covers (RFC 1624), whether it was right or not.
fn replace(field: &mut [u8], old: [u8; 2], new: [u8; 2]) {
    let words = [!field[0], !field[1], !old[0], !old[1], new[0], new[1]];
    field.copy_from_slice(&checksum(&words).to_be_bytes());
}

/// Nothing is answered that came to a group, or from an address that is no single host's.
fn is_from_one_host_to_us(frame: &[u8], ip: &Ip) -> bool {
    let to_group = frame[0] & 1 != 0;
    !to_group && ip.four == bytes::is_v4(&ip.source) && is_of_one_host(&ip.source)
}

fn is_of_one_host(address: &Address) -> bool {
    if bytes::is_v4(address) {
        return !matches!(address[12], 0 | 127 | 224..);
    }
    let none_or_loopback = address[..15].iter().all(|byte| *byte == 0) && address[15] <= 1;
    address[0] != 0xff && !none_or_loopback
}
