//! The Ethernet header. VLAN-tagged frames are not IP to us: they pass.

use lb_common::{
    header::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetHeader},
    verdict::Verdict,
};
use lb_ebpf::packet::Packet;

/// The IP version that a frame says it carries.
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The family of the frame's payload.
#[inline(always)]
pub fn family(packet: &Packet) -> Result<Family, Verdict> {
    let header: EthernetHeader = packet.read(0).ok_or(Verdict::PassTruncated)?;
    match header.ethertype {
        ETHERTYPE_IPV4 => Ok(Family::V4),
        ETHERTYPE_IPV6 => Ok(Family::V6),
        _ => Err(Verdict::PassNotIp),
    }
}
