//! The memory of the flow table (`lb-common/src/flow_set.rs`): found, claimed, read and written.
//!
//! **Invariants.** As those of the layout. To the kernel, what looks through a set is a global function: the verifier goes through
//! it once, and not for each way that leads to it.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use lb_common::{
    flow_set::{FlowSet, Head, KEY_WORDS, SECRET, SETS, WAYS, WORDS, Worth, home, sets},
    limits::DEFAULT_FLOWS,
};
use lb_ebpf::verifier;

const ELEMENTS: usize = 1 + sets(DEFAULT_FLOWS) as usize;

#[btf_map]
static FLOWS: Array<FlowSet, ELEMENTS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// A place, or where a flow without one is at home: below, the way and the number of the set; above, the stamp of the place's
/// head, or with [`Place::NONE`] the tag that it would have.
#[derive(Clone, Copy)]
pub struct Place(u64);

impl Place {
    const NONE: u64 = 16;

    #[inline(always)]
    const fn new(set: u32, way: u64, stamp: u32) -> Self {
        Self((set as u64) << 5 | way | (stamp as u64) << 32)
    }

    /// Whether there is one.
    #[inline(always)]
    pub const fn is_there(self) -> bool {
        self.0 & Self::NONE == 0
    }

    #[inline(always)]
    const fn set(self) -> u32 {
        self.0 as u32 >> 5
    }

