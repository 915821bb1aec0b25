//! What a frame begins with, in as few instructions as can be. The compiler knows no more of a frame than that it starts at an even
//! address, and takes a word in two halves; the kernels that we are for (of x86-64, arm64 and all others that read words at
//! any address) let programs do that as well. MAC addresses are a word and a half, and what is behind them goes word by word: IP headers
//! lie at words, from two bytes beyond one.

use crate::packet::Header;
use core::mem::MaybeUninit;

/// Does the same for each word (`$wide`) and half word (`$narrow`) of a type that begins with an Ethernet header; the longest has headers
/// of GUE over IPv6.
macro_rules! for_each_part {
    ($type:ident, $wide:ident, $narrow:ident) => {{
        const { assert!($type::LENGTH >= 14 && $type::LENGTH % 4 == 2 && $type::LENGTH <= 74) };
        $wide!(0);
        $narrow!(4);
        $wide!(6);
        $narrow!(10);
        $narrow!(12);
        for_each_part!(@words $type, $wide, 14 18 22 26 30 34 38 42 46 50 54 58 62 66 70)
    }};
    (@words $type:ident, $do:ident, $($at:literal)+) => {{
        $(if $at < $type::LENGTH {
            $do!($at);
        })+
    }};
}

/// Reads what a frame begins with.
///
/// # Safety
/// It is there, as the verifier has seen.
#[inline(always)]
pub unsafe fn read<T: Header>(from: *const u16) -> T {
    let mut header = MaybeUninit::<T>::uninit();
    let to = header.as_mut_ptr().cast::<u8>();
    macro_rules! wide {
        ($at:literal) => {
            to.add($at).cast::<u32>().write_unaligned(load::<$at>(from))
        };
    }
    macro_rules! narrow {
        ($at:literal) => {
            to.add($at)
                .cast::<u16>()
                .write_unaligned(from.byte_add($at).read())
        };
    }
    // SAFETY: all bytes of the header are written, none behind it; `T: Header` is valid for every bit pattern.
    unsafe {
        for_each_part!(T, wide, narrow);
        header.assume_init()
    }
}

/// Writes what a frame is to begin with.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
pub unsafe fn write<T: Header>(to: *mut u16, header: T) {
    let from = (&raw const header).cast::<u8>();
    macro_rules! wide {
        ($at:literal) => {
            store::<$at>(to, from.add($at).cast::<u32>().read_unaligned())
        };
    }
    macro_rules! narrow {
        ($at:literal) => {
            to.byte_add($at)
                .write(from.add($at).cast::<u16>().read_unaligned())
        };
    }
    // SAFETY: as in `read`; a header has no padding.
    unsafe { for_each_part!(T, wide, narrow) }
}

/// The word `AT` bytes behind `start`.
#[inline(always)]
unsafe fn load<const AT: usize>(start: *const u16) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: the caller knows that it is there.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})",
                out(reg) word,
                in(reg) start,
                const AT,
                options(pure, readonly, nostack, preserves_flags)
            );
            // It was a load of four bytes.
            core::hint::assert_unchecked(word <= u32::MAX as u64);
        }
        word as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above.
    unsafe {
        start.byte_add(AT).cast::<u32>().read_unaligned()
    }
}

/// Stores the word `AT` bytes behind `start`.
#[inline(always)]
unsafe fn store<const AT: usize>(start: *mut u16, word: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as in `load`.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({0} + {2}) = {1}",
            in(reg) start,
            in(reg) word,
            const AT,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as in `load`.
    unsafe {
        start.byte_add(AT).cast::<u32>().write_unaligned(word);
    }
}
