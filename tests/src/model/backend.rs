//! Entries of the backends map.

use super::bytes::{self, Address};
use lb_common::{backend::BackendEntry, verdict::Verdict};

/// How packets are sent to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    L2,
    Ipip,
    Gue,
}

/// An entry.
#[derive(Clone, Debug)]
pub struct Backend {
    /// `None`: the entry is not in use, or not readable.
    mode: Option<Mode>,
    /// All zeros: not known.
    pub mac: [u8; 6],
    pub interface: u32,
    pub mtu: usize,
    pub address: Address,
    pub outer_source: Address,
    /// Whether flows fill the bits that `outer_source` leaves.
    pub filled: bool,
    /// Outer destination port.
    pub port: u16,
    generation: u32,
    lost: bool,
}

impl From<&BackendEntry> for Backend {
    fn from(entry: &BackendEntry) -> Self {
        Self {
            mode: match entry.mode {
                1 => Some(Mode::L2),
                2 => Some(Mode::Ipip),
                3 => Some(Mode::Gue),
                _ => None,
            },
            mac: entry.next_hop.mac,
            interface: entry.interface,
            mtu: entry.mtu.into(),
            address: bytes::address(&entry.address),
            outer_source: bytes::address(&entry.outer_source),
            generation: entry.generation,
            filled: entry.flags & 2 != 0,
            port: u16::from_be(entry.port),
            lost: entry.flags & 1 != 0,
        }
    }
}

impl Backend {
    /// Its mode.
    pub fn mode(&self) -> Result<Mode, Verdict> {
        self.mode.ok_or(Verdict::DropBadState)
    }

    /// Most bytes that its mode puts before a packet: a second owner's name is a word and an address.
    pub fn overhead(&self) -> Result<usize, Verdict> {
        let outer = if bytes::is_v4(&self.address) { 20 } else { 40 };
        Ok(match self.mode()? {
            Mode::L2 => 0,
            Mode::Ipip => outer,
            Mode::Gue if outer == 20 => outer + 8 + 4 + 8,
            Mode::Gue => outer + 8 + 4 + 20,
        })
    }

    /// Whether packets for `first` can name it as the second owner.
    pub fn is_nameable_beside(&self, first: &Self) -> bool {
        let both_gue = self.mode == Some(Mode::Gue) && first.mode == Some(Mode::Gue);
        let same_family = bytes::is_v4(&self.address) == bytes::is_v4(&first.address);
        both_gue && same_family && !self.lost && self.port != 0 && self.mac != [0; 6]
    }

    /// The generation of an entry in use.
    pub fn generation(&self) -> Result<u32, Verdict> {
        self.mode().map(|_| self.generation)
    }

    /// Whether it keeps the flows that were recorded for this generation of it.
    pub fn keeps_flows_of(&self, generation: u32) -> bool {
        self.mode.is_some() && !self.lost && self.generation == generation
    }
}
