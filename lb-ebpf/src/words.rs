//! What a frame begins with, in as few instructions as can be. The compiler knows no more of a frame than that it starts at an even
//! address, and takes a word in two halves; the kernels that we are for (of x86-64, arm64 and all others that read words at
//! any address) let programs do that as well. The two MAC addresses are written as two words at once and a third, and what is behind them goes
//! word by word: IP headers lie at words, from two bytes beyond one.

use crate::packet::Header;
use core::mem::MaybeUninit;
use lb_common::header::{EthernetHeader, word};

/// Does the same for each word behind the Ethernet header that a type begins with; the longest has headers of GUE over IPv6.
macro_rules! for_each_word {
    ($type:ident, $do:ident) => {
        const { assert!($type::LENGTH >= 14 && $type::LENGTH % 4 == 2 && $type::LENGTH <= 74) };
        for_each_word!(@at $type, $do, 14 18 22 26 30 34 38 42 46 50 54 58 62 66 70)
    };
    (@at $type:ident, $do:ident, $($at:literal)+) => {{
        $(if $at < $type::LENGTH {
            $do!($at);
        })+
    }};
}

/// Reads what is behind `Before` in a frame.
///
/// # Safety
/// It is there, as the verifier has seen.
#[inline(always)]
pub unsafe fn read<Before: Header, T: Header>(from: *const u16) -> T {
    let mut header = MaybeUninit::<T>::uninit();
    let to = header.as_mut_ptr().cast::<u8>();
    macro_rules! wide {
        ($at:literal) => {
            to.add($at)
                .cast::<u32>()
                .write_unaligned(load::<Before, $at>(from))
        };
    }
    macro_rules! narrow {
        ($at:literal) => {
            to.add($at)
                .cast::<u16>()
                .write_unaligned(from.byte_add(Before::LENGTH + $at).read())
        };
    }
    // SAFETY: all bytes of the header are written, none behind it; `T: Header` is valid for every bit pattern.
    unsafe {
        narrow!(0);
        wide!(2);
        wide!(6);
        narrow!(10);
        narrow!(12);
        for_each_word!(T, wide);
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
    // SAFETY: as in `read`; a header has no padding.
    unsafe {
        let link: EthernetHeader = from.cast::<EthernetHeader>().read();
        let ([a, b, c], [d, e, f]) = (link.destination, link.source);
        let (first, second) = (word(a, b).into(), word(c, d).into());
        store_double::<0>(to, double(first, second));
        store::<8>(to, word(e, f));
        to.byte_add(12).write(link.ethertype);
        for_each_word!(T, wide);
    }
}

/// Two words, one behind the other, as one.
#[inline(always)]
const fn double(first: u64, second: u64) -> u64 {
    if cfg!(target_endian = "little") {
        first | second << 32
    } else {
        first << 32 | second
    }
}

/// The word `AT` bytes behind `Before`, which is at `start`.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
pub unsafe fn load<Before: Header, const AT: usize>(start: *const u16) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let word: u64;
        // SAFETY: the caller knows that it is there.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})",
                out(reg) word,
                in(reg) start,
                const Before::LENGTH + AT,
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
        start
            .byte_add(Before::LENGTH + AT)
            .cast::<u32>()
            .read_unaligned()
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

/// Writes what a frame is to begin with, two words at a time.
///
/// # Safety
/// As for [`read`].
#[inline(always)]
pub unsafe fn write_doubles(to: *mut u16, [a, b, c, d, e, f]: [u64; 6]) {
    // SAFETY: the caller's.
    unsafe {
        store_double::<0>(to, a);
        store_double::<8>(to, b);
        store_double::<16>(to, c);
        store_double::<24>(to, d);
        store_double::<32>(to, e);
        store_double::<40>(to, f);
    }
}

/// Stores two words `AT` bytes behind `start`.
#[inline(always)]
unsafe fn store_double<const AT: usize>(start: *mut u16, words: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as in `load`.
    unsafe {
        core::arch::asm!(
            "*(u64 *)({0} + {2}) = {1}",
            in(reg) start,
            in(reg) words,
            const AT,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as in `load`.
    unsafe {
        start.byte_add(AT).cast::<u64>().write_unaligned(words);
    }
}
