use super::*;
use lb_common::limits::SLOTS;
use proptest::prelude::*;
use std::{sync::LazyLock, time::Instant};

const NONE: Availability = Availability::NONE;
const FULL: Availability = Availability::FULL;

fn members(count: usize, weight: impl Fn(usize) -> u16) -> Vec<(String, u16)> {
    (0..count)
        .map(|n| (format!("backend-{n:04}"), weight(n)))
        .collect()
}

fn equal(count: usize) -> Overlay {
    Overlay::new(&members(count, |_| 100))
}

fn without(count: usize, gone: &[usize]) -> Vec<Availability> {
    (0..count)
        .map(|n| if gone.contains(&n) { NONE } else { FULL })
        .collect()
}

fn counts(live: &[u32], members: usize) -> Vec<u32> {
    let mut counts = vec![0; members + 1];
    for owner in live {
        counts[*owner as usize] += 1;
    }
    counts
}

/// How far the fullest member is above its share by weight and availability, in percent.
fn imbalance(overlay: &Overlay, availability: &[Availability]) -> f64 {
    let counts = counts(&overlay.live(availability), availability.len());
    assert_eq!(counts[0], 0, "a slot has no owner");
    let each = || {
        let pairs = overlay.weights.iter().zip(availability);
        pairs.map(|(weight, part)| f64::from(*weight) * f64::from(part.0))
    };
    let total: f64 = each().sum();
    let excess = each().zip(&counts[1..]).filter(|(claim, _)| *claim > 0.0);
    excess
        .map(|(claim, count)| f64::from(*count) * total / claim / f64::from(SLOTS))
        .fold(0.0, f64::max)
        * 100.0
        - 100.0
}

/// A small generator, so that a failing choice can be repeated from the seed it prints.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (order::mix(self.0) % bound as u64) as usize
    }

    fn some(&mut self, number: usize, of: usize) -> Vec<usize> {
        let mut chosen = Vec::new();
        while chosen.len() < number {
            let next = self.below(of);
            if !chosen.contains(&next) {
                chosen.push(next);
            }
        }
        chosen
    }
}

/// Brings live owners from `before` to `after`; the numbers of the slots that changed, ascending.
fn update(
    overlay: &Overlay,
    live: &mut [u32],
    before: &[Availability],
    after: &[Availability],
) -> Vec<u32> {
    let mut changed = Vec::new();
    for (slot, owner) in overlay.update(before, after) {
        if std::mem::replace(&mut live[slot as usize], owner) != owner {
            changed.push(slot);
        }
    }
    changed.sort_unstable();
    changed
}

/// The list of preferences to the letter, without any shortcut.
fn by_the_book(overlay: &Overlay, slot: u32, availability: &[Availability]) -> u32 {
    let parts = |position: u32| match position {
        NOBODY => 0,
        position => availability[position as usize - 1].0,
    };
    let deal = overlay.deal();
    let base = overlay.base.get(slot as usize);
    let mut hand = deal.hand(base, 0);
    let card = hand
        .find(|card| card.slot == slot)
        .expect("a slot is in its owner's hand");
    let mut list = vec![(base, card.rank)];
    list.extend(card.stand_ins.map(|p| (p, overlay.order.rank(slot, p))));
    let tries = order::tries(slot).take(order::TRIES);
    list.extend(tries.map(|(other, rank)| (overlay.base.get(other as usize), rank)));
    let walk: Vec<u32> = overlay.order.walk(slot).collect();
    list.extend(walk.iter().map(|p| (*p, overlay.order.rank(slot, *p))));
    list.push((base, 0));
    list.extend(walk.iter().map(|p| (*p, 0)));
    let first = list
        .iter()
        .find(|(position, rank)| *rank < parts(*position));
    first.map_or(NOBODY, |(position, _)| *position)
}

