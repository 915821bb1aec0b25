//! The services maps: which service, if any, a packet is for. The most specific one: that of the exact address and port, else
//! of the address and any port, else of the longest prefix, with the port or, if that has none, with any.
//!
//! **Invariant.** Prefixes are looked up last: who finds a service of one address pays nothing for them.

use crate::parse::Flow;
use aya_ebpf::{
    btf_maps::{HashMap, LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    limits::DEFAULT_SERVICES,
    service::{PrefixKey, ServiceEntry, ServiceKey},
};

#[btf_map]
static SERVICES: HashMap<ServiceKey, ServiceEntry, { DEFAULT_SERVICES as usize }> = HashMap::new();

#[btf_map]
static SERVICE_PREFIXES: LpmTrie<PrefixKey, ServiceEntry, { DEFAULT_SERVICES as usize }> =
    LpmTrie::new();

/// Matches any port.
const ANY_PORT: u16 = 0;

/// The service of a flow.
#[inline(always)]
pub fn find(flow: &Flow) -> Option<ServiceEntry> {
    let key = ServiceKey {
        address: flow.destination,
        port: flow.ports.destination,
        protocol: flow.protocol,
        prefix: 0,
    };
    let any_port = ServiceKey {
        port: ANY_PORT,
        ..key
    };
    get(&key)
        .or_else(|| get(&any_port))
        .or_else(|| within(&key))
}

/// The entry of an address, if it is some service's: its own, else that of the longest prefix. For rare packets only: those
/// without ports.
#[inline(always)]
pub fn of_address(address: Address) -> Option<ServiceEntry> {
    let key = ServiceKey::of_address(address);
    get(&key).or_else(|| within(&key))
}

#[inline(always)]
fn get(key: &ServiceKey) -> Option<ServiceEntry> {
    // SAFETY: the entry is copied at once, and is valid for every bit pattern. A packet that races with the removal
    // of its service may read the entry of one added at that moment, as a whole.
    unsafe { SERVICES.get(key) }.copied()
}

#[inline(always)]
fn within(key: &ServiceKey) -> Option<ServiceEntry> {
    let [start, end] = key.address.halves();
    let port = u32::from(key.port) | u32::from(key.protocol) << 16;
    match longest_prefix(start, end, port) {
        0 => None,
        word => Some(ServiceEntry::of_word(word)),
    }
}

/// The word of the entry of the longest prefix, 0 if there is none. The halves of the address and, in `port`, the port as it
/// lies in the packet and above it the protocol.
///
/// To the kernel this is a global function: the verifier goes through it once, and not for each way that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn longest_prefix(start: u64, end: u64, port: u32) -> u64 {
    let wanted = PrefixKey {
        protocol: (port >> 16) as u8,
        zero: 0,
        port: port as u16,
        address: Address::of_halves(start, end),
    };
    // One key for both: the stack is short.
    let mut key = Key::new(PrefixKey::BITS, wanted);
    let with_port = word(&key);
    key.data.port = ANY_PORT;
    let any_port = word(&key);
    if any_port >> 56 > with_port >> 56 {
        any_port
    } else {
        with_port
    }
}

/// The word of the longest prefix's entry for this port alone, 0 if there is none.
#[inline(always)]
fn word(key: &Key<PrefixKey>) -> u64 {
    SERVICE_PREFIXES.get(key).map_or(0, |entry| entry.word())
}
