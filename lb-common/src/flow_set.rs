//! The flow table's memory: an array of sets, and in each set places for some flows. A flow's hash says its set; which of the
//! places there is its own, only its key says.
//!
//! **Invariants.** A place is believed only if its head was the same, but for when the flow was seen, before its words were read and
//! after. Who writes a place makes its head busy first, by an atomic exchange that only one can win, and tells the new head last.
//! Each time, the head has another version. Element 0 of the array is no set: it has the secret of the hash ([`SECRET`]) and the
//! number of sets ([`SETS`]).

use crate::{
    flow::xxh64_of_five,
    flow_table::{FlowEntry, FlowKey},
};

/// Places in a set.
pub const WAYS: usize = 16;
/// Flows of a set, on average, if the table holds as many as it is made for. How many a set has is a matter of chance (Poisson): of
/// 262,144 flows, 11 find their set full; of 200,000 in the same table, less than one.
pub const FLOWS_PER_SET: u32 = 6;
/// Words of a flow's key.
pub const KEY_WORDS: usize = 5;
/// Words of a place: its key, and what is known of the flow.
pub const WORDS: usize = KEY_WORDS + 2;
/// Word of element 0: the secret.
pub const SECRET: usize = 0;
/// Word of element 0: the number of sets.
pub const SETS: usize = 1;

/// A set: the heads of all places and, behind them, their words.
#[repr(C, align(1024))]
#[derive(Clone, Copy, Debug)]
pub struct FlowSet {
    /// Each a [`Head`].
    pub heads: [u64; WAYS],
    /// Of each place.
    pub words: [[u64; WORDS]; WAYS],
}

const _: () = assert!(size_of::<FlowSet>() == 1024);

/// Sets of a table that is made for so many flows.
pub const fn sets(flows: u32) -> u32 {
    flows.div_ceil(FLOWS_PER_SET)
}

/// The words of a key, as they are in a place.
#[inline(always)]
pub const fn key_words(key: &FlowKey) -> [u64; KEY_WORDS] {
    let ([a, b], [c, d]) = (key.source.halves(), key.destination.halves());
    let ports = key.source_port as u64 | (key.destination_port as u64) << 16;
    [a, b, c, d, ports | (key.protocol as u64) << 32]
}

/// The key of these words.
pub const fn key_of([a, b, c, d, e]: [u64; KEY_WORDS]) -> FlowKey {
    FlowKey {
        source: crate::address::Address::of_halves(a, b),
        destination: crate::address::Address::of_halves(c, d),
        source_port: e as u16,
        destination_port: (e >> 16) as u16,
        protocol: (e >> 32) as u32,
    }
}

/// Where a key is at home: a set, and the tag that its head has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// Number of the set.
    pub set: u32,
    /// The key's tag.
    pub tag: u16,
    /// The place that it gets if that is free, and where it is looked for first: the processor guesses that it is there, and
    /// fetches the place's words with the heads and not after them.
    pub way: u8,
}

/// The home of a key in a table with this secret and number of sets. Nobody who does not know the secret can tell which flows
/// share a set.
#[inline(always)]
pub const fn home(key: [u64; KEY_WORDS], secret: u64, sets: u64) -> Home {
    let hash = xxh64_of_five(key, secret);
    Home {
        set: (((hash >> 32) * sets) >> 32) as u32,
        tag: hash as u16,
        way: (hash >> 16) as u8 & (WAYS as u8 - 1),
    }
}

/// What is known of a place, in one word: from the top its worth, when its flow was seen, and its stamp: version, busy, tag. Of two
/// places, that with the smaller head is worth less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head(pub u64);

/// What a place is worth, in rising order.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It has no flow.
    Nothing = 0,
    /// Its flow is closing.
    Closing = 1,
    /// Its flow was recorded, and not heard of since.
    Recorded = 2,
    /// Its flow has had another packet since.
    Followed = 3,
}

impl Head {
    const BUSY: u64 = 1 << 16;
    const ONE_VERSION: u64 = 1 << 17;
    const STAMP: u64 = 0xffff_ffff;
    const SEEN: u64 = (1 << 30) - 1;
    const WORTH: u32 = 62;

    /// Whether it may be the head of a place with a key of this tag: not busy. It may have no flow.
    #[inline(always)]
    pub const fn has_tag(self, tag: u16) -> bool {
        self.0 & (Self::BUSY | 0xffff) == tag as u64
    }

    /// Whether somebody is writing the place.
    #[inline(always)]
    pub const fn is_busy(self) -> bool {
        self.0 & Self::BUSY != 0
    }

    /// Whether the place has a flow: not when it is busy.
    #[inline(always)]
    pub const fn is_used(self) -> bool {
        self.0 >> Self::WORTH != 0
    }

    /// Whether the flow is closing.
    #[inline(always)]
    pub const fn is_closing(self) -> bool {
        self.0 >> Self::WORTH == Worth::Closing as u64
    }

    /// When the flow was seen, as [`FlowEntry::seen`].
    #[inline(always)]
    pub const fn seen(self) -> u32 {
        (self.0 >> 32 & Self::SEEN) as u32
    }

    /// What is another once the place was written.
    #[inline(always)]
    pub const fn stamp(self) -> u32 {
        (self.0 & Self::STAMP) as u32
    }

