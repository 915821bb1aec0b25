//! How a packet finds its service.

use crate::address::Address;

/// Key of the services map. `port` 0 matches any port and is looked up only when the exact port is not found. Protocol 0
/// and port 0: the entry of an address that is some service's; its index means nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The VIP.
    pub address: Address,
    /// Destination port in network byte order; 0 = any port.
    pub port: u16,
    /// IP protocol number: 6 (TCP) or 17 (UDP); 0 in the entry of an address.
    pub protocol: u8,
    /// Always 0: keys are compared byte by byte.
    pub zero: u8,
}

impl ServiceKey {
    /// The key of (`address`, `protocol`, `port`), `port` in host byte order.
    pub const fn new(address: Address, protocol: u8, port: u16) -> Self {
        Self {
            address,
            port: port.to_be(),
            protocol,
            zero: 0,
        }
    }

    /// The key of the entry that says that `address` is some service's.
    #[inline(always)]
    pub const fn of_address(address: Address) -> Self {
        Self::new(address, 0, 0)
    }

    /// Whether this is the key of an address, and of no service.
    pub const fn is_of_address(&self) -> bool {
        self.protocol == 0
    }
}

/// Value of the services map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Index of the service's slot table and counters.
    pub index: u32,
    /// Policy: [`ServiceEntry::HASH_SOURCE`] and the like, or 0.
    pub flags: u32,
}

impl ServiceEntry {
    /// In `flags`: the flow hash takes the source address alone ([`crate::flow::Hashed`]).
    pub const HASH_SOURCE: u32 = Self::HASH_SOURCE_PORT | 1;
    /// In `flags`: the flow hash takes the source address and port alone.
    pub const HASH_SOURCE_PORT: u32 = 2;
    /// In `flags`: the bits that say what the flow hash takes.
    pub const HASH: u32 = Self::HASH_SOURCE | Self::HASH_SOURCE_PORT;
    /// In `flags`: flows are told by QUIC connection IDs.
    pub const QUIC: u32 = 4;
    /// In `flags` of an address's entry (protocol and port 0): echo requests are answered.
    pub const ECHO: u32 = 8;
}

const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<ServiceEntry>() == 8);
