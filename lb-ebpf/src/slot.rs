//! The slot tables: who owns a flow's slot.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps},
    macros::btf_map,
};
use lb_common::{
    limits::{DEFAULT_SERVICES, SLOTS},
    slot::Slot,
    verdict::Verdict,
};

/// A service's slot words, mapped into the daemon's memory so that a change is one store.
type Table = Array<u64, { SLOTS as usize }, { BPF_F_MMAPABLE as usize }>;

#[btf_map]
static SLOT_TABLES: ArrayOfMaps<Table, { DEFAULT_SERVICES as usize }> = ArrayOfMaps::new();

/// The word of a slot in the table of a service. The number is calculated when the table has been found: what it is calculated from
/// need not be kept over that.
#[inline(always)]
pub fn get(service: u32, number: impl FnOnce() -> u32) -> Result<Slot, Verdict> {
    let table = SLOT_TABLES.get(service).ok_or(Verdict::DropBadState)?;
    let word = table.get_ptr(number()).ok_or(Verdict::DropBadState)?;
    // SAFETY: an element of an array map stays where it is while the program runs. The daemon may store to it at any
    // moment; a volatile read of an aligned word sees the old word or the new one, and reads it once.
    Ok(Slot(unsafe { word.read_volatile() }))
}
