//! Weighted Maglev: from the members of a service to the owner of each of its slots.
//!
//! As in the paper (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4): each member has a permutation of the slots, given by an offset and a skip from two hashes of its
//! name, and members take turns in claiming the next free slot of their permutation. The paper leaves weights open;
//! here they are exact:
//!
//! - In each round a member earns `weight / heaviest` of a turn and takes a turn for each whole one it has earned. With
//!   equal weights that is the paper's algorithm to the letter.
//! - A member stops at its quota: its share of the slots, rounded by largest remainder.
//!
//! **Invariants.** A pure function of the set of (name, weight): any input order, any machine, the same table. No slot
//! is left without an owner while a member has a weight. Changing the definition moves slots on every upgraded node,
//! so the golden table in the tests is never to be edited.

use lb_common::limits::SLOTS;
use std::collections::BTreeMap;
use xxhash_rust::xxh64::xxh64;

/// Seeds of the two hashes of a name. Fixed for ever: see the invariant above.
const OFFSET_SEED: u64 = 0x6f66_6673_6574;
const SKIP_SEED: u64 = 0x736b_6970;

/// Marks a slot that no member owns.
pub const NO_OWNER: u32 = 0;

/// One member of a service's table. Names are unique within a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Name of the backend: decides which slots it prefers.
    pub name: &'a str,
    /// Share of the slots, relative to the other members; 0 gets none.
    pub weight: u16,
    /// What stands in the table for this member: its backend index.
    pub owner: u32,
}

/// The walk of one member through the slots.
struct Walk {
    owner: u32,
    weight: u32,
    /// Slots that it may still claim.
    quota: u32,
    /// Earned part of the next turn, in `1 / heaviest`.
    credit: u32,
    /// The last slot of its permutation that is done with; at first the one before its offset.
    at: u32,
    /// From there to each of the next four: 1, 2, 3 and 4 times its skip.
    steps: [u32; 4],
}

/// With so few slots left, the next one of a permutation is found by looking at those: probing finds one in `M / left` steps.
const FEW: usize = 256;

