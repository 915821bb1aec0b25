//! Who stands in for whom: each slot's first and second stand-in, and its rank for its base owner.
//!
//! With one backend gone, every other one must own its share of the slots to within a slot or two. Hashing cannot do
//! that, so stand-ins are dealt like cards: counted first, then handed out.

use super::{
    order::{self, Order, mix},
    positions::Positions,
};
use lb_common::limits::SLOTS;
use std::ops::{Range, RangeInclusive};

/// Most members for whom stand-ins are counted out. With more, a backend has so few slots that hashing is as good.
const MOST_FOR_FIRST: usize = 1024;
/// Members for whom a second stand-in is dealt.
const FOR_SECOND: RangeInclusive<usize> = 3..=256;
/// Up to this many members a slot is little against a backend's share (0.3 % or less). Then what a backend hands to another
/// is its exact part rounded, and rounding evens out when several are gone. With more members, the sum of the other's
/// own slots and what it is handed is rounded, so that it is never a whole slot above its share.
const MANY: usize = 200;
/// A primitive root modulo M: its powers visit every slot but 0 once, in an order that looks random.
const ROOT: u32 = 12_345;
/// Shares are in 1/65536 slot.
const FRACTION: u32 = 16;
/// More than a seat's drift ever is: less than a slot for each of at most [`MOST_FOR_FIRST`] counts.
const MOST_DRIFT: i64 = 1 << 30;
/// Up to this many members, all are looked at for a second stand-in, with more only some.
const FEW: usize = 16;
/// How many.
const CANDIDATES: usize = 8;
/// What a slot costs a seat of weight 1.
const PRICE: u64 = 1 << 24;
/// How much more it counts to have had a slot of the same pair than one of either backend.
const PAIR_COUNTS: i64 = 64;

/// What is dealt for the slots of a service.
#[derive(Debug)]
pub(super) struct Deal {
    hands: Hands,
    /// First stand-in of each slot, in the order of the hands, so that one member's are read in a row. Empty when none is
    /// dealt.
    first: Positions,
    /// Second stand-in, likewise.
    second: Positions,
}

/// One slot in the hand of its base owner.
pub(super) struct Card {
    /// Its number.
    pub(super) slot: u32,
    /// Its rank for the base owner: 0-65535, evenly spread over the hand.
    pub(super) rank: u32,
    /// Its dealt stand-ins, in order.
    pub(super) stand_ins: [u32; 2],
}

impl Deal {
    pub(super) fn new(base: &[u32], weights: &[u16], order: &Order) -> Self {
        let hands = Hands::new(base, weights.len());
        let (mut first_ones, mut second_ones) = (Vec::new(), Vec::new());
        let active = order.active();
        if (2..=MOST_FOR_FIRST).contains(&active.len()) && weights.len() <= usize::from(u16::MAX) {
            let shares = Shares::new(weights, &hands, active);
            first_ones = first(&hands, &shares, order);
            if FOR_SECOND.contains(&active.len()) {
                second_ones = second(base, &first_ones, &shares, order);
            }
        }
        let [first, second] =
            [first_ones, second_ones].map(|dealt| hands.order(&dealt, weights.len()));
        Self {
            hands,
            first,
            second,
        }
    }

    /// The slots of a member whose rank is at least `rank`, in order of rank.
    pub(super) fn hand(&self, position: u32, rank: u32) -> impl Iterator<Item = Card> {
        let hand = self.hands.place(position);
        let (start, size) = (hand.start, hand.len());
        let skipped = (rank as usize * size).div_ceil(1 << 16).min(size);
        (skipped..size).map(move |n| {
            let place = start + n;
            Card {
                slot: self.hands.slot(place),
                rank: ((n << 16) / size) as u32,
                stand_ins: [&self.first, &self.second].map(|dealt| dealt.get(place)),
            }
        })
    }
}

