//! The services map: which service, if any, a packet is for.

use crate::parse::Ip;
use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use lb_common::{
    header::Ports,
    limits::DEFAULT_SERVICES,
    service::{ServiceEntry, ServiceKey},
};

#[btf_map]
static SERVICES: HashMap<ServiceKey, ServiceEntry, { DEFAULT_SERVICES as usize }> = HashMap::new();

/// Matches any port.
const ANY_PORT: u16 = 0;

/// The service of a packet with ports: the exact port's, else the address's service for any port.
#[inline(always)]
pub fn find(ip: &Ip, ports: Ports) -> Option<ServiceEntry> {
    look_up(ip, ports.destination).or_else(|| find_any_port(ip))
}

/// The service for any port of the packet's destination.
#[inline(always)]
pub fn find_any_port(ip: &Ip) -> Option<ServiceEntry> {
    look_up(ip, ANY_PORT)
}

#[inline(always)]
fn look_up(ip: &Ip, port: u16) -> Option<ServiceEntry> {
    let key = ServiceKey {
        address: ip.destination,
        port,
        protocol: ip.protocol,
        zero: 0,
    };
    // SAFETY: the entry is copied at once, and is valid for every bit pattern. A packet that races with the removal
    // of its service may read the entry of one added at that moment, as a whole.
    unsafe { SERVICES.get(key) }.copied()
}
