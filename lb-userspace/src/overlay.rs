//! The availability overlay: from a service's base table and the availability of each backend to the live owner of
//! each slot. One mechanism serves health, drain and slow start.
//!
//! Each slot has a fixed list of preferences; its live owner is the first in the list that accepts it. A backend accepts a
//! slot when the rank that the slot has for it is below its availability:
//!
//! 1. the base owner;
//! 2. a first stand-in, dealt so that one backend's slots fall to the others as evenly as whole slots allow (`deal`);
//! 3. a second stand-in, dealt for services small enough to need it;
//! 4. the base owners of pseudo-random other slots, so by weight, with a fresh rank each (`order`);
//! 5. all members, in an order of the slot's own;
//! 6. the same without ranks, so that a slot has an owner while anybody is available at all.
//!
//! **Invariants.** A pure function of members and availabilities, in integers: the same bytes on any machine, whatever came
//! before. Whether an entry of a list accepts depends on that member's availability alone, so raising an availability
//! moves slots only to that member, and lowering it only from it. Changing the definition moves slots on every upgraded
//! node, so the golden table in the tests is never to be edited.

mod deal;
mod order;
#[cfg(test)]
mod tests;

use crate::maglev::{self, Member};
use deal::Deal;
use lb_common::limits::SLOTS;
use order::Order;
use std::sync::OnceLock;

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
    /// Weight of each member, in their order.
    weights: Vec<u16>,
    order: Order,
    /// Made when a backend is first not fully available.
    deal: OnceLock<Deal>,
}

impl Overlay {
    /// The overlay of these members (name and weight), which must be in ascending order of name and have weights. A member
    /// of weight 0 never owns a slot.
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
            weights: members.iter().map(|(_, weight)| *weight).collect(),
            order: Order::new(members),
            deal: OnceLock::new(),
        }
    }

    /// Whether the stand-ins are computed.
    pub fn is_ready(&self) -> bool {
        self.deal.get().is_some()
    }

    /// Computes the stand-ins, some 10 ms of work, before they are needed.
    pub fn make_ready(&self) {
        self.deal();
    }

    /// The base owner of each slot: position in the list of members counted from 1, or [`NOBODY`].
    pub fn base(&self) -> &[u32] {
        &self.base
    }

    /// The live owner of each slot, as in [`Self::base`]. `availability` is in order of the members; a member it does not
    /// reach is not available.
    pub fn live(&self, availability: &[Availability]) -> Vec<u32> {
        let parts = self.parts(availability);
        if self.is_whole(&parts) {
            return self.base.clone();
        }
        let deal = self.deal();
        (0..SLOTS)
            .map(|slot| self.owner(slot, deal, &parts))
            .collect()
    }

    /// Makes of the live owners for `before` those for `after`, looking only at slots that the difference can touch.
    /// Returns the numbers of the slots that changed, ascending.
    pub fn update(
        &self,
        live: &mut [u32],
        before: &[Availability],
        after: &[Availability],
    ) -> Vec<u32> {
        let (before, after) = (self.parts(before), self.parts(after));
        if before == after {
            return Vec::new();
        }
        let pairs = || before.iter().zip(&after);
        let lowered: Vec<bool> = pairs().map(|(before, after)| after < before).collect();
        let raised: Vec<bool> = pairs().map(|(before, after)| after > before).collect();
        let any_raised = raised.contains(&true);
        let deal = self.deal();
        let mut changed = Vec::new();
        for (slot, (owner, base)) in (0..SLOTS).zip(live.iter_mut().zip(&self.base)) {
            // A position that does not exist has lost its slots too.
            let is_touched = lowered.get(*owner as usize) != Some(&false)
                || any_raised && self.is_wanted(slot, *owner, *base, deal, &before, &raised);
            if !is_touched {
                continue;
            }
            let now = self.owner(slot, deal, &after);
            if now != *owner {
                *owner = now;
                changed.push(slot);
            }
        }
        changed
    }

    /// Whether one of the raised members may stand before the slot's owner in its list.
    fn is_wanted(
        &self,
        slot: u32,
        owner: u32,
        base: u32,
        deal: &Deal,
        before: &[u32],
        raised: &[bool],
    ) -> bool {
        if raised[base as usize] {
            return true;
        }
        let accepts = |position: u32, rank: u32| position == owner && rank < before[owner as usize];
        if accepts(base, deal.rank(slot)) {
            return false;
        }
        for stand_in in deal.stand_ins(slot) {
            if raised[stand_in as usize] {
                return true;
            }
            if stand_in == owner && accepts(owner, self.order.rank(slot, owner)) {
                return false;
            }
        }
        // The owner comes from deep in the list, where any member may stand before it.
        true
    }

    fn owner(&self, slot: u32, deal: &Deal, parts: &[u32]) -> u32 {
        let base = self.base[slot as usize];
        if deal.rank(slot) < parts[base as usize] {
            return base;
        }
        deal.stand_ins(slot)
            .into_iter()
            .find(|stand_in| self.order.accepts(slot, *stand_in, parts))
            .or_else(|| self.order.deep(slot, &self.base, parts))
            .unwrap_or(NOBODY)
    }

    /// Availability by position, with [`NOBODY`] in front, which never accepts.
    fn parts(&self, availability: &[Availability]) -> Vec<u32> {
        let rest = std::iter::repeat(&Availability::NONE);
        let each = self.weights.iter().zip(availability.iter().chain(rest));
        std::iter::once(0)
            .chain(each.map(|(_, availability)| availability.0))
            .collect()
    }

    /// Whether every member that can own slots is fully available.
    fn is_whole(&self, parts: &[u32]) -> bool {
        let mut each = self.weights.iter().zip(&parts[1..]);
        each.all(|(weight, parts)| *weight == 0 || *parts == Availability::FULL.0)
    }

    fn deal(&self) -> &Deal {
        self.deal
            .get_or_init(|| Deal::new(&self.base, &self.weights, &self.order))
    }
}