/// The slots of each member, in order of rank.
#[derive(Debug)]
struct Hands {
    /// Less 1 each, so that they fit 16 bits; slot 0 stands apart.
    slots: Box<[u16]>,
    /// Where in `slots` slot 0 is.
    zero: usize,
    /// Where in `slots` the slots of each position start, and after the last the end.
    starts: Vec<usize>,
}

impl Hands {
    fn new(base: &[u32], members: usize) -> Self {
        let mut starts = vec![0; members + 2];
        for owner in base {
            starts[*owner as usize + 1] += 1;
        }
        for position in 1..starts.len() {
            starts[position] += starts[position - 1];
        }
        let mut next = starts.clone();
        let mut slots = vec![0_u16; base.len()];
        // Slot 0 comes first, so it is the first in its owner's hand.
        let zero = &mut next[base[0] as usize];
        let first = *zero;
        *zero += 1;
        let mut slot = 1;
        for _ in 1..base.len() {
            let place = &mut next[base[slot as usize] as usize];
            slots[*place] = (slot - 1) as u16;
            *place += 1;
            slot = (u64::from(slot) * u64::from(ROOT) % u64::from(SLOTS)) as u32;
        }
        Self {
            slots: slots.into(),
            zero: first,
            starts,
        }
    }

    /// Where the slots of a position are.
    fn place(&self, position: u32) -> Range<usize> {
        let position = position as usize;
        self.starts[position]..self.starts[position + 1]
    }

    /// The slot at a place.
    fn slot(&self, place: usize) -> u32 {
        if place == self.zero {
            0
        } else {
            u32::from(self.slots[place]) + 1
        }
    }

    /// The slots of a position.
    fn of(&self, position: u32) -> impl ExactSizeIterator<Item = u32> {
        self.place(position).map(|place| self.slot(place))
    }

    /// The position, of so many members, that there is for each slot, in the order of the hands; none where nothing is.
    fn order(&self, by_slot: &[u16], members: usize) -> Positions {
        let places = 0..self.slots.len().min(by_slot.len());
        let position = |place| u32::from(by_slot[self.slot(place) as usize]);
        Positions::pack(members, places.map(position))
    }
}

/// One member that can own slots.
#[derive(Clone, Copy)]
struct Seat {
    position: u32,
    weight: u64,
    /// Slots of its own.
    count: u32,
    /// What is its by weight, in 1/65536 slot.
    exact: u64,
}

/// What each member has and should have.
struct Shares {
    seats: Vec<Seat>,
    total: u64,
}

impl Shares {
    fn new(weights: &[u16], hands: &Hands, active: &[u32]) -> Self {
        let weight = |position: u32| u64::from(weights[position as usize - 1]);
        let total = active.iter().map(|position| weight(*position)).sum();
        let seat = |position: &u32| Seat {
            position: *position,
            weight: weight(*position),
            count: hands.of(*position).len() as u32,
            exact: share(weight(*position), total),
        };
        Self {
            seats: active.iter().map(seat).collect(),
            total,
        }
    }
}

/// Share of the slots of a member with this weight among members with this sum of weights, in 1/65536 slot.
fn share(weight: u64, total: u64) -> u64 {
    (u64::from(SLOTS) << FRACTION) * weight / total
}

/// The first stand-in of each slot.
fn first(hands: &Hands, shares: &Shares, order: &Order) -> Vec<u16> {
    let mut first = vec![0; SLOTS as usize];
    let mut counter = Counter::new(shares);
    let mut cards = Vec::new();
    for (gone, seat) in shares.seats.iter().enumerate() {
        let slots = hands.of(seat.position);
        counter.count(gone, order);
        cards.clear();
        for (other, need) in shares.seats.iter().zip(&counter.needs) {
            // Spread along the ranks, so that a backend that gives up a part of its slots gives to all alike.
            let phase = mix(order.seed(seat.position) ^ order.seed(other.position).rotate_left(32));
            for n in 0..u64::from(*need) {
                let place = ((n << 32) + (phase >> 32)) / u64::from(*need);
                cards.push(place << 32 | u64::from(other.position));
            }
        }
        cards.sort_unstable();
        for (slot, card) in slots.zip(&cards) {
            first[slot as usize] = *card as u16;
        }
    }
    first
}

