//! The ports of TCP and UDP, and what kind of a packet it is for its flow.

use super::Ip;
use lb_common::{
    flow_table::{PacketKind, TcpFlags},
    header::{PROTOCOL_TCP, Ports},
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// The packet's ports. Bytes after the end of the IP packet (Ethernet padding) are not taken for ports.
#[inline(always)]
pub fn ports(packet: &Packet, ip: &Ip) -> Result<Ports, Verdict> {
    read(packet, ip, 0).ok_or(Verdict::PassTruncated)
}

/// The packet's kind. TCP that is cut off before its flags has none, like a segment in the middle of a connection.
#[inline(always)]
pub fn kind(packet: &Packet, ip: &Ip) -> PacketKind {
    if ip.protocol != PROTOCOL_TCP {
        return PacketKind::Udp;
    }
    read(packet, ip, TcpFlags::OFFSET).map_or(PacketKind::Tcp, TcpFlags::kind)
}

/// What is at `offset` bytes from the start of the L4 header, if the IP packet goes that far.
#[inline(always)]
pub fn read<T: Header>(packet: &Packet, ip: &Ip, offset: usize) -> Option<T> {
    let start = ip.l4_offset + offset;
    if ip.tags.l3_offset() + usize::from(ip.length()) < start + T::LENGTH {
        return None;
    }
    packet.read(start)
}