#[test]
fn golden_tables() {
    let members: Vec<_> = ["alpha", "bravo", "charlie", "delta", "echo"]
        .into_iter()
        .zip([100, 100, 50, 1000, 100])
        .map(|(name, weight)| (name.to_string(), weight))
        .collect();
    let few = Overlay::new(&members);
    let some = equal(60);
    let many = equal(300);
    let part = Availability::ratio(1, 3);
    let hash = |live: Vec<u32>| {
        let bytes: Vec<u8> = live.iter().flat_map(|owner| owner.to_le_bytes()).collect();
        xxhash_rust::xxh64::xxh64(&bytes, 0)
    };
    let hashes = [
        few.live(&[FULL; 5]),
        few.live(&[FULL, FULL, FULL, NONE, FULL]),
        few.live(&[NONE, FULL, FULL, NONE, NONE]),
        few.live(&[FULL, part, FULL, FULL, NONE]),
        few.live(&[part, part, NONE, NONE, Availability(1)]),
        some.live(&without(60, &[1, 5, 6, 20, 41, 59])),
        many.live(&without(300, &[7])),
        many.live(&without(300, &(0..299).step_by(2).collect::<Vec<_>>())),
    ]
    .map(hash);
    let golden: [u64; 8] = [
        0xd966_dd7c_37e0_546c,
        0xbe09_1137_4854_021d,
        0x3835_e95d_e4e9_26fc,
        0x35bf_d5b6_8f16_4857,
        0x6853_ce72_65e0_4729,
        0x152e_04a0_50a4_24ac,
        0x9f1d_4cfe_17cd_30e0,
        0x26df_c204_689b_dbcb,
    ];
    assert_eq!(
        hashes.map(|hash| format!("{hash:016x}")),
        golden.map(|hash| format!("{hash:016x}")),
        "the live tables of a fixed input must never change"
    );
}

#[test]
fn with_all_available_it_is_the_base_table_and_nothing_is_dealt() {
    let overlay = equal(10);
    assert_eq!(overlay.live(&[FULL; 10]), overlay.base());
    assert!(overlay.deal.get().is_none());
}

#[test]
fn nobody_only_if_nobody_is_available() {
    let overlay = Overlay::new(&members(4, |n| [10, 0, 10, 500][n]));
    let tiny = Availability(1);
    assert!(overlay.live(&[NONE; 4]).iter().all(|o| *o == NOBODY));
    // A weight of 0 stays out, whatever happens.
    assert!(
        overlay
            .live(&[NONE, FULL, NONE, NONE])
            .iter()
            .all(|o| *o == NOBODY)
    );
    assert!(overlay.live(&[]).iter().all(|o| *o == NOBODY));
    assert!(overlay.live(&[tiny]).iter().all(|o| *o == 1));
    assert!(
        overlay
            .live(&[NONE, NONE, tiny, NONE])
            .iter()
            .all(|o| *o == 3)
    );
    // All equally little: that is the base table.
    let all_tiny = counts(&overlay.live(&[tiny; 4]), 4);
    let base = counts(&overlay.base(), 4);
    for (live, base) in all_tiny.iter().zip(base) {
        assert!(live.abs_diff(base) < 20, "{all_tiny:?}");
    }
    for none in [vec![], members(3, |_| 0)] {
        let overlay = Overlay::new(&none);
        assert!(
            overlay
                .live(&vec![FULL; none.len()])
                .iter()
                .all(|o| *o == NOBODY)
        );
        assert!(
            overlay
                .live(&vec![NONE; none.len()])
                .iter()
                .all(|o| *o == NOBODY)
        );
    }
    let single = Overlay::new(&members(1, |_| 1));
    assert!(single.live(&[tiny]).iter().all(|o| *o == 1));
}

#[test]
fn a_backend_of_a_small_share_gets_all_when_the_others_are_gone() {
    for count in [2, 17, 300, 1500] {
        let overlay = equal(count);
        let gone: Vec<usize> = (1..count).collect();
        let live = overlay.live(&without(count, &gone));
        assert!(live.iter().all(|owner| *owner == 1), "{count}");
    }
}

