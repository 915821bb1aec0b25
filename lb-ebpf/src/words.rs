//! Headers in instructions of four bytes. The compiler knows no more of a frame than that it starts at an even address, and takes a
//! word in two halves; the verifier knows that the start is two bytes beyond a whole word (NET_IP_ALIGN), so that IP headers lie at
//! words, or that the machine does not mind. A type of two bytes and then words lies like that if it is at the start of the frame
//! or whole words behind it.

use crate::packet::Header;
use core::mem::MaybeUninit;

/// Does the same for each word behind the first two bytes of a type, of which the longest is that of GUE over IPv6.
macro_rules! for_each_word {
    ($type:ident, $do:ident) => {
        for_each_word!($type, $do, 2 6 10 14 18 22 26 30 34 38 42 46 50 54 58 62 66 70)
    };
    ($type:ident, $do:ident, $($at:literal)+) => {
        const { assert!($type::LENGTH % 4 == 2 && $type::LENGTH <= 74) };
        $(if $at < $type::LENGTH {
            $do!($at);
        })+
    };
}

/// Reads a header.
///
/// # Safety
/// It is there, as the verifier has seen, and where this module wants it.
#[inline(always)]
pub unsafe fn read<T: Header>(from: *const u16) -> T {
    let mut header = MaybeUninit::<T>::uninit();
    let to = header.as_mut_ptr().cast::<u8>();
    macro_rules! copy {
        ($at:literal) => {
            to.add($at).cast::<u32>().write_unaligned(load::<$at>(from))
        };
    }
    // SAFETY: all bytes of the header are written, none behind it; `T: Header` is valid for every bit pattern.
    unsafe {
        to.cast::<u16>().write_unaligned(from.read());
        for_each_word!(T, copy);
        header.assume_init()
    }
}

/// Writes a header.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
pub unsafe fn write<T: Header>(to: *mut u16, header: T) {
    let from = (&raw const header).cast::<u8>();
    macro_rules! copy {
        ($at:literal) => {
            store::<$at>(to, from.add($at).cast::<u32>().read_unaligned())
        };
    }
    // SAFETY: as in `read`; a header has no padding.
    unsafe {
        to.write(from.cast::<u16>().read_unaligned());
        for_each_word!(T, copy);
    }
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
