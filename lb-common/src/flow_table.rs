//! The flow table: which backend a flow of a tracked slot goes to. Steady slots have no entries in it.

use crate::{address::Address, header::Ports, slot::Slot};

/// Key of the flow table: the 5-tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address (the VIP).
    pub destination: Address,
    /// Source port in network byte order.
    pub source_port: u16,
    /// Destination port in network byte order.
    pub destination_port: u16,
    /// IP protocol number, widened: 6 (TCP) or 17 (UDP). Host byte order.
    pub protocol: u32,
}

impl FlowKey {
    /// The key of a packet.
    #[inline(always)]
    pub const fn new(source: Address, destination: Address, ports: Ports, protocol: u8) -> Self {
        Self {
            source,
            destination,
            source_port: ports.source,
            destination_port: ports.destination,
            protocol: protocol as u32,
        }
    }
}

/// What the flow table knows of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// Index of the backend that the flow goes to.
    pub backend: u32,
    /// [`crate::backend::BackendEntry::generation`] of that backend when the flow was recorded: an entry of an earlier use
    /// of the index counts for nothing.
    pub generation: u32,
    /// Index of the service; an entry of another service counts for nothing.
    pub service: u32,
    /// Slot of the flow in the service's table.
    pub slot: u32,
    /// When a packet of the flow was last seen: seconds of CLOCK_MONOTONIC, cut to 32 bits.
    pub seen: u32,
    /// [`FlowEntry::CLOSING`] or 0; in the upper 24 bits the index of the flow's second owner ([`FlowEntry::second`]).
    pub flags: u32,
}

impl FlowEntry {
    /// In `flags`: a FIN or a RST of the client has been seen.
    pub const CLOSING: u32 = 1;

    /// `flags` of a flow that is recorded now, with this second owner; 0: none.
    #[inline(always)]
    pub const fn flags_of(second: u32) -> u32 {
        second << 8
    }

    /// The backend that the flow may be at home at instead: the entry is a guess of a node that has not seen the flow
    /// begin, while its slot had two owners. 0: there is no doubt, or none that can be told of. The index may have been
    /// given to another since, which can do no harm: it has no socket of the flow either.
    #[inline(always)]
    pub const fn second(&self) -> u32 {
        self.flags >> 8
    }

    /// Whether the client has ended the connection.
    #[inline(always)]
    pub const fn is_closing(&self) -> bool {
        self.flags & Self::CLOSING != 0
    }

    /// Seconds since a packet was last seen, at a moment in seconds of CLOCK_MONOTONIC; 0 for one that lies ahead.
    #[inline(always)]
    pub const fn idle(&self, now: u32) -> u32 {
        now.saturating_sub(self.seen)
    }
}

/// A SYN of a flow that has an entry is a retransmission, and follows it, unless the connection is closing or has been
/// silent for this many seconds: then it is a new connection with the same ports.
pub const SYN_REUSE_SECONDS: u32 = 60;

/// Bytes 12 and 13 of a TCP header (RFC 9293, section 3.1): data offset, reserved bits and flags, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u16);

impl TcpFlags {
    /// Where they are in a TCP header, in bytes.
    pub const OFFSET: usize = 12;

    const FIN: u16 = 0x01_u16.to_be();
    const SYN: u16 = 0x02_u16.to_be();
    const RST: u16 = 0x04_u16.to_be();
    const ACK: u16 = 0x10_u16.to_be();

    /// What a packet with these flags is for its flow. FIN and RST come first: with SYN they open nothing, and nothing
    /// should be remembered for them.
    #[inline(always)]
    pub const fn kind(self) -> PacketKind {
        if self.0 & (Self::FIN | Self::RST) != 0 {
            PacketKind::TcpEnd
        } else if self.0 & (Self::SYN | Self::ACK) == Self::SYN {
            PacketKind::TcpSyn
        } else {
            PacketKind::Tcp
        }
    }
}

/// What a packet is for its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PacketKind {
    /// TCP that opens a connection: SYN without ACK.
    TcpSyn,
    /// TCP of a connection that is open.
    Tcp,
    /// TCP that ends a connection: FIN or RST.
    TcpEnd,
    /// UDP.
    Udp,
}

impl PacketKind {
    /// Which owner of a tracked slot gets a packet of a flow that has no entry: an index, 0 = none.
    #[inline(always)]
    pub const fn owner(self, slot: Slot) -> u32 {
        match self {
            Self::TcpSyn => slot.new_owner(),
            Self::Udp if slot.is_settled() => slot.new_owner(),
            Self::Udp | Self::Tcp | Self::TcpEnd => slot.old_owner(),
        }
    }

    /// The owner of a tracked slot at which the flow of such a packet may be at home instead of [`PacketKind::owner`], if
    /// it has no entry: an index, 0 = none. Not that of a new connection.
    #[inline(always)]
    pub const fn second_owner(self, slot: Slot) -> u32 {
        let owner = self.owner(slot);
        let other = if owner == slot.old_owner() {
            slot.new_owner()
        } else {
            slot.old_owner()
        };
        if matches!(self, Self::TcpSyn) || other == owner {
            0
        } else {
            other
        }
    }