#[test]
fn one_gone_leaves_the_others_even() {
    for count in [2, 3, 10, 11, 33, 64, 100, 150, 200, 256, 257, 400, 600] {
        let overlay = equal(count);
        let mut choices = vec![0, 1, count / 2, count - 2, count - 1];
        choices.dedup();
        let worst = choices
            .iter()
            .map(|gone| imbalance(&overlay, &without(count, &[*gone])))
            .fold(0.0, f64::max);
        assert!(worst <= 1.0, "one of {count}: {worst:.3} %");
    }
}

#[test]
fn drain_of_one_of_three_and_two_of_ten() {
    let three = equal(3);
    for gone in 0..3 {
        assert!(imbalance(&three, &without(3, &[gone])) < 0.01);
    }
    let ten = equal(10);
    for a in 0..10 {
        for b in a + 1..10 {
            let excess = imbalance(&ten, &without(10, &[a, b]));
            assert!(excess < 0.1, "{a} and {b}: {excess:.3} %");
        }
    }
}

#[test]
fn ten_of_a_hundred() {
    let overlay = equal(100);
    let plain = imbalance(&overlay, &without(100, &(0..10).collect::<Vec<_>>()));
    assert!(plain <= 1.0, "the first ten: {plain:.2} %");
    let seed = 20_261_121;
    let mut random = Random(seed);
    let mut all: Vec<f64> = (0..100)
        .map(|_| imbalance(&overlay, &without(100, &random.some(10, 100))))
        .collect();
    all.sort_by(f64::total_cmp);
    let (median, ninety, worst) = (all[50], all[90], all[99]);
    println!(
        "seed {seed}: median {median:.2} %, 90 of 100 within {ninety:.2} %, worst {worst:.2} %"
    );
    assert!(median <= 0.85 && ninety <= 1.1 && worst <= 1.7);
}

#[test]
fn unequal_weights() {
    let overlay = Overlay::new(&members(12, |n| [100, 200, 50, 400][n % 4]));
    for gone in 0..12 {
        let excess = imbalance(&overlay, &without(12, &[gone]));
        assert!(excess < 0.1, "{gone}: {excess:.3} %");
        let excess = imbalance(&overlay, &without(12, &[gone, (gone + 5) % 12]));
        assert!(excess < 0.5, "{gone} and another: {excess:.3} %");
    }
}

#[test]
fn a_ramp_takes_in_proportion_and_evenly() {
    let count = 20;
    let overlay = &equal(count);
    let whole = f64::from(counts(&overlay.base(), count)[4]);
    let others = counts(&overlay.live(&without(count, &[3])), count);
    let mut availability = without(count, &[3]);
    let mut live = overlay.live(&availability);
    for step in 1..=10 {
        let before = availability.clone();
        availability[3] = Availability::ratio(step, 10);
        update(overlay, &mut live, &before, &availability);
        let now = counts(&live, count);
        let part = f64::from(now[4]) / whole;
        assert!(
            (part - step as f64 / 10.0).abs() < 0.001,
            "step {step}: {part}"
        );
        for other in (1..=count).filter(|other| *other != 4) {
            let given = f64::from(others[other] - now[other]) * 19.0 / whole;
            assert!(
                (given - part).abs() < 0.02,
                "step {step}: {other} has given {given:.3} of its part"
            );
        }
    }
}

#[test]
fn several_ramps_share_by_availability() {
    let overlay = equal(20);
    let mut availability = vec![FULL; 20];
    for (n, part) in availability.iter_mut().enumerate().take(6) {
        *part = Availability::ratio(n as u64 + 1, 10);
    }
    assert!(imbalance(&overlay, &availability) < 8.0);
    // Nobody is whole: still shared, with more slots for those that are more available.
    let low: Vec<Availability> = (1..=20).map(|n| Availability::ratio(n, 100)).collect();
    let counts = counts(&overlay.live(&low), 20);
    assert_eq!(counts[0], 0);
    assert!(
        counts[20] > 2 * counts[5] && counts[5] > 2 * counts[1],
        "{counts:?}"
    );
}

