//! The Ethernet header and up to two VLAN tags, of 802.1Q or 802.1ad in any order. Frames with more tags are not IP to
//! us: they pass.

use lb_common::{
    header::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN, EthernetHeader,
        VlanTag,
    },
    verdict::Verdict,
};
use lb_ebpf::packet::{Header, Packet};

/// The IP version that a frame says it carries.
#[derive(Clone, Copy)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How many VLAN tags a frame has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tags {
    /// It is untagged.
    None,
    /// One.
    One,
    /// Two.
    Two,
}

impl Tags {
    /// Those whose number, as that of an enumeration's value, is this.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::One,
            _ => Self::Two,
        }
    }

    /// Bytes of the Ethernet header and these tags: where the IP packet starts.
    #[inline(always)]
    pub const fn l3_offset(self) -> usize {
        match self {
            Self::None => EthernetHeader::LENGTH,
            Self::One => EthernetHeader::LENGTH + VlanTag::LENGTH,
            Self::Two => EthernetHeader::LENGTH + 2 * VlanTag::LENGTH,
        }
    }
}

/// The family of the frame's payload and the tags before it.
#[inline(always)]
pub fn parse(packet: &Packet) -> Result<(Family, Tags), Verdict> {
    let header: EthernetHeader = packet.read(0).ok_or(Verdict::PassTruncated)?;
    if let Some(family) = family(header.ethertype) {
        return Ok((family, Tags::None));
    }
    let outer = tag(packet, header.ethertype, Tags::None)?;
    if let Some(family) = family(outer.ethertype) {
        return Ok((family, Tags::One));
    }
    let inner = tag(packet, outer.ethertype, Tags::One)?;
    match family(inner.ethertype) {
        Some(family) => Ok((family, Tags::Two)),
        None => Err(Verdict::PassNotIp),
    }
}

#[inline(always)]
fn family(ethertype: u16) -> Option<Family> {
    match ethertype {
        ETHERTYPE_IPV4 => Some(Family::V4),
        ETHERTYPE_IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// The tag behind those `before` it, if `ethertype` announces one.
#[inline(always)]
fn tag(packet: &Packet, ethertype: u16, before: Tags) -> Result<VlanTag, Verdict> {
    if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_SERVICE_VLAN {
        return Err(Verdict::PassNotIp);
    }
    packet
        .read(before.l3_offset())
        .ok_or(Verdict::PassTruncated)
}
