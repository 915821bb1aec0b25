//! The slot tables: which backend owns a flow's slot.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use lb_common::{
    flow::slot_of,
    limits::{DEFAULT_SERVICES, SLOTS},
    slot::Slot,
    verdict::Verdict,
};

/// A service's slot words, mapped into the daemon's memory so that a change is one store.
type Table = Array<u64, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }>;

#[btf_map]
static SLOT_TABLES: ArrayOfMaps<Table, { DEFAULT_SERVICES as usize }> = ArrayOfMaps::new();

/// Index of the backend that owns the slot of `hash` in the table of a service.
#[inline(always)]
pub fn owner(service: u32, hash: u64) -> Result<u32, Verdict> {
    let table = SLOT_TABLES.get(service).ok_or(Verdict::DropBadState)?;
    let word = table.get_ptr(slot_of(hash)).ok_or(Verdict::DropBadState)?;
    // SAFETY: an element of an array map stays where it is while the program runs. The daemon may store to it at any
    // moment; a volatile read of an aligned word sees the old word or the new one, and reads it once.
    let slot = Slot(unsafe { word.read_volatile() });
    match slot.new_owner() {
        0 => Err(Verdict::DropNoBackend),
        index => Ok(index),
    }
}
