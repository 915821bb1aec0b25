//! Memory that was needed once and that the allocator would keep: a megabyte for each table that a plan stores as a whole, half
//! of one for its stand-ins.

use crate::plan::diff::Step;
use lb_common::limits::SLOTS;

/// Whether the steps, once dropped, leave much free that is worth the milliseconds to give it back.
pub(super) fn is_much(steps: &[Step]) -> bool {
    let slots = |step: &Step| match step {
        Step::StoreSlots { slots, .. } => slots.len(),
        Step::WriteBackend { .. }
        | Step::CreateTables { .. }
        | Step::PutServer { .. }
        | Step::RemoveServer { .. }
        | Step::PutService { .. }
        | Step::RemoveService { .. }
        | Step::PutAddress { .. }
        | Step::RemoveAddress { .. }
        | Step::RemoveTable { .. }
        | Step::ClearBackend { .. } => 0,
    };
    steps.iter().map(slots).sum::<usize>() > 4 * SLOTS as usize
}

/// Gives free memory back to the kernel.
pub(super) fn give_back() {
    // Other allocators keep less.
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