/// Counts out how many slots of a backend go to each other one.
struct Counter<'a> {
    shares: &'a Shares,
    /// The last count: slots for each seat.
    needs: Vec<u32>,
    /// By how much each seat has been given more than its exact part in all counts so far, in 1/65536 slot: whole slots are
    /// rounded up for those whom rounding has cost most, so that it evens out when several backends are gone.
    drift: Vec<i64>,
    keys: Vec<u64>,
}

impl<'a> Counter<'a> {
    fn new(shares: &'a Shares) -> Self {
        Self {
            shares,
            needs: vec![0; shares.seats.len()],
            drift: vec![0; shares.seats.len()],
            keys: Vec::new(),
        }
    }

    /// Counts out the slots of the seat `gone`, so that every other seat ends at its share of a table without it: see
    /// [`MANY`].
    fn count(&mut self, gone: usize, order: &Order) {
        let Seat {
            position,
            weight,
            count,
            ..
        } = self.shares.seats[gone];
        let rest = self.shares.total - weight;
        let few = self.shares.seats.len() <= MANY;
        let mut sum = 0;
        let mut short = Vec::with_capacity(self.shares.seats.len());
        for (n, seat) in self.shares.seats.iter().enumerate() {
            if n == gone {
                self.needs[n] = 0;
                short.push(false);
                continue;
            }
            let share = share(seat.weight, rest);
            let part = share - seat.exact;
            let whole = (share >> FRACTION) as u32;
            let (need, is_short) = if few {
                ((part >> FRACTION) as u32, true)
            } else {
                (whole.saturating_sub(seat.count), seat.count <= whole)
            };
            self.needs[n] = need;
            self.drift[n] += (i64::from(need) << FRACTION) - part as i64;
            sum += need;
            short.push(is_short);
        }
        let salt = order.seed(position);
        if sum < count {
            sum += self.correct(count - sum, 1, salt, order, |n, _| short[n]);
        }
        while sum > count {
            sum -= self.correct(sum - count, -1, salt, order, |_, need| need > 0);
        }
    }

    /// Gives (`step` 1) or takes (-1) one slot each to up to `number` of the allowed seats, first those that have had least
    /// (most). Returns how many there were.
    fn correct(
        &mut self,
        number: u32,
        step: i32,
        salt: u64,
        order: &Order,
        allowed: impl Fn(usize, u32) -> bool,
    ) -> u32 {
        let seats = self.shares.seats.iter().zip(&self.needs).zip(&self.drift);
        self.keys.clear();
        for (n, ((seat, need), drift)) in seats.enumerate() {
            if allowed(n, *need) {
                let drift = (drift * i64::from(step) + MOST_DRIFT) as u64;
                let tie = mix(salt ^ order.seed(seat.position)) >> 48;
                self.keys.push(drift << 32 | tie << 16 | n as u64);
            }
        }
        let number = self.keys.len().min(number as usize);
        if number < self.keys.len() {
            self.keys.select_nth_unstable(number);
        }
        for key in &self.keys[..number] {
            let n = (key & 0xffff) as usize;
            self.needs[n] = self.needs[n].saturating_add_signed(step);
            self.drift[n] += i64::from(step) << FRACTION;
        }
        number as u32
    }
}