    /// The head of the place while somebody writes a flow with this tag there.
    #[inline(always)]
    pub const fn claimed(self, tag: u16) -> Self {
        let version =
            (self.0 & Self::STAMP & !(Self::ONE_VERSION - 1)).wrapping_add(Self::ONE_VERSION);
        Self(version & Self::STAMP | Self::BUSY | tag as u64)
    }

    /// The head of the place once that is written.
    #[inline(always)]
    pub const fn told(self, worth: Worth, seen: u32) -> Self {
        Self::new(self.0 & Self::STAMP & !Self::BUSY, worth as u64, seen)
    }

    /// The head once the flow has had a packet, and is worth this.
    #[inline(always)]
    pub const fn marked(self, worth: u64, seen: u32) -> Self {
        Self::new(self.0 & Self::STAMP, worth, seen)
    }

    /// The head of the place without its flow.
    pub const fn freed(self) -> Self {
        Self(self.claimed(self.0 as u16).0 & !Self::BUSY)
    }

    /// The worth as a number.
    #[inline(always)]
    pub const fn worth(self) -> u64 {
        self.0 >> Self::WORTH
    }

    #[inline(always)]
    const fn new(stamp: u64, worth: u64, seen: u32) -> Self {
        Self(stamp | (seen as u64 & Self::SEEN) << 32 | worth << Self::WORTH)
    }
}

/// The words of what is known of a flow, without what its head says.
#[inline(always)]
pub const fn entry_words(entry: &FlowEntry) -> [u64; 2] {
    let FlowEntry {
        backend,
        generation,
        service,
        slot,
        ..
    } = *entry;
    [
        backend as u64 | (entry.second() as u64) << 24 | (slot as u64 & 0xffff) << 48,
        generation as u64 | (service as u64 & 0xff_ffff) << 32 | (slot as u64 >> 16) << 56,
    ]
}

/// The entry of these words and this head.
#[inline(always)]
pub const fn entry_of([first, second]: [u64; 2], head: Head) -> FlowEntry {
    let closing = if head.is_closing() {
        FlowEntry::CLOSING
    } else {
        0
    };
    FlowEntry {
        backend: first as u32 & 0xff_ffff,
        generation: second as u32,
        service: (second >> 32) as u32 & 0xff_ffff,
        slot: (first >> 48) as u32 | (second >> 56 << 16) as u32,
        seen: head.seen(),
        flags: FlowEntry::flags_of((first >> 24) as u32 & 0xff_ffff) | closing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn key(number: u32) -> FlowKey {
        FlowKey {
            source: Address([number, 2, 3, 4]),
            destination: Address([5, 6, 7, 8 + number]),
            source_port: 0xfedc,
            destination_port: 0xba98,
            protocol: 17,
        }
    }

    #[test]
    fn keys_and_entries_survive_the_round_trip() {
        assert_eq!(key_of(key_words(&key(9))), key(9));
        for (backend, slot, service) in [(1, 2, 3), (0xab_cdef, 65_536, 131_071), (0, 0, 0)] {
            for flags in [0, FlowEntry::CLOSING, 0x12_3456 << 8] {
                let entry = FlowEntry {
                    backend,
                    generation: 0xdead_beef,
                    service,
                    slot,
                    seen: 77,
                    flags,
                };
                let worth = if entry.is_closing() {
                    Worth::Closing
                } else {
                    Worth::Followed
                };
                let head = Head(0).claimed(5).told(worth, entry.seen);
                assert_eq!(entry_of(entry_words(&entry), head), entry);
            }
        }
    }

    #[test]
    fn a_place_that_changes_has_another_stamp_and_is_not_busy_for_long() {
        let mut head = Head(0);
        for version in 0..100_000 {
            let claimed = head.claimed(0xabcd);
            assert!(claimed.is_busy() && !claimed.is_used() && !claimed.has_tag(0xabcd));
            assert_ne!(claimed.stamp(), head.stamp());
            let told = claimed.told(Worth::Recorded, version);
            assert!(told.is_used() && told.has_tag(0xabcd) && !told.has_tag(0xabcc));
            assert_ne!(told.stamp(), head.stamp());
            assert_eq!((told.seen(), told.worth()), (version, 2));
            let marked = told.marked(Worth::Closing as u64, version + 1);
            assert_eq!(marked.stamp(), told.stamp());
            assert!(marked.is_closing() && marked.seen() == version + 1);
            let freed = marked.freed();
            assert!(!freed.is_used() && !freed.is_busy());
            assert_ne!(freed.stamp(), told.stamp());
            head = freed;
        }
    }

    #[test]
    fn what_is_worth_less_has_a_smaller_head() {
        let told = |tag, worth, seen| Head(0).claimed(tag).told(worth, seen);
        let rising = [
            Head(0),
            told(0xffff, Worth::Nothing, 9).freed(),
            told(9, Worth::Closing, 8),
            told(7, Worth::Closing, 9),
            told(6, Worth::Recorded, 7),
            told(5, Worth::Recorded, 8),
            told(4, Worth::Followed, 1),
            told(3, Worth::Followed, 2),
        ];
        assert!(rising.is_sorted());
    }

    #[test]
    fn keys_are_spread_evenly_over_the_sets() {
        const SETS: u32 = 1_000;
        let mut counts = [0_u32; SETS as usize];
        for number in 0..100 * SETS {
            let home = home(key_words(&key(number)), 0x5eed, SETS.into());
            counts[home.set as usize] += 1;
        }
        // Of a Poisson distribution, which has a standard deviation of 10.
        assert!(counts.iter().all(|count| (50..150).contains(count)));
    }
}
