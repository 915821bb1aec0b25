//! The slot word: which backend owns a slot, for new flows and for old ones.

/// One slot of a service's table: one aligned 64-bit word, so that a change is one store and is never seen half done.
///
/// | bits | meaning |
/// |---|---|
/// | 0-23 | backend index of the owner for new flows, 0 = none |
/// | 24-47 | backend index of the owner for old flows, 0 = none |
/// | 48-61 | 0 |
/// | 62 | *settled*: UDP flows without an entry go to the owner for new flows, no longer to the one for old flows |
/// | 63 | *tracked*: flows of this slot are looked up in the flow table and recorded there |
///
/// In the steady state both owners are equal, no flag is set, and the packet is forwarded with no flow table at all.
/// A slot whose owners differ is always tracked. Whether it is, is the sign of the word, which costs a packet one comparison.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot(pub u64);

const OWNER_BITS: u32 = 24;
const OWNER_MASK: u64 = (1 << OWNER_BITS) - 1;
const SETTLED: u64 = 1 << 62;
const TRACKED: u64 = 1 << 63;
/// Where [`SETTLED`] and [`TRACKED`] were up to layout version 6.
const SETTLED_6: u64 = 1 << 49;
const TRACKED_6: u64 = 1 << 48;

impl Slot {
    /// A slot without an owner.
    pub const EMPTY: Self = Self(0);

    /// A slot whose owners are equal. `owner` above [`crate::limits::MAX_BACKEND_INDEX`] is cut to 24 bits.
    #[inline(always)]
    pub const fn steady(owner: u32) -> Self {
        Self::owners(owner, owner)
    }

    /// A slot of one owner whose flows are recorded.
    #[inline(always)]
    pub const fn tracked(owner: u32) -> Self {
        Self(Self::owners(owner, owner).0 | TRACKED)
    }

    /// A slot on its way from `old` to `new`; `settled`: unknown UDP flows go to `new`.
    #[inline(always)]
    pub const fn moved(new: u32, old: u32, settled: bool) -> Self {
        let flags = if settled { TRACKED | SETTLED } else { TRACKED };
        Self(Self::owners(new, old).0 | flags)
    }

    #[inline(always)]
    const fn owners(new: u32, old: u32) -> Self {
        Self((new as u64 & OWNER_MASK) | (old as u64 & OWNER_MASK) << OWNER_BITS)
    }

    /// The slot that this word meant up to layout version 6.
    pub const fn of_version_6(word: u64) -> Self {
        let (new, old) = (Self(word).new_owner(), Self(word).old_owner());
        let settled = if word & SETTLED_6 != 0 { SETTLED } else { 0 };
        let tracked = if word & TRACKED_6 != 0 { TRACKED } else { 0 };
        Self(Self::owners(new, old).0 | settled | tracked)
    }

    /// Whether its flows are looked up and recorded.
    #[inline(always)]
    pub const fn is_tracked(self) -> bool {
        (self.0 as i64) < 0
    }

    /// Whether unknown UDP flows go to the owner for new flows.
    #[inline(always)]
    pub const fn is_settled(self) -> bool {
        self.0 & SETTLED != 0
    }

    /// Owner for new flows: a backend index, 0 = none.
    #[inline(always)]
    pub const fn new_owner(self) -> u32 {
        (self.0 & OWNER_MASK) as u32
    }

    /// Owner for old flows: a backend index, 0 = none.
    #[inline(always)]
    pub const fn old_owner(self) -> u32 {
        (self.0 >> OWNER_BITS & OWNER_MASK) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_BACKEND_INDEX;

    #[test]
    fn words_of_version_6_are_understood() {
        let word = 7 | 9 << 24;
        for (flags, expected) in [
            (0, Slot(word)),
            (1 << 48, Slot::moved(7, 9, false)),
            (3 << 48, Slot::moved(7, 9, true)),
        ] {
            assert_eq!(Slot::of_version_6(word | flags), expected);
        }
    }

    #[test]
    fn owners_do_not_touch_each_other() {
        for (new, old) in [
            (0, 0),
            (1, 2),
            (MAX_BACKEND_INDEX, 0),
            (0, MAX_BACKEND_INDEX),
            (77, 77),
        ] {
            for settled in [false, true] {
                let slot = Slot::moved(new, old, settled);
                assert_eq!((slot.new_owner(), slot.old_owner()), (new, old));
                assert!(slot.is_tracked());
                assert_eq!(slot.is_settled(), settled);
            }
        }
        let (steady, tracked) = (Slot::steady(5), Slot::tracked(5));
        assert_eq!((steady.new_owner(), steady.old_owner()), (5, 5));
        assert!(!steady.is_tracked() && tracked.is_tracked() && !tracked.is_settled());
        assert_eq!(tracked, Slot::moved(5, 5, false));
        assert_eq!(Slot::steady(0), Slot::EMPTY);
    }
}
