//! The slot word: which backend owns a slot, for new flows and for old ones.

/// One slot of a service's table: one aligned 64-bit word, so that a change is one store and is never seen half done.
///
/// | bits | meaning |
/// |---|---|
/// | 0-23 | backend index of the owner for new flows, 0 = none |
/// | 24-47 | backend index of the owner for old flows, 0 = none |
/// | 48-63 | flags, 0 |
///
/// In the steady state both owners are equal and the packet is forwarded with no flow table at all.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot(pub u64);

const OWNER_BITS: u32 = 24;
const OWNER_MASK: u64 = (1 << OWNER_BITS) - 1;

impl Slot {
    /// A slot without an owner.
    pub const EMPTY: Self = Self(0);

    /// A slot whose owners are equal. `owner` above [`crate::limits::MAX_BACKEND_INDEX`] is cut to 24 bits.
    #[inline(always)]
    pub const fn steady(owner: u32) -> Self {
        Self::moved(owner, owner)
    }

    /// A slot on its way from `old` to `new`.
    #[inline(always)]
    pub const fn moved(new: u32, old: u32) -> Self {
        Self((new as u64 & OWNER_MASK) | (old as u64 & OWNER_MASK) << OWNER_BITS)
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
    fn owners_do_not_touch_each_other() {
        for (new, old) in [
            (0, 0),
            (1, 2),
            (MAX_BACKEND_INDEX, 0),
            (0, MAX_BACKEND_INDEX),
            (77, 77),
        ] {
            let slot = Slot::moved(new, old);
            assert_eq!((slot.new_owner(), slot.old_owner()), (new, old));
        }
        assert_eq!(Slot::steady(5), Slot::moved(5, 5));
        assert_eq!(Slot::steady(0), Slot::EMPTY);
    }
}
