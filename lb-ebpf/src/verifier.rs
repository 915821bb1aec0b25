//! What the verifier is not to know: it goes through what follows once for each state that it can tell apart. And what the compiler is
//! not to know, as it would make of it what the verifier refuses, or keep it on the stack.

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

/// [`forget`] for twice as many bits.
#[inline(always)]
pub fn forget_wide(bits: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut bits = bits;
        // SAFETY: swapping twice restores all bits.
        unsafe {
            core::arch::asm!(
                "{0} = be64 {0}",
                "{0} = be64 {0}",
                inout(reg) bits,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        bits
    }
    #[cfg(not(target_arch = "bpf"))]
    bits
}

/// The same, of which the compiler knows nothing. The verifier still does.
#[inline(always)]
pub fn hide(bits: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut bits = bits;
        // SAFETY: it moves a register to itself.
        unsafe {
            core::arch::asm!(
                "{0} = {0}",
                inout(reg) bits,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        bits
    }
    #[cfg(not(target_arch = "bpf"))]
    bits
}
