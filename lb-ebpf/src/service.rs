//! The services map: which service, if any, a packet is for.

use crate::parse::Flow;
use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use lb_common::{
    address::Address,
    limits::DEFAULT_SERVICES,
    service::{ServiceEntry, ServiceKey},
};

#[btf_map]
static SERVICES: HashMap<ServiceKey, ServiceEntry, { DEFAULT_SERVICES as usize }> = HashMap::new();

/// Matches any port.
const ANY_PORT: u16 = 0;

/// The service of a flow: the exact port's, else the address's service for any port.
#[inline(always)]
pub fn find(flow: &Flow) -> Option<ServiceEntry> {
    look_up(flow.destination, flow.protocol, flow.ports.destination)
        .or_else(|| look_up(flow.destination, flow.protocol, ANY_PORT))
}

/// The entry of an address, if it is some service's. For rare packets only: those without ports.
#[inline(always)]
pub fn of_address(address: Address) -> Option<ServiceEntry> {
    get(ServiceKey::of_address(address))
}

#[inline(always)]
fn look_up(address: Address, protocol: u8, port: u16) -> Option<ServiceEntry> {
    get(ServiceKey {
        address,
        port,
        protocol,
        zero: 0,
    })
}

#[inline(always)]
fn get(key: ServiceKey) -> Option<ServiceEntry> {
    // SAFETY: the entry is copied at once, and is valid for every bit pattern. A packet that races with the removal
    // of its service may read the entry of one added at that moment, as a whole.
    unsafe { SERVICES.get(key) }.copied()
}
