//! Fragments. The first one has the ports and goes where a whole packet would; it leaves an entry that the later ones of its
//! datagram follow.
//!
//! **Invariants.** Only fragments come here: whole packets pay nothing. An entry is made once the first fragment has been
//! forwarded, or passed because its port is no service's. A later fragment goes where the first went or nowhere: only there
//! can the datagram become whole.

use crate::{backend, flow_table::Owners, parse::Ip, pipeline::Way, service, trace};
use aya_ebpf::{bindings::BPF_ANY, btf_maps::LruHashMap, macros::btf_map};
use lb_common::{
    fragment::{FragmentEntry, FragmentKey},
    limits,
    verdict::Verdict,
};
use lb_ebpf::clock;

#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry, { limits::FRAGMENTS as usize }> =
    LruHashMap::new();

/// Backend of an entry that says that the datagram is for no service.
const NOBODY: u32 = 0;

/// The way of a later fragment: that of the first. Without the first, fragments for a service's address are dropped, since
/// nothing else can be done with them, and all others are none of our business.
#[inline(always)]
pub fn way(ip: &Ip) -> Result<Way, Verdict> {
    if service::of_address(ip.destination).is_none() {
        return Err(Verdict::PassFragment);
    }
    // SAFETY: the entry is copied at once, and is valid for every bit pattern. The kernel may give it to another datagram
    // meanwhile: then this fragment goes where it is dropped.
    let known = unsafe { FRAGMENTS.get(key(ip)) }.copied();
    let entry = known
        .filter(|entry| entry.is_fresh(clock::seconds()))
        .ok_or(Verdict::DropFragment)?;
    if entry.backend == NOBODY {
        return Err(Verdict::PassFragment);
    }
    // A backend that is LOST is followed: the datagram is of no use to another.
    if backend::generation(entry.backend) != Ok(entry.generation) {
        return Err(Verdict::DropFragment);
    }
    trace::service(entry.service, entry.hash);
    Ok(Way {
        service: entry.service,
        owners: Owners::alone(entry.backend),
        hash: entry.hash,
    })
}

/// Makes the entry of a first fragment that has been forwarded.
#[inline(always)]
pub fn record(ip: &Ip, way: &Way) {
    let Ok(generation) = backend::generation(way.owners.first()) else {
        return;
    };
    let entry = FragmentEntry {
        hash: way.hash,
        backend: way.owners.first(),
        generation,
        service: way.service,
        seen: clock::seconds(),
    };
    insert(ip, &entry);
}

/// What becomes of a first fragment whose port is no service's. If its address is one's, the later ones need an entry to be
/// told from those that are for a service.
#[inline(always)]
pub fn without_service(ip: &Ip) -> Verdict {
    if service::of_address(ip.destination).is_some() {
        let entry = FragmentEntry {
            seen: clock::seconds(),
            ..FragmentEntry::default()
        };
        insert(ip, &entry);
    }
    Verdict::PassFragment
}

/// What becomes of a first fragment that ends before its ports.
#[inline(always)]
pub fn without_ports(ip: &Ip) -> Verdict {
    match service::of_address(ip.destination) {
        Some(_) => Verdict::DropShortFragment,
        None => Verdict::PassFragment,
    }
}

#[inline(always)]
fn insert(ip: &Ip, entry: &FragmentEntry) {
    if !trace::is_explaining() {
        // Should the kernel refuse, the later fragments are dropped, and counted as that.
        let _ = FRAGMENTS.insert(key(ip), entry, BPF_ANY.into());
    }
}

#[inline(always)]
fn key(ip: &Ip) -> FragmentKey {
    FragmentKey {
        source: ip.source,
        destination: ip.destination,
        id: ip.fragment_id,
        protocol: if ip.is_v4 { u32::from(ip.protocol) } else { 0 },
    }
}