    /// Whether a flow without an entry gets one by such a packet; one that ends needs none.
    #[inline(always)]
    pub const fn is_recorded(self) -> bool {
        !matches!(self, Self::TcpEnd)
    }
}

/// What the program does with the flow table, and with the connection IDs of QUIC in its place, counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowEvent {
    /// A packet followed an entry.
    Hit = 0,
    /// A flow without an entry was recorded.
    Recorded = 1,
    /// An entry that counted for nothing any more was overwritten.
    Replaced = 2,
    /// A flow could not be recorded, as others wrote to its set just then; the packet went to its slot's owner.
    Failed = 3,
    /// A packet went to the backend that its QUIC connection ID names.
    QuicRouted = 4,
    /// A packet of a QUIC service went the way of its flow, since it or its connection ID ends before a server ID does.
    QuicShort = 5,
    /// Likewise, since the connection ID is of another config rotation.
    QuicOtherConfig = 6,
    /// Likewise, since no backend has the server ID.
    QuicUnknown = 7,
    /// Likewise, since the flows of the backend that has the server ID are given up.
    QuicGone = 8,
}

impl FlowEvent {
    /// All events, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Hit,
        Self::Recorded,
        Self::Replaced,
        Self::Failed,
        Self::QuicRouted,
        Self::QuicShort,
        Self::QuicOtherConfig,
        Self::QuicUnknown,
        Self::QuicGone,
    ];

    /// Number of events: entries of their counters.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<FlowEntry>() == 24);
const _: () = assert!(size_of::<TcpFlags>() == 2);

#[cfg(test)]
mod tests {
    use super::*;

    /// The kind of a packet with these flags and a header of five words.
    fn kind(flags: u8) -> PacketKind {
        TcpFlags(u16::from_ne_bytes([0x50, flags])).kind()
    }

    #[test]
    fn flags_tell_the_kind() {
        const ECN: u8 = 0xc0;
        for (flags, expected) in [
            (0x02, PacketKind::TcpSyn),
            (0x02 | ECN, PacketKind::TcpSyn),
            (0x12, PacketKind::Tcp),
            (0x10, PacketKind::Tcp),
            (0x18, PacketKind::Tcp),
            (0x00, PacketKind::Tcp),
            (0x11, PacketKind::TcpEnd),
            (0x04, PacketKind::TcpEnd),
            (0x14, PacketKind::TcpEnd),
            (0x03, PacketKind::TcpEnd),
            (0x06, PacketKind::TcpEnd),
        ] {
            assert_eq!(kind(flags), expected, "{flags:#04x}");
        }
        // The data offset is in the other byte and says nothing, whatever it is.
        assert_eq!(
            TcpFlags(u16::from_ne_bytes([0xff, 0x02])).kind(),
            PacketKind::TcpSyn
        );
    }

    #[test]
    fn new_flows_go_to_the_new_owner_and_old_ones_to_the_old() {
        let (moved, settled) = (Slot::moved(1, 2, false), Slot::moved(1, 2, true));
        for (kind, owners) in [
            (PacketKind::TcpSyn, (1, 1)),
            (PacketKind::Tcp, (2, 2)),
            (PacketKind::TcpEnd, (2, 2)),
            (PacketKind::Udp, (2, 1)),
        ] {
            assert_eq!((kind.owner(moved), kind.owner(settled)), owners, "{kind:?}");
        }
    }

    #[test]
    fn what_may_be_an_old_flow_may_be_a_new_one_and_the_other_way_round() {
        let (moved, settled) = (Slot::moved(1, 2, false), Slot::moved(1, 2, true));
        for (kind, seconds) in [
            (PacketKind::TcpSyn, (0, 0)),
            (PacketKind::Tcp, (1, 1)),
            (PacketKind::TcpEnd, (1, 1)),
            (PacketKind::Udp, (1, 2)),
        ] {
            let both = (kind.second_owner(moved), kind.second_owner(settled));
            assert_eq!(both, seconds, "{kind:?}");
            assert_eq!(kind.second_owner(Slot::tracked(3)), 0, "{kind:?}");
        }
        assert_eq!(PacketKind::Tcp.second_owner(Slot::moved(0, 2, false)), 0);
    }

    #[test]
    fn a_second_owner_leaves_the_flags_alone() {
        let entry = FlowEntry {
            flags: FlowEntry::flags_of(crate::limits::MAX_BACKEND_INDEX),
            ..FlowEntry::default()
        };
        assert_eq!(entry.second(), crate::limits::MAX_BACKEND_INDEX);
        assert!(!entry.is_closing());
        let flags = entry.flags | FlowEntry::CLOSING;
        let closing = FlowEntry { flags, ..entry };
        assert!(closing.is_closing());
        assert_eq!(closing.second(), entry.second());
    }

    #[test]
    fn event_numbers_are_dense() {
        for (number, event) in FlowEvent::ALL.iter().enumerate() {
            assert_eq!(*event as usize, number);
        }
    }
}
