//! The life of a slot: one state machine, pure.
//!
//! ```text
//!            first owner            another owner is wanted
//!   Empty ---------------> Steady ---------------------------> Moved
//!     ^                     ^  |                                 |
//!     |                     |  | its owner is gone               | old owner is gone, or wanted again,
//!     |                     |  |                                 | or drain_timeout is over
//!     |    no entry names   |  v                                 |
//!     +--- another owner -- Tracked <----------------------------+
//!                              |                                 ^
//!                              +--- another owner is wanted -----+
//! ```
//!
//! - *Steady*: one owner, no flow table.
//! - *Moved*: an owner for new flows, one for old ones; every flow seen is recorded.
//! - *Tracked*: one owner again, but flows recorded meanwhile may live elsewhere and are followed, until the flow table has
//!   no entry of the slot that names another backend. An entry that were left behind would count again once its backend is
//!   back, and take away a flow that has found another home since.
//!
//! An owner is *gone* when its flows are given up: see [`super::departure`].

use crate::spec::{FlowPolicy, Tracking};
use lb_common::slot::Slot;
use std::time::Duration;

/// State of one slot. Owners are backend indexes, 0 = nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Never had an owner, or lost the last one.
    Empty,
    /// One owner, nothing recorded.
    Steady {
        /// The owner.
        owner: u32,
    },
    /// On its way.
    Moved {
        /// Owner for new flows.
        new: u32,
        /// Owner for old flows.
        old: u32,
        /// Whether UDP flows without an entry count as new.
        settled: bool,
    },
    /// One owner, and recorded flows that may live elsewhere.
    Tracked {
        /// The owner.
        owner: u32,
    },
}

impl Life {
    /// What a slot word says.
    pub const fn of(slot: Slot) -> Self {
        let (new, old) = (slot.new_owner(), slot.old_owner());
        if slot.is_tracked() {
            if new == old {
                return Self::Tracked { owner: new };
            }
            let settled = slot.is_settled();
            return Self::Moved { new, old, settled };
        }
        match new {
            0 => Self::Empty,
            owner => Self::Steady { owner },
        }
    }

    /// The slot word.
    pub const fn slot(self) -> Slot {
        match self {
            Self::Empty => Slot::EMPTY,
            Self::Steady { owner } => Slot::steady(owner),
            Self::Moved { new, old, settled } => Slot::moved(new, old, settled),
            Self::Tracked { owner } => Slot::tracked(owner),
        }
    }
}

/// What decides beside the slot itself.
pub struct Rules<'a> {
    /// CLOCK_MONOTONIC.
    pub now: Duration,
    /// The service's policy.
    pub policy: &'a FlowPolicy,
    /// Whether the service has not forwarded a packet yet: there is no flow that a move could break.
    pub unused: bool,
    /// Whether the flows of a backend index are given up.
    pub is_gone: &'a dyn Fn(u32) -> bool,
}

/// The next state of a slot that is in `life` since `since` and should be `owner`'s (0 = nobody's), and since when.
/// `elsewhere`: whether the flow table has entries of the slot that name another backend than its owner, if that is known
/// as of after `since`.
pub fn next(
    (life, since): (Life, Duration),
    owner: u32,
    rules: &Rules<'_>,
    elsewhere: Option<bool>,
) -> (Life, Duration) {
    let gone = rules.is_gone;
    let over = |span: Duration| rules.now >= since.saturating_add(span);
    let next = match (rules.policy.tracking, life) {
        (Tracking::None, _) => untracked(owner),
        (tracking, _) if rules.unused => rest(tracking, owner),
        (tracking, Life::Empty) => rest(tracking, owner),
        (tracking, Life::Steady { owner: now }) if now == owner => rest(tracking, owner),
        (Tracking::Moved, Life::Tracked { owner: now })
            if now == owner && elsewhere == Some(false) =>
        {
            untracked(owner)
        }
        (_, Life::Tracked { owner: now }) if now == owner || now == 0 => Life::Tracked { owner },
        (_, Life::Steady { owner: now } | Life::Tracked { owner: now }) if gone(now) => {
            Life::Tracked { owner }
        }
        (_, Life::Steady { owner: old } | Life::Tracked { owner: old }) => Life::Moved {
            new: owner,
            old,
            settled: rules.policy.udp_settle.is_zero(),
        },
        (_, Life::Moved { old, .. })
            if old == owner || gone(old) || over(rules.policy.drain_timeout) =>
        {
            Life::Tracked { owner }
        }
        // The flows of an owner in between are recorded: only those of the first one are waited for.
        (_, Life::Moved { old, settled, .. }) => {
            let settled = settled || over(rules.policy.udp_settle);
            return (
                Life::Moved {
                    new: owner,
                    old,
                    settled,
                },
                since,
            );
        }
    };
    (next, if next == life { since } else { rules.now })
}

/// A slot of which nothing is recorded yet.
const fn rest(tracking: Tracking, owner: u32) -> Life {
    match (tracking, owner) {
        (Tracking::All, 1..) => Life::Tracked { owner },
        _ => untracked(owner),
    }
}

