//! The flow that an ICMP error quotes (RFC 792, RFC 4443).

use super::{
    Flow,
    bytes::{self, Address, be16, byte},
    parse::{self, Ip, Part},
};
use lb_common::verdict::Verdict;

/// The client's side of the flow of which an error quotes a packet that a backend has sent.
pub fn quoted(frame: &[u8], ip: &Ip) -> Result<Flow, Verdict> {
    let message = ip.payload(frame);
    let kind = byte(message, 0).ok_or(Verdict::PassTruncated)?;
    let quote = message.get(8..).ok_or(Verdict::PassTruncated)?;
    let errors: &[u8] = if ip.four { &[3, 11, 12] } else { &[1, 2, 3, 4] };
    if !errors.contains(&kind) {
        return Err(Verdict::PassNotTcpUdp);
    }
    let (source, destination, protocol, headers) = if ip.four { v4(quote)? } else { v6(quote)? };
    if protocol != parse::TCP && protocol != parse::UDP {
        return Err(Verdict::PassNotTcpUdp);
    }
    // Whoever sent what is quoted must be whom the error is for.
    if source != ip.destination {
        return Err(Verdict::PassNoService);
    }
    let port = |at| be16(quote, headers + at).ok_or(Verdict::PassTruncated);
    Ok(Flow {
        source: destination,
        destination: source,
        source_port: port(2)?,
        destination_port: port(0)?,
        protocol,
    })
}

/// Source, destination, protocol, and bytes of the header.
type Quote = (Address, Address, u8, usize);

fn v4(quote: &[u8]) -> Result<Quote, Verdict> {
    let destination = bytes::address_v4(quote, 16).ok_or(Verdict::PassTruncated)?;
    let source = bytes::address_v4(quote, 12).ok_or(Verdict::PassTruncated)?;
    let headers = usize::from(quote[0] & 0x0f) * 4;
    if quote[0] >> 4 != 4 || headers < 20 {
        return Err(Verdict::PassMalformed);
    }
    let flags = be16(quote, 6).ok_or(Verdict::PassTruncated)?;
    if parse::part_v4(flags) == Part::Later {
        return Err(Verdict::PassFragment);
    }
    Ok((source, destination, quote[9], headers))
}

fn v6(quote: &[u8]) -> Result<Quote, Verdict> {
    let destination = bytes::address_v6(quote, 24).ok_or(Verdict::PassTruncated)?;
    let source = bytes::address_v6(quote, 8).ok_or(Verdict::PassTruncated)?;
    if quote[0] >> 4 != 6 {
        return Err(Verdict::PassMalformed);
    }
    Ok((source, destination, quote[6], 40))
}
