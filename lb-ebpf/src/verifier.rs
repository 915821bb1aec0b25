//! What the verifier is not to know: it goes through what follows once for each state that it can tell apart.

/// The same word, of which the verifier knows nothing: whichever way led to it, what follows is one state.
#[inline(always)]
pub fn forget(word: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = u64::from(word);
        // SAFETY: swapping twice restores the lower 32 bits.
        unsafe {
            core::arch::asm!(
                "{0} = be32 {0}",
                "{0} = be32 {0}",
                inout(reg) value,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        value as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    word
}
