//! What hashes decide: the rank of a slot for a member, and the order far down a slot's list.

use super::{Availability, NOBODY, positions::Positions};
use lb_common::limits::SLOTS;
use xxhash_rust::xxh64::xxh64;

/// Seeds of the hashes. Fixed for ever: they are part of the definition.
const NAME_SEED: u64 = 0x7261_6e6b;
const TRY_SEED: u64 = 0x7472_7900;
const WALK_SEED: u64 = 0x7761_6c6b;

/// Pseudo-random slots that are looked at for an owner.
pub(super) const TRIES: usize = 48;

/// What is hashed of the members.
#[derive(Debug)]
pub(super) struct Order {
    /// Seed of each member by position, with one for [`NOBODY`] in front.
    seeds: Vec<u64>,
    /// Positions of the members that can own slots, ascending.
    active: Vec<u32>,
}

impl Order {
    pub(super) fn new<N: AsRef<str>>(members: &[(N, u16)]) -> Self {
        let seed = |(name, _): &(N, u16)| xxh64(name.as_ref().as_bytes(), NAME_SEED);
        let numbered = (1..).zip(members);
        Self {
            seeds: std::iter::once(0).chain(members.iter().map(seed)).collect(),
            active: numbered
                .filter(|(_, (_, weight))| *weight > 0)
                .map(|(position, _)| position)
                .collect(),
        }
    }

    /// Positions of the members that can own slots, ascending.
    pub(super) fn active(&self) -> &[u32] {
        &self.active
    }

    /// One more than the last position.
    pub(super) fn positions(&self) -> usize {
        self.seeds.len()
    }

    /// A number of the member's own, from its name.
    pub(super) fn seed(&self, position: u32) -> u64 {
        self.seeds[position as usize]
    }

    /// Rank of a slot for a member that is not its base owner: 0-65535.
    pub(super) fn rank(&self, slot: u32, position: u32) -> u32 {
        (mix(self.seed(position) ^ spread(slot)) >> 48) as u32
    }

    /// Whether the member takes the slot.
    pub(super) fn accepts(&self, slot: u32, position: u32, parts: &[u32]) -> bool {
        match parts[position as usize] {
            0 => false,
            all if all == Availability::FULL.parts() => true,
            some => self.rank(slot, position) < some,
        }
    }

    /// The first that accepts after the base owner and the stand-ins.
    pub(super) fn deep(&self, slot: u32, base: &Positions, parts: &[u32]) -> Option<u32> {
        let by_weight = tries(slot)
            .take(TRIES)
            .map(|(other, rank)| (base.get(other as usize), rank))
            .find(|(position, rank)| *rank < parts[*position as usize])
            .map(|(position, _)| position);
        by_weight
            .or_else(|| self.walk(slot).find(|p| self.accepts(slot, *p, parts)))
            .or_else(|| {
                let owner = base.get(slot as usize);
                std::iter::once(owner)
                    .chain(self.walk(slot))
                    .find(|position| parts[*position as usize] > 0)
            })
            .filter(|position| *position != NOBODY)
    }

    /// All members that can own slots, in an order of the slot's own: every odd step goes once through a power of two.
    pub(super) fn walk(&self, slot: u32) -> impl Iterator<Item = u32> {
        let hash = mix(WALK_SEED ^ spread(slot));
        let size = self.active.len().next_power_of_two() as u64;
        (0..size).filter_map(move |n| {
            let at = (hash >> 32).wrapping_add(n.wrapping_mul(hash | 1)) & (size - 1);
            self.active.get(at as usize).copied()
        })
    }
}

/// Pseudo-random slots, with a rank of 0-65535 each.
pub(super) fn tries(slot: u32) -> impl Iterator<Item = (u32, u32)> {
    let seed = TRY_SEED ^ spread(slot);
    (0..).map(move |n: u64| {
        let hash = mix(seed.wrapping_add(n.wrapping_mul(GOLDEN)));
        // The high half times M over 2^32 is below M.
        let other = ((hash >> 32) * u64::from(SLOTS)) >> 32;
        (other as u32, hash as u32 & 0xffff)
    })
}

/// 2^64 over the golden ratio, odd: its multiples are spread evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn spread(slot: u32) -> u64 {
    mix((u64::from(slot) + 1).wrapping_mul(GOLDEN))
}

/// The finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
/// with Stafford's constants): every bit of the input moves every bit of the output.
pub(super) const fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
