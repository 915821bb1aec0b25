//! The services maps: which service, if any, a packet is for. The most specific one: that of the exact address and port, else
//! of the address and any port, else of the longest prefix, with the port or, if that has none, with any.
//!
//! **Invariants.** Who finds its exact key at home pays for nothing else. Who finds nobody there pays for no more than to see
//! whether the node has any other kind of services.

use crate::parse::Flow;
use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    limits::DEFAULT_SERVICES,
    service::{PrefixKey, ServiceEntry},
    service_bucket::ServiceBucket,
};

#[btf_map]
static SERVICES: Array<ServiceBucket, { DEFAULT_SERVICES as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// Number of buckets less one; set when the program is loaded.
#[unsafe(no_mangle)]
static SERVICE_MASK: Global<u32> = Global::new(0);

#[btf_map]
static SERVICE_PREFIXES: LpmTrie<PrefixKey, ServiceEntry, { DEFAULT_SERVICES as usize }> =
    LpmTrie::new();

/// Matches any port.
const ANY_PORT: u16 = 0;

/// What the first look says of a flow's service.
pub enum Home {
    /// It is that of this word ([`ServiceBucket::entry`]).
    Service(u64),
    /// There is none.
    Nobody,
    /// More than a look is needed.
    Elsewhere,
}

/// Looks for the service of a flow where its exact key is at home.
#[inline(always)]
pub fn at_home(flow: &Flow) -> Home {
    let key = key(flow);
    match look(ServiceBucket::home(key), key) {
        Seen::Entry(word) => Home::Service(word),
        Seen::Nothing if has_exact_alone() => Home::Nobody,
        Seen::Nothing | Seen::Another => Home::Elsewhere,
    }
}

/// The service of a flow.
#[inline(always)]
pub fn find(flow: &Flow) -> Option<ServiceEntry> {
    match at_home(flow) {
        Home::Service(word) => Some(ServiceEntry::of_word(word)),
        Home::Nobody => None,
        Home::Elsewhere => entry(search(key(flow))),
    }
}

/// The entry of an address, if it is some service's: its own, else that of the longest prefix. For rare packets only: those
/// without ports.
#[inline(always)]
pub fn of_address(address: Address) -> Option<ServiceEntry> {
    entry(search(ServiceBucket::key(&address, ANY_PORT, 0)))
}

#[inline(always)]
fn key(flow: &Flow) -> [u64; 3] {
    ServiceBucket::key(&flow.destination, flow.ports.destination, flow.protocol)
}

#[inline(always)]
fn entry(word: u64) -> Option<ServiceEntry> {
    match word {
        0 => None,
        word => Some(ServiceEntry::of_word(word)),
    }
}

/// The word of the entry of the key or of the next best one, 0 if there is none.
#[inline(always)]
fn search([start, end, rest]: [u64; 3]) -> u64 {
    let exact = probe(start, end, rest);
    if exact != 0 {
        return exact;
    }
    match probe(start, end, ServiceBucket::of_any_port(rest)) {
        0 => longest_prefix(start, end, rest),
        any_port => any_port,
    }
}

/// What a bucket has to say of a key.
enum Seen {
    /// The word of its entry.
    Entry(u64),
    /// Neither this nor a later one has it.
    Nothing,
    /// It may be in a later one.
    Another,
}

/// Looks into the bucket with this number, of which the lower bits count.
#[inline(always)]
fn look(number: u32, key: [u64; 3]) -> Seen {
    let Some(bucket) = SERVICES.get_ptr(1 + (number & SERVICE_MASK.load())) else {
        return Seen::Nothing;
    };
    // SAFETY: an element of an array map stays where it is while the program runs. Each word is read on its own. A packet
    // that races with a key's arrival does not find it, or finds it whole; one that races with its removal may still find it.
    unsafe {
        let found = (&raw const (*bucket).rest).read_volatile();
        let halves = || [(*bucket).start, (*bucket).end];
        if ServiceBucket::is_of(key, found, halves) {
            return Seen::Entry((&raw const (*bucket).entry).read_volatile());
        }
        if found == ServiceBucket::EMPTY {
            return Seen::Nothing;
        }
    }
    Seen::Another
}

/// Whether the exact key finds every service there is: none has all ports or a prefix.
#[inline(always)]
fn has_exact_alone() -> bool {
    // SAFETY: as in `look`.
    let others = SERVICES
        .get_ptr(0)
        .map(|first| unsafe { (&raw const (*first).entry).read_volatile() });
    others == Some(0)
}

/// The word of the entry of this very key ([`ServiceBucket::key`]), 0 if there is none.
///
/// To the kernel this and [`longest_prefix`] are global functions: the verifier goes through them once, and not for each way that
/// leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn probe(start: u64, end: u64, rest: u64) -> u64 {
    let key = [start, end, rest];
    let home = ServiceBucket::home(key);
    for step in 0..ServiceBucket::PROBES {
        match look(home.wrapping_add(step), key) {
            Seen::Entry(word) => return word,
            Seen::Nothing => return 0,
            Seen::Another => {}
        }
    }
    0
}

/// The word of the entry of the longest prefix, 0 if there is none; arguments as those of [`probe`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn longest_prefix(start: u64, end: u64, rest: u64) -> u64 {
    let wanted = PrefixKey {
        protocol: (rest >> 16) as u8,
        zero: 0,
        port: rest as u16,
        address: ServiceBucket::address([start, end, rest]),
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
