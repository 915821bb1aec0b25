//! Which tunnels are ours, and what became of each packet.

use aya_ebpf::{
    Global,
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use lb_common::{
    address::Address,
    decap::{
        CHECK_HOST, CHECK_SOURCE, CHECK_VIP, LocalKey, MAX_ADDRESSES, OF_HOST, OF_SERVICE, Reason,
        SECOND_CHANCE,
    },
    gue,
};

use crate::tunnel::Tunnel;

#[unsafe(no_mangle)]
static DECAP_CHECKS: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
static DECAP_PORT: Global<u16> = Global::new(gue::DEFAULT_PORT);

#[btf_map]
static DECAP_ADDRESSES: HashMap<LocalKey, u8, { MAX_ADDRESSES as usize }> = HashMap::new();

#[btf_map]
static DECAP_SOURCES: LpmTrie<[u8; 16], u8, { MAX_ADDRESSES as usize }> = LpmTrie::new();

#[btf_map]
static DECAP_COUNTS: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();

/// UDP port of GUE, network order.
#[inline(always)]
pub fn gue_port() -> u16 {
    DECAP_PORT.load().to_be()
}

/// Checks the ends of a tunnel as far as that was asked for.
#[inline(always)]
pub fn check_ends(tunnel: &Tunnel) -> Result<(), Reason> {
    let checks = DECAP_CHECKS.load();
    if checks & CHECK_HOST != 0 && !is_known(&tunnel.destination, OF_HOST) {
        return Err(Reason::OtherHost);
    }
    if checks & CHECK_SOURCE != 0 && !is_balancer(&tunnel.source) {
        return Err(Reason::OtherSource);
    }
    Ok(())
}

/// Checks the inner destination as far as that was asked for.
#[inline(always)]
pub fn check_destination(destination: Address) -> Result<(), Reason> {
    if DECAP_CHECKS.load() & CHECK_VIP != 0 && !is_known(&destination, OF_SERVICE) {
        return Err(Reason::NotVip);
    }
    Ok(())
}

/// Whether packets are handed on to another owner that they name.
#[inline(always)]
pub fn gives_second_chances() -> bool {
    DECAP_CHECKS.load() & SECOND_CHANCE != 0
}

/// Whether an address is known to be this host's.
#[inline(always)]
pub fn is_own(address: &Address) -> bool {
    is_known(address, OF_HOST)
}

#[inline(always)]
fn is_known(address: &Address, kind: u32) -> bool {
    let key = LocalKey {
        address: *address,
        kind,
    };
    DECAP_ADDRESSES.get_ptr(key).is_some()
}

#[inline(always)]
fn is_balancer(source: &Address) -> bool {
    // SAFETY: four words are sixteen bytes, and every bit pattern is a value of both.
    let bytes: [u8; 16] = unsafe { core::mem::transmute(source.0) };
    DECAP_SOURCES.get(&Key::new(128, bytes)).is_some()
}

/// Counts a packet.
#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(count) = DECAP_COUNTS.get_ptr_mut(reason as u32) {
        // SAFETY: the element is this CPU's, and neither XDP nor ingress is preempted by itself on a CPU.
        unsafe { *count += 1 }
    }
}
