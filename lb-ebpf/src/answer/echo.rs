//! Echo replies (RFC 792, RFC 4443) for addresses of which a service wants it.

use super::{is_answerable, is_within_rate};
use crate::{
    parse::{Ip, l4},
    service,
};
use lb_common::{
    header::{EthernetHeader, IcmpHeader, Ipv4Header, Ipv6Header, LinkHeader as _},
    rate::Answer,
    service::ServiceEntry,
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// Makes an echo request to such an address the reply to it. Nothing, and the packet as it came, if it is none. Requests with IP
/// options or extension headers are left to the host, which may have to turn a route round.
#[inline(always)]
pub fn echo(packet: &mut Packet, ip: &Ip) -> Option<Verdict> {
    let request: IcmpHeader = l4::read(packet, ip, 0)?;
    let l3 = ip.tags.l3_offset();
    let header = if ip.is_v4 {
        Ipv4Header::LENGTH
    } else {
        Ipv6Header::LENGTH
    };
    if !request.is_echo_request(ip.is_v4) || ip.l4_offset != l3 + header {
        return None;
    }
    let entry = service::of_address(ip.destination)?;
    if entry.flags & ServiceEntry::ECHO == 0 || !is_answerable(packet, ip) {
        return None;
    }
    if !is_within_rate(Answer::Echo) {
        return Some(Verdict::DropEcho);
    }
    let link: EthernetHeader = packet.read(0)?;
    if ip.is_v4 {
        let header: Ipv4Header = packet.read(l3)?;
        packet.write(l3, header.returned())?;
        packet.write(l3 + Ipv4Header::LENGTH, request.echo_reply(ip.is_v4))?;
    } else {
        let header: Ipv6Header = packet.read(l3)?;
        packet.write(l3, header.returned())?;
        packet.write(l3 + Ipv6Header::LENGTH, request.echo_reply(ip.is_v4))?;
    }
    packet.write(0, link.returned())?;
    Some(Verdict::AnsweredEcho)
}