/// The second stand-in of each slot: whoever has had fewest so far of those dealt for the same pair of base owner and first
/// stand-in, and for each of the two.
fn second(base: &[u32], first: &[u16], shares: &Shares, order: &Order) -> Vec<u16> {
    let mut seats_of = vec![0; order.positions()];
    for (n, seat) in shares.seats.iter().enumerate() {
        seats_of[seat.position as usize] = n;
    }
    let size = shares.seats.len();
    let weights = shares.seats.iter().map(|seat| seat.weight);
    let prices: Vec<i64> = weights.map(|weight| (PRICE / weight) as i64).collect();
    let mut second = vec![0; SLOTS as usize];
    let mut dealt = surplus(base, first, &seats_of, shares);
    let mut in_pair = vec![0; size];
    let mut before = None;
    for slot in by_pair(base, first, &seats_of, size) {
        let owner = seats_of[base[slot as usize] as usize];
        let stand_in = seats_of[usize::from(first[slot as usize])];
        let pair = (owner.min(stand_in), owner.max(stand_in));
        if before.replace(pair) != Some(pair) {
            in_pair.fill(0);
        }
        let price = |n: usize| {
            let had =
                in_pair[n] * PAIR_COUNTS + dealt[owner * size + n] + dealt[stand_in * size + n];
            (had + 1) * prices[n]
        };
        let free = |n: &usize| *n != owner && *n != stand_in;
        let chosen = if size <= FEW {
            (0..size).filter(free).min_by_key(|n| price(*n))
        } else {
            order::tries(!slot)
                .take(CANDIDATES)
                .map(|(other, _)| seats_of[base[other as usize] as usize])
                .filter(free)
                .min_by_key(|n| price(*n))
        };
        if let Some(n) = chosen {
            second[slot as usize] = shares.seats[n].position as u16;
            in_pair[n] += 1;
            dealt[owner * size + n] += 1;
            dealt[stand_in * size + n] += 1;
        }
    }
    second
}

/// The slots, those of the same base owner and first stand-in together.
fn by_pair(base: &[u32], first: &[u16], seats_of: &[usize], size: usize) -> Vec<u32> {
    let pair = |slot: usize| {
        let (a, b) = (
            seats_of[base[slot] as usize],
            seats_of[usize::from(first[slot])],
        );
        a.min(b) * size + a.max(b)
    };
    let mut next = vec![0; size * size + 1];
    for slot in 0..base.len() {
        next[pair(slot) + 1] += 1;
    }
    for n in 1..next.len() {
        next[n] += next[n - 1];
    }
    let mut slots = vec![0; base.len()];
    for slot in 0..base.len() {
        let place: &mut usize = &mut next[pair(slot)];
        slots[*place] = slot as u32;
        *place += 1;
    }
    slots
}

/// What rounding has given each seat too much in the first stand-ins of each other one, as slots of second stand-ins: when a
/// tenth of the members is gone, second stand-ins make up for rounding in the base table and in first stand-ins.
fn surplus(base: &[u32], first: &[u16], seats_of: &[usize], shares: &Shares) -> Vec<i64> {
    let size = shares.seats.len();
    let mut surplus = vec![0_i64; size * size];
    for (owner, stand_in) in base.iter().zip(first) {
        let owner = seats_of[*owner as usize];
        surplus[owner * size + seats_of[usize::from(*stand_in)]] += 1 << FRACTION;
    }
    let gone = (size as i64 / 10).max(2);
    // Of the pairs that one backend is in, this part is gone as a whole, and each pair makes up for both its backends.
    let pairs = 2 * (size as i64 - 2) / (gone - 1);
    for (owner, surplus) in shares.seats.iter().zip(surplus.chunks_mut(size)) {
        let rest = shares.total - owner.weight;
        for (seat, surplus) in shares.seats.iter().zip(surplus) {
            let due = share(seat.weight, rest) as i64 - seat.exact as i64;
            let of_base = (i64::from(seat.count) << FRACTION) - seat.exact as i64;
            let all = (*surplus - due + of_base / gone) * pairs;
            // More than a part of what a seat gets anyway would do harm when more backends are gone.
            let usual = 2 * u64::from(owner.count) * seat.exact / u64::from(SLOTS);
            let most = usual as i64 * 3 / 8;
            *surplus = all.clamp(-most, most) >> FRACTION;
        }
    }
    surplus
}