#[test]
fn the_list_is_followed_to_the_letter() {
    let overlay = Overlay::new(&members(7, |n| [5, 3, 0, 9, 1, 1, 30][n]));
    let tables: [[u64; 7]; 4] = [
        [0, 10, 10, 10, 10, 10, 10],
        [10, 3, 10, 1, 0, 10, 0],
        [0, 0, 10, 1, 1, 1, 0],
        [1, 0, 0, 0, 0, 10, 0],
    ];
    for table in tables {
        let availability = table.map(|part| Availability::ratio(part, 10));
        let live = overlay.live(&availability);
        for slot in (0..SLOTS).step_by(6_553) {
            assert_eq!(
                live[slot as usize],
                by_the_book(&overlay, slot, &availability),
                "slot {slot} with {table:?}"
            );
        }
    }
}

#[test]
fn every_walk_meets_every_member_once() {
    for count in [1, 2, 3, 5, 16, 17, 100] {
        let overlay = equal(count);
        for slot in [0, 1, 77, 65_536] {
            let mut met: Vec<u32> = overlay.order.walk(slot).collect();
            met.sort_unstable();
            assert_eq!(met, (1..=count as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn time_is_bounded() {
    for count in [100, 1000] {
        let start = Instant::now();
        let overlay = &equal(count);
        let mut live = overlay.live(&without(count, &[1]));
        let made = start.elapsed();
        let start = Instant::now();
        let both = without(count, &[1, 2]);
        let changed = update(overlay, &mut live, &without(count, &[1]), &both);
        println!(
            "{count} members: made in {made:?}, one of them changed in {:?} ({} slots)",
            start.elapsed(),
            changed.len()
        );
        assert_eq!(live, overlay.live(&both));
        assert!(made.as_secs() < 10);
    }
}

/// Services of several shapes, made once.
static SHAPES: LazyLock<Vec<Overlay>> = LazyLock::new(|| {
    vec![
        equal(2),
        equal(3),
        Overlay::new(&members(9, |n| [100, 0, 1, 1000, 40][n % 5])),
        equal(40),
        equal(300),
    ]
});

fn availability() -> impl Strategy<Value = Availability> {
    prop_oneof![
        3 => Just(FULL),
        2 => Just(NONE),
        1 => (0..=1_u32 << 16).prop_map(Availability),
        1 => Just(Availability(1)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn only_the_backend_in_question_gains_or_loses(
        shape in 0..5_usize,
        start in prop::collection::vec(availability(), 300),
        changes in prop::collection::vec((0..300_usize, availability()), 1..6),
    ) {
        let overlay = &SHAPES[shape];
        let size = overlay.weights.len();
        let mut now = start[..size].to_vec();
        let mut live = overlay.live(&now);
        for (who, to) in changes {
            let who = who % size;
            let before = now.clone();
            now[who] = to;
            let old = live.clone();
            let changed = update(overlay, &mut live, &before, &now);
            let position = who as u32 + 1;
            let all_changed: Vec<u32> = (0..SLOTS)
                .filter(|slot| old[*slot as usize] != live[*slot as usize])
                .collect();
            prop_assert_eq!(&changed, &all_changed);
            for slot in changed {
                let (from, to) = (old[slot as usize], live[slot as usize]);
                let other = if now[who] > before[who] { to } else { from };
                prop_assert_eq!(other, position, "slot {} went from {} to {}", slot, from, to);
            }
            prop_assert!(live == overlay.live(&now), "not what a fresh start makes");
        }
    }

    #[test]
    fn many_changes_at_once_are_as_one_after_the_other(
        shape in 0..5_usize,
        tables in prop::collection::vec(prop::collection::vec(availability(), 300), 2..4),
    ) {
        let overlay = &SHAPES[shape];
        let size = overlay.weights.len();
        let mut live = overlay.live(&tables[0][..size]);
        for pair in tables.windows(2) {
            update(overlay, &mut live, &pair[0][..size], &pair[1][..size]);
        }
        let last = &tables[tables.len() - 1][..size];
        prop_assert!(live == overlay.live(last));
        let anybody = last.iter().zip(&overlay.weights).any(|(part, weight)| part.0 > 0 && *weight > 0);
        prop_assert_eq!(anybody, !live.contains(&NOBODY));
    }
}
