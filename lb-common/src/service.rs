//! How a packet finds its service.

use crate::address::Address;

/// Key of the services map. `port` 0 matches any port and is looked up only when the exact port is not found.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The VIP.
    pub address: Address,
    /// Destination port in network byte order; 0 = any port.
    pub port: u16,
    /// IP protocol number: 6 (TCP) or 17 (UDP).
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
}

/// Value of the services map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Index of the service's slot table and counters.
    pub index: u32,
    /// Reserved for per-service policy; 0.
    pub flags: u32,
}

const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<ServiceEntry>() == 8);