/// The owner of each of the [`SLOTS`] slots; all [`NO_OWNER`] when no member has a weight.
pub fn table(members: &[Member<'_>]) -> Vec<u32> {
    let mut table = vec![NO_OWNER; SLOTS as usize];
    let mut walks = walks(members);
    let heaviest = walks.iter().map(|walk| walk.weight).max().unwrap_or(0);
    let mut free = Free([u64::MAX; WORDS]);
    let mut left = if walks.is_empty() { 0 } else { SLOTS as usize };
    // The slots that are left, once they are few.
    let mut few = Vec::new();
    while left > 0 {
        for walk in &mut walks {
            walk.credit += walk.weight;
            if walk.credit < heaviest || walk.quota == 0 {
                continue;
            }
            walk.credit -= heaviest;
            walk.quota -= 1;
            let slot = if left > FEW {
                walk.probe(&mut free)
            } else {
                if few.is_empty() {
                    few = (0..SLOTS).filter(|slot| free.has(*slot) != 0).collect();
                }
                walk.pick(&mut few)
            };
            table[slot as usize] = walk.owner;
            left -= 1;
        }
    }
    table
}

/// The slots that have no owner, a bit each: they stay in the first cache. Slots 0 to M - 1 are there once more after the last, so that
/// a step need not be wrapped to be looked at.
struct Free([u64; WORDS]);

const WORDS: usize = 2 * SLOTS as usize / 64 + 1;

impl Free {
    /// 1 if the place is free, else 0.
    fn has(&self, place: u32) -> u32 {
        (self.0[place as usize / 64] >> (place % 64)) as u32 & 1
    }

    fn remove(&mut self, slot: u32) {
        for place in [slot, slot + SLOTS] {
            self.0[place as usize / 64] &= !(1 << (place % 64));
        }
    }
}

impl Walk {
    fn new(member: &Member<'_>, quota: u32) -> Self {
        let hash = |seed: u64, below: u32| xxh64(member.name.as_bytes(), seed) % u64::from(below);
        let skip = hash(SKIP_SEED, SLOTS - 1) as u32 + 1;
        let twice = sum(skip, skip);
        Self {
            owner: member.owner,
            weight: member.weight.into(),
            quota,
            credit: 0,
            at: difference(hash(OFFSET_SEED, SLOTS) as u32, skip),
            steps: [skip, twice, sum(twice, skip), sum(twice, twice)],
        }
    }

    /// Claims the next free slot of the permutation, four at a glance: whether one of four is free is easier to guess for a CPU
    /// than whether one is. The caller has seen that there is one: quotas add up to M.
    fn probe(&mut self, free: &mut Free) -> u32 {
        let [.., four] = self.steps;
        let mut at = self.at;
        loop {
            let found = (0..)
                .zip(self.steps)
                .map(|(n, step)| free.has(at + step) << n);
            let found: u32 = found.sum();
            if found == 0 {
                at = sum(at, four);
                continue;
            }
            self.at = sum(at, self.steps[found.trailing_zeros() as usize]);
            free.remove(self.at);
            return self.at;
        }
    }

    /// Claims the next free slot of the permutation out of `few`, all that are left and one at least: that to which the fewest
    /// steps lead. Not inlined: [`Walk::probe`] needs the registers.
    #[inline(never)]
    fn pick(&mut self, few: &mut Vec<u32>) -> u32 {
        let [skip, ..] = self.steps;
        let (next, inverse) = (sum(self.at, skip), inverse(skip));
        let steps = few
            .iter()
            .map(|slot| product(difference(*slot, next), inverse) as i32);
        // CPUs find the least of many signed numbers faster.
        let steps = steps.min().unwrap_or(0) as u32;
        self.at = sum(next, product(steps, skip));
        if let Some(place) = few.iter().position(|slot| *slot == self.at) {
            few.swap_remove(place);
        }
        self.at
    }
}

/// The sum modulo M of two numbers of which one is below M, and the other at most M.
const fn sum(a: u32, b: u32) -> u32 {
    let sum = a + b;
    if sum >= SLOTS { sum - SLOTS } else { sum }
}

/// The difference modulo M of two numbers that are at most M apart.
const fn difference(a: u32, b: u32) -> u32 {
    let difference = a.wrapping_sub(b);
    // All ones if it is below 0.
    let borrow = (difference as i32 >> 31) as u32;
    difference.wrapping_add(borrow & SLOTS)
}

/// The product modulo M of two numbers below M, which is 2^16 + 1: what is above the low 16 bits counts as so much less.
const fn product(a: u32, b: u32) -> u32 {
    let product = a as u64 * b as u64;
    difference(product as u32 & 0xffff, (product >> 16) as u32)
}

const _: () = assert!(SLOTS == (1 << 16) + 1);

/// The number whose product with `a` is 1 modulo M: a to the power of M - 2, as M is a prime (Fermat).
const fn inverse(a: u32) -> u32 {
    let (mut power, mut square, mut exponent) = (1, a, SLOTS - 2);
    while exponent > 0 {
        if exponent & 1 != 0 {
            power = product(power, square);
        }
        square = product(square, square);
        exponent >>= 1;
    }
    power
}

/// Slots of each owner, for the owners that have some: what [`table`] would count, without making it.
pub fn shares(members: &[Member<'_>]) -> BTreeMap<u32, u32> {
    let members = canonical(members);
    let quotas = quotas(&members);
    members
        .iter()
        .zip(quotas)
        .filter(|(_, quota)| *quota > 0)
        .map(|(member, quota)| (member.owner, quota))
        .collect()
}

/// The members that have a weight, in order of name.
fn canonical<'a, 'b>(members: &'a [Member<'b>]) -> Vec<&'a Member<'b>> {
    let mut members: Vec<&Member<'_>> = members.iter().filter(|member| member.weight > 0).collect();
    // Stable, as names mostly come in a few runs that are in order, which it makes use of.
    members.sort_by_key(|member| member.name);
    members
}

/// The members that have a weight, in canonical order, at the start of their walks.
fn walks(members: &[Member<'_>]) -> Vec<Walk> {
    let members = canonical(members);
    let quotas = quotas(&members);
    members
        .iter()
        .zip(quotas)
        .map(|(member, quota)| Walk::new(member, quota))
        .collect()
}

/// Each member's number of slots: its exact share rounded down, the slots left over going to the largest remainders,
/// among equals to the first in canonical order.
fn quotas(members: &[&Member<'_>]) -> Vec<u32> {
    let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    let share = |member: &Member<'_>| u64::from(SLOTS) * u64::from(member.weight);
    let mut quotas: Vec<u32> = members
        .iter()
        .map(|member| (share(member) / total) as u32)
        .collect();
    let left_over = SLOTS.saturating_sub(quotas.iter().sum()) as usize;
    let mut by_remainder: Vec<usize> = (0..members.len()).collect();
    by_remainder.sort_by_key(|&i| std::cmp::Reverse(share(members[i]) % total));
    for &i in by_remainder.iter().take(left_over) {
        quotas[i] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("backend-{i}")).collect()
    }

    /// Members with owners 1, 2, ... in order of the slice.
    fn members<'a>(names: &'a [String], weight: impl Fn(usize) -> u16) -> Vec<Member<'a>> {
        let member = |(i, name): (usize, &'a String)| Member {
            name,
            weight: weight(i),
            owner: i as u32 + 1,
        };
        names.iter().enumerate().map(member).collect()
    }

    fn counts(table: &[u32]) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::new();
        for owner in table {
            *counts.entry(*owner).or_default() += 1;
        }
        counts
    }

    /// The pseudocode of the paper's section 3.4, plainly.
    fn paper(members: &[Member<'_>]) -> Vec<u32> {
        let m = SLOTS as usize;
        let mut sorted = members.to_vec();
        sorted.sort_by_key(|member| member.name);
        let permutation: Vec<Vec<usize>> = sorted
            .iter()
            .map(|member| {
                let offset = (xxh64(member.name.as_bytes(), OFFSET_SEED) % SLOTS as u64) as usize;
                let skip =
                    (xxh64(member.name.as_bytes(), SKIP_SEED) % (SLOTS as u64 - 1)) as usize + 1;
                (0..m).map(|j| (offset + j * skip) % m).collect()
            })
            .collect();
        let mut next = vec![0; sorted.len()];
        let mut entry = vec![None; m];
        let mut n = 0;
        loop {
            for i in 0..sorted.len() {
                let mut c = permutation[i][next[i]];
                while entry[c].is_some() {
                    next[i] += 1;
                    c = permutation[i][next[i]];
                }
                entry[c] = Some(sorted[i].owner);
                next[i] += 1;
                n += 1;
                if n == m {
                    return entry.into_iter().flatten().collect();
                }
            }
        }
    }

    #[test]
    fn with_equal_weights_it_is_the_paper_to_the_letter() {
        for count in [1, 2, 3, 10, 100, 255, 256, 257, 1_000] {
            let names = names(count);
            let members = members(&names, |_| 7);
            assert!(table(&members) == paper(&members), "{count} backends");
        }
    }

    #[test]
    fn inverses_are_inverse() {
        for a in [1, 2, 3, 257, 32_768, 65_535, 65_536] {
            assert_eq!(product(a, inverse(a)), 1, "{a}");
        }
    }

    #[test]
    fn golden_table() {
        let names = ["alpha", "bravo", "charlie", "delta"].map(String::from);
        let table = table(&members(&names, |i| [100, 100, 50, 1000][i]));
        let bytes: Vec<u8> = table.iter().flat_map(|owner| owner.to_le_bytes()).collect();
        let first: Vec<u32> = table[..16].to_vec();
        assert_eq!(first, [4, 4, 4, 4, 4, 4, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4]);
        assert_eq!(
            xxh64(&bytes, 0),
            0x7c52_4498_ed8b_cf63,
            "the table of a fixed input must never change"
        );
    }

    /// As the golden table, of more members: each way to look for the next slot has its part.
    #[test]
    fn golden_digests() {
        let digest = |count: usize, weight: fn(usize) -> u16| {
            let table = table(&members(&names(count), weight));
            let bytes: Vec<u8> = table.iter().flat_map(|owner| owner.to_le_bytes()).collect();
            xxh64(&bytes, 0)
        };
        let found = [
            digest(10, |_| 1),
            digest(100, |_| 1),
            digest(1_000, |_| 1),
            digest(1_000, |i| (i * 7_919 % 1_001) as u16),
            digest(70_000, |i| (i % 3) as u16),
        ];
        assert_eq!(
            found,
            [
                0x2a29_2db8_b887_0d4a,
                0x0c81_cd45_a0ab_c121,
                0xf5b6_4ac5_e2bd_2bc6,
                0x796f_ec6b_34bf_c839,
                0x7767_3dbc_6b0f_65e4,
            ],
            "the tables of fixed inputs must never change: {found:#x?}"
        );
    }

    #[test]
    fn shares_are_exact_to_one_slot() {
        let names = names(1000);
        let weights = |i: usize| if i == 0 { 1000 } else { (i % 7) as u16 };
        let total: f64 = (0..1000).map(|i| f64::from(weights(i))).sum();
        let members = members(&names, weights);
        let counts = counts(&table(&members));
        assert_eq!(shares(&members), counts);
        for i in 0..1000 {
            let share = f64::from(SLOTS) * f64::from(weights(i)) / total;
            let count = counts.get(&(i as u32 + 1)).copied().unwrap_or(0);
            assert!(
                (f64::from(count) - share).abs() < 1.0,
                "backend {i}: {count} slots, share {share}"
            );
        }
    }

    #[test]
    fn balance_is_within_one_percent_where_slots_are_a_hundred_times_the_backends() {
        for count in [2, 10, 100, 655] {
            let names = names(count);
            let counts = counts(&table(&members(&names, |_| 1)));
            let mean = f64::from(SLOTS) / count as f64;
            let largest = f64::from(*counts.values().max().unwrap());
            assert!(
                largest / mean <= 1.01,
                "{count} backends: {largest} against {mean}"
            );
            assert_eq!(counts.len(), count);
        }
    }

    #[test]
    fn removal_disturbs_less_than_one_percent_of_the_survivors_slots() {
        for count in [10, 100] {
            let names = names(count);
            let all = members(&names, |_| 1);
            let before = table(&all);
            let after = table(&all[..count - 1]);
            let gone = count as u32;
            let kept = before.iter().filter(|owner| **owner != gone).count();
            let moved = before
                .iter()
                .zip(&after)
                .filter(|(b, a)| **b != gone && b != a)
                .count();
            assert!(
                (moved as f64) < 0.01 * kept as f64,
                "{count} backends: {moved} of {kept} moved"
            );
        }
    }

    #[test]
    fn nobody_with_a_weight_means_no_owner() {
        assert_eq!(counts(&table(&[])), BTreeMap::from([(NO_OWNER, SLOTS)]));
        let names = names(3);
        assert_eq!(
            counts(&table(&members(&names, |_| 0))),
            BTreeMap::from([(NO_OWNER, SLOTS)])
        );
        assert_eq!(
            counts(&table(&members(&names, |i| i as u16 % 2))),
            BTreeMap::from([(2, SLOTS)])
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_order_of_the_input_is_irrelevant(
            weights in prop::collection::vec(0_u16..=1000, 1..40),
            rotation in 0_usize..40,
        ) {
            let names = names(weights.len());
            let straight = members(&names, |i| weights[i]);
            let mut turned = straight.clone();
            turned.rotate_left(rotation % weights.len());
            turned.reverse();
            prop_assert!(table(&straight) == table(&turned));
        }
    }
}
