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
mod positions;
#[cfg(test)]
mod tests;

use crate::maglev::{self, Member};
use deal::{Card, Deal};
use lb_common::limits::SLOTS;
use order::Order;
use positions::Positions;
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
    /// The base owner of each slot.
    base: Positions,
    /// Weight of each member, in their order.
    weights: Vec<u16>,
    order: Order,
    /// Made when a backend is first not fully available.
    deal: OnceLock<Deal>,
}

impl Overlay {
    /// The overlay of these members (name and weight), which must be in ascending order of name and have weights. A member
    /// of weight 0 never owns a slot.
    pub fn new<N: AsRef<str>>(members: &[(N, u16)]) -> Self {
        let list: Vec<Member<'_>> = (1..)
            .zip(members)
            .map(|(owner, (name, weight))| Member {
                name: name.as_ref(),
                weight: *weight,
                owner,
            })
            .collect();
        Self {
            base: Positions::pack(members.len(), maglev::table(&list).into_iter()),
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
    pub fn base(&self) -> Vec<u32> {
        self.base.unpack()
    }

    /// The live owner of each slot, as in [`Self::base`]. `availability` is in order of the members; a member it does not
    /// reach is not available.
    pub fn live(&self, availability: &[Availability]) -> Vec<u32> {
        let parts = self.parts(availability);
        if self.is_whole(&parts) {
            return self.base();
        }
        let mut live = vec![NOBODY; SLOTS as usize];
        for position in (NOBODY..).take(parts.len()) {
            for card in self.deal().hand(position, 0) {
                live[card.slot as usize] = self.owner(position, &card, &parts);
            }
        }
        live
    }

    /// The slots whose live owner the step from `before` to `after` can change, with their owners for `after`. Those are the
    /// slots that their base owner does not take before or after; each comes once, in no order.
    pub fn update(&self, before: &[Availability], after: &[Availability]) -> Vec<(u32, u32)> {
        let (before, after) = (self.parts(before), self.parts(after));
        if before == after {
            return Vec::new();
        }
        let deal = self.deal();
        let mut owners = Vec::new();
        for position in self.order.active() {
            let taken = before[*position as usize].min(after[*position as usize]);
            let hand = deal.hand(*position, taken);
            owners.extend(hand.map(|card| (card.slot, self.owner(*position, &card, &after))));
        }
        owners
    }

    /// The live owner of a slot of this base owner.
    fn owner(&self, base: u32, card: &Card, parts: &[u32]) -> u32 {
        if card.rank < parts[base as usize] {
            return base;
        }
        card.stand_ins
            .into_iter()
            .find(|stand_in| self.order.accepts(card.slot, *stand_in, parts))
            .or_else(|| self.order.deep(card.slot, &self.base, parts))
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
            .get_or_init(|| Deal::new(&self.base(), &self.weights, &self.order))
    }
}
