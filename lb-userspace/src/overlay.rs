//! The availability overlay: from a service's base table and the availability of each backend to the live owner of
//! each slot. See the design: one mechanism for health, drain, slow start.

use crate::maglev::{self, Member};
use lb_common::limits::SLOTS;
use xxhash_rust::xxh64::xxh64;

/// Which share of its slots a backend takes, in 1/65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Availability(u32);

impl Availability {
    /// No slot.
    pub const NONE: Self = Self(0);
    /// All its slots.
    pub const FULL: Self = Self(1 << 16);

    /// `part / whole`, rounded down, at most [`Self::FULL`]; [`Self::FULL`] when `whole` is 0.
    pub const fn ratio(part: u64, whole: u64) -> Self {
        if whole == 0 || part >= whole {
            return Self::FULL;
        }
        Self(((part as u128 * (1 << 16)) / whole as u128) as u32)
    }

    /// In 1/65536.
    pub const fn parts(self) -> u32 {
        self.0
    }
}

/// In a table of positions: nobody.
pub const NOBODY: u32 = 0;

/// The preference lists of a service's slots: a pure function of its members.
#[derive(Debug)]
pub struct Overlay {
    base: Vec<u32>,
    members: usize,
}

impl Overlay {
    /// The overlay of these members (name and weight), which must be in ascending order of name and have weights.
    pub fn new(members: &[(String, u16)]) -> Self {
        let list: Vec<Member<'_>> = (1..)
            .zip(members)
            .map(|(owner, (name, weight))| Member {
                name,
                weight: *weight,
                owner,
            })
            .collect();
        Self {
            base: maglev::table(&list),
            members: members.len(),
        }
    }

    /// The base owner of each slot: position in the list of members counted from 1, or [`NOBODY`].
    pub fn base(&self) -> &[u32] {
        &self.base
    }

    /// The live owner of each slot, as in [`Self::base`]. `availability` is in order of the members.
    pub fn live(&self, availability: &[Availability]) -> Vec<u32> {
        (0..SLOTS)
            .map(|slot| self.owner(slot, availability))
            .collect()
    }

    /// Makes of the live owners for `before` those for `after`, looking only at slots that the difference can touch.
    /// Returns the numbers of the slots that changed, ascending.
    pub fn update(
        &self,
        live: &mut [u32],
        _before: &[Availability],
        after: &[Availability],
    ) -> Vec<u32> {
        let now = self.live(after);
        let changed = (0..SLOTS)
            .filter(|slot| live[*slot as usize] != now[*slot as usize])
            .collect();
        live.copy_from_slice(&now);
        changed
    }

    fn owner(&self, slot: u32, availability: &[Availability]) -> u32 {
        let accepts = |position: u32| {
            let rank = xxh64(&slot.to_le_bytes(), u64::from(position)) as u32 & 0xffff;
            position != NOBODY
                && availability
                    .get(position as usize - 1)
                    .is_some_and(|a| rank < a.0)
        };
        let base = self.base[slot as usize];
        if accepts(base) {
            return base;
        }
        let tries = (0..64_u64)
            .map(|n| self.base[(xxh64(&slot.to_le_bytes(), n) % u64::from(SLOTS)) as usize]);
        tries
            .chain(1..=self.members as u32)
            .find(|p| accepts(*p))
            .unwrap_or(NOBODY)
    }
}