    #[inline(always)]
    const fn stamp(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Where the place's words are: its head, and the first of the others.
    #[inline(always)]
    fn pointers(self) -> Option<(*mut u64, *mut u64)> {
        let words = FLOWS.get_ptr_mut(1 + self.set())?.cast::<u64>();
        // Hidden, so that the verifier sees the bound where the word is used.
        let way = (verifier::hide(self.0) & (WAYS as u64 - 1)) as usize;
        // SAFETY: within the element, as there are so many ways.
        unsafe { Some((words.add(way), words.add(WAYS + way * WORDS))) }
    }

    /// The head and what is known of the flow, if the place is still the one that was found.
    #[inline(always)]
    pub fn read(self) -> Option<(Head, [u64; 2])> {
        let (head, words) = self.pointers()?;
        // SAFETY: an element of an array map stays where it is while the program runs. Each word is read on its own, and all are
        // believed only if the place was not written meanwhile.
        unsafe {
            let known = [
                words.add(KEY_WORDS).read_volatile(),
                words.add(KEY_WORDS + 1).read_volatile(),
            ];
            let head = Head(after(head, known[0] ^ known[1]).read_volatile());
            (head.stamp() == self.stamp()).then_some((head, known))
        }
    }

    /// Gives the place another head, unless it has changed.
    #[inline(always)]
    pub fn mark(self, old: Head, new: Head) {
        if let Some((head, _)) = self.pointers() {
            // SAFETY: as in `read`; the word is only ever exchanged.
            let _ = unsafe { exchange(head, old, new) };
        }
    }

    /// Writes a flow to a place that was claimed.
    #[inline(always)]
    pub fn write(self, key: [u64; KEY_WORDS], known: [u64; 2], seen: u32) {
        let Some((head, words)) = self.pointers() else {
            return;
        };
        let claimed = Head(self.stamp().into());
        // SAFETY: as in `read`; nobody else writes here while the head is busy.
        unsafe {
            let [a, b, c, d, e] = key;
            words.write_volatile(a);
            words.add(1).write_volatile(b);
            words.add(2).write_volatile(c);
            words.add(3).write_volatile(d);
            words.add(4).write_volatile(e);
            words.add(KEY_WORDS).write_volatile(known[0]);
            words.add(KEY_WORDS + 1).write_volatile(known[1]);
            tell(head, claimed, claimed.told(Worth::Recorded, seen));
        }
    }
}

/// The place of a flow.
#[inline(always)]
pub fn find([a, b, c, d, e]: [u64; KEY_WORDS]) -> Place {
    Place(find_place(a, b, c, d, e))
}

/// Claims the place, or one in its set that is worth least if there is none; none if others were faster.
#[inline(always)]
pub fn claim(place: Place) -> Place {
    Place(claim_place(place.0))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_place(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    let Some(first) = FLOWS.get_ptr(0).map(<*const _>::cast::<u64>) else {
        return Place::NONE;
    };
    // SAFETY: within the element.
    let (secret, sets) = unsafe {
        (
            first.add(SECRET).read_volatile(),
            first.add(SETS).read_volatile(),
        )
    };
    let home = home([a, b, c, d, e], secret, sets);
    let absent = Place::new(home.set, Place::NONE | u64::from(home.way), home.tag.into());
    let Some(set) = FLOWS.get_ptr_mut(1 + home.set).map(<*mut _>::cast::<u64>) else {
        return absent.0;
    };
    let found = |way: u64| {
        // SAFETY: within the element; a place that is written meanwhile is not believed by who reads it then.
        unsafe {
            let head = Head(set.add(way as usize).read_volatile());
            if !head.has_tag(home.tag) || !head.is_used() {
                return None;
            }
            let words = after(set.add(WAYS + way as usize * WORDS), head.0);
            let differs = (words.read_volatile() ^ a)
                | (words.add(1).read_volatile() ^ b)
                | (words.add(2).read_volatile() ^ c)
                | (words.add(3).read_volatile() ^ d)
                | (words.add(4).read_volatile() ^ e);
            // Where the head is looked at again follows from this number, and so comes after the key's words.
            (differs == 0).then(|| Place::new(home.set, way, head.stamp()).0 | nothing_of(differs))
        }
    };
    if let Some(place) = found(verifier::hide(home.way.into()) & (WAYS as u64 - 1)) {
        return place;
    }
    for way in 0..WAYS as u64 {
        if let Some(place) = found(way) {
            return place;
        }
    }
    absent.0
}

/// Times that claiming a place is tried while others are faster.
const TRIES: u32 = 4;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_place(place: u64) -> u64 {
    let wanted = Place(place);
    let none = Place::new(wanted.set(), Place::NONE, 0).0;
    for _ in 0..TRIES {
        let way = if wanted.is_there() {
            place & (WAYS as u64 - 1)
        } else {
            least(wanted)
        };
        let chosen = Place::new(wanted.set(), way, 0);
        let Some((pointer, _)) = chosen.pointers() else {
            return none;
        };
        // SAFETY: an element of an array map stays where it is while the program runs.
        let head = Head(unsafe { pointer.read_volatile() });
        if wanted.is_there() && head.stamp() != wanted.stamp() {
            return none;
        }
        if head.is_busy() {
            continue;
        }
        let claimed = head.claimed(wanted.stamp() as u16);
        // SAFETY: as above; the word is only ever exchanged.
        if unsafe { exchange(pointer, head, claimed) } {
            return Place::new(wanted.set(), way, claimed.stamp()).0;
        }
    }
    none
}

/// The way of the flow's own if that is free, else the one in its set that is worth least.
#[inline(always)]
fn least(home: Place) -> u64 {
    if let Some((pointer, _)) = home.pointers() {
        // SAFETY: an element of an array map stays where it is while the program runs.
        let head = Head(unsafe { pointer.read_volatile() });
        if !head.is_used() && !head.is_busy() {
            return home.0 & (WAYS as u64 - 1);
        }
    }
    let Some(heads) = FLOWS.get_ptr(1 + home.set()).map(<*const _>::cast::<u64>) else {
        return 0;
    };
    let mut least = u64::MAX;
    for way in 0..WAYS {
        // SAFETY: within the element.
        let head = Head(unsafe { heads.add(way).read_volatile() });
        let ranked = head.0 & !(WAYS as u64 - 1) | way as u64;
        if !head.is_busy() && ranked < least {
            least = ranked;
        }
    }
    verifier::forget_wide(least) & (WAYS as u64 - 1)
}

/// The same pointer, which cannot be followed before the word is there.
#[inline(always)]
fn after(pointer: *mut u64, word: u64) -> *mut u64 {
    pointer.wrapping_byte_add(nothing_of(word) as usize)
}

/// 0, which is not known before the word is there. An x86 reads in order by itself, and need not wait.
#[inline(always)]
fn nothing_of(word: u64) -> u64 {
    #[cfg(all(target_arch = "bpf", not(bpf_target_arch = "x86_64")))]
    {
        let mut zero = word;
        // SAFETY: it clears a register.
        unsafe {
            core::arch::asm!(
                "{0} &= 0",
                inout(reg) zero,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        zero
    }
    #[cfg(not(all(target_arch = "bpf", not(bpf_target_arch = "x86_64"))))]
    {
        let _ = word;
        0
    }
}

/// Stores the head of a place that was claimed, after all else. An x86 keeps that order by itself, and need not wait.
#[inline(always)]
unsafe fn tell(pointer: *mut u64, claimed: Head, new: Head) {
    // SAFETY: the caller's.
    unsafe {
        if cfg!(bpf_target_arch = "x86_64") {
            let _ = claimed;
            pointer.write_volatile(new.0);
        } else {
            let _ = exchange(pointer, claimed, new);
        }
    }
}

/// Exchanges the head if it is still the old one, and says whether it was. A barrier for all other accesses.
#[inline(always)]
unsafe fn exchange(pointer: *mut u64, old: Head, new: Head) -> bool {
    #[cfg(target_arch = "bpf")]
    {
        let mut found = old.0;
        // SAFETY: the caller's.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({pointer} + 0, r0, {new})",
                pointer = in(reg) pointer,
                new = in(reg) new.0,
                inout("r0") found,
                options(nostack)
            );
        }
        found == old.0
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = (pointer, old, new);
        false
    }
}
