//! The ports of TCP and UDP.

use super::Ip;
use lb_common::{
    header::{EthernetHeader, Ports},
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// The packet's ports. Bytes after the end of the IP packet (Ethernet padding) are not taken for ports.
#[inline(always)]
pub fn ports(packet: &Packet, ip: &Ip) -> Result<Ports, Verdict> {
    if EthernetHeader::LENGTH + usize::from(ip.length) < ip.l4_offset + Ports::LENGTH {
        return Err(Verdict::PassTruncated);
    }
    packet.read(ip.l4_offset).ok_or(Verdict::PassTruncated)
}