const fn untracked(owner: u32) -> Life {
    match owner {
        0 => Life::Empty,
        owner => Life::Steady { owner },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(1_000);
    const LATER: Duration = Duration::from_secs(1_030);
    const SETTLED: Duration = Duration::from_secs(1_060);
    const OVER: Duration = Duration::from_secs(1_300);

    fn step(life: Life, owner: u32, now: Duration, gone: &[u32], elsewhere: Option<bool>) -> Life {
        let policy = FlowPolicy::default();
        let rules = Rules {
            now,
            policy: &policy,
            unused: false,
            is_gone: &|index| gone.contains(&index),
        };
        next((life, T), owner, &rules, elsewhere).0
    }

    const fn steady(owner: u32) -> Life {
        Life::Steady { owner }
    }

    const fn tracked(owner: u32) -> Life {
        Life::Tracked { owner }
    }

    const fn moved(new: u32, old: u32, settled: bool) -> Life {
        Life::Moved { new, old, settled }
    }

    #[test]
    fn every_arrow_of_the_picture() {
        for (from, owner, now, gone, elsewhere, to) in [
            (Life::Empty, 0, LATER, &[][..], None, Life::Empty),
            (Life::Empty, 1, LATER, &[], None, steady(1)),
            (steady(1), 1, LATER, &[], None, steady(1)),
            (steady(1), 2, LATER, &[], None, moved(2, 1, false)),
            (steady(1), 0, LATER, &[], None, moved(0, 1, false)),
            (steady(1), 2, LATER, &[1], None, tracked(2)),
            (steady(1), 0, LATER, &[1], None, tracked(0)),
            (moved(2, 1, false), 2, LATER, &[], None, moved(2, 1, false)),
            (moved(2, 1, false), 2, SETTLED, &[], None, moved(2, 1, true)),
            (moved(2, 1, true), 3, LATER, &[2], None, moved(3, 1, true)),
            (moved(2, 1, false), 1, LATER, &[], None, tracked(1)),
            (moved(2, 1, false), 2, LATER, &[1], None, tracked(2)),
            (moved(2, 1, true), 2, OVER, &[], None, tracked(2)),
            (moved(0, 1, true), 0, OVER, &[], None, tracked(0)),
            (tracked(2), 2, OVER, &[], None, tracked(2)),
            (tracked(2), 2, OVER, &[], Some(true), tracked(2)),
            (tracked(2), 2, OVER, &[], Some(false), steady(2)),
            (tracked(0), 0, OVER, &[], Some(false), Life::Empty),
            (tracked(0), 3, OVER, &[], None, tracked(3)),
            (tracked(2), 3, OVER, &[], Some(false), moved(3, 2, false)),
            (tracked(2), 3, OVER, &[2], Some(false), tracked(3)),
        ] {
            assert_eq!(
                step(from, owner, now, gone, elsewhere),
                to,
                "{from:?} -> {owner} at {now:?}"
            );
            assert_eq!(Life::of(to.slot()), to);
        }
    }

    #[test]
    fn a_second_move_does_not_prolong_the_first() {
        let policy = FlowPolicy::default();
        let rules = Rules {
            now: LATER,
            policy: &policy,
            unused: false,
            is_gone: &|_| false,
        };
        assert_eq!(
            next((moved(2, 1, false), T), 3, &rules, None),
            (moved(3, 1, false), T)
        );
        assert_eq!(
            next((steady(1), T), 3, &rules, None),
            (moved(3, 1, false), LATER)
        );
    }

    #[test]
    fn without_traffic_a_slot_moves_at_once() {
        let policy = FlowPolicy::default();
        let rules = Rules {
            now: LATER,
            policy: &policy,
            unused: true,
            is_gone: &|_| false,
        };
        for life in [Life::Empty, steady(1), moved(2, 1, true), tracked(5)] {
            assert_eq!(next((life, T), 7, &rules, None).0, steady(7));
        }
    }

    #[test]
    fn tracking_all_never_rests_untracked_and_tracking_none_always_does() {
        let mut policy = FlowPolicy {
            tracking: Tracking::All,
            ..FlowPolicy::default()
        };
        let step = |policy: &FlowPolicy, life, owner| {
            let rules = Rules {
                now: OVER,
                policy,
                unused: false,
                is_gone: &|_| false,
            };
            next((life, T), owner, &rules, Some(false)).0
        };
        assert_eq!(step(&policy, Life::Empty, 1), tracked(1));
        assert_eq!(step(&policy, steady(1), 1), tracked(1));
        assert_eq!(step(&policy, tracked(1), 1), tracked(1));
        assert_eq!(step(&policy, Life::Empty, 0), Life::Empty);
        policy.tracking = Tracking::None;
        for life in [Life::Empty, steady(1), moved(2, 1, true), tracked(5)] {
            assert_eq!(step(&policy, life, 7), steady(7));
            assert_eq!(step(&policy, life, 0), Life::Empty);
        }
    }
}
