//! The flow table: which backend a flow of a tracked slot goes to. Steady slots have no entries in it.

use crate::{address::Address, header::Ports};

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
    /// [`FlowEntry::CLOSING`] or 0.
    pub flags: u32,
}

impl FlowEntry {
    /// In `flags`: a FIN or a RST of the client has been seen.
    pub const CLOSING: u32 = 1;

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

/// What the program does with the flow table, counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEvent {
    /// A packet followed an entry.
    Hit = 0,
    /// A flow without an entry was recorded.
    Recorded = 1,
    /// An entry that counted for nothing any more was overwritten.
    Replaced = 2,
    /// The kernel refused to record a flow; the packet went to its slot's owner.
    Failed = 3,
}

impl FlowEvent {
    /// Number of events: entries of their counters.
    pub const COUNT: u32 = 4;
}

const _: () = assert!(size_of::<FlowKey>() == 40);
const _: () = assert!(size_of::<FlowEntry>() == 24);
