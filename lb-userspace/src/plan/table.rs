//! One service's slot table as planning sees it: who should own each slot, what its word is, since when.

use super::{
    census::Census,
    life::{self, Life, Rules},
};
use crate::{
    overlay::{Availability, Overlay},
    spec::{FlowPolicy, Tracking},
};
use lb_common::{limits::SLOTS, slot::Slot};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What a table follows from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Name and weight of each backend that has a weight, in order of name.
    pub members: Vec<(String, u16)>,
    /// The backend index of each member.
    pub owners: Vec<u32>,
    /// The availability of each member.
    pub availability: Vec<Availability>,
    /// The service's policy.
    pub policy: FlowPolicy,
}

/// A table in the data plane.
#[derive(Clone, Debug)]
pub struct Table {
    /// Nothing while only the words are known.
    inputs: Option<Inputs>,
    policy: FlowPolicy,
    overlay: Arc<Overlay>,
    /// Position of each slot's live owner among the members, counted from 1.
    live: Vec<u32>,
    slots: Vec<Slot>,
    /// Since when each slot that has something to wait for is as it is.
    since: BTreeMap<u32, Duration>,
    /// Number of slots of each owner for new flows, by backend index.
    shares: BTreeMap<u32, u32>,
}

impl Table {
    /// A table of which only the words are known: from an earlier daemon, or empty. What it waits for begins anew.
    pub fn found(slots: Vec<Slot>, now: Duration) -> Self {
        let waiting = (0..).zip(&slots).filter(|(_, slot)| slot.is_tracked());
        let since = waiting.map(|(number, _)| (number, now)).collect();
        Self {
            inputs: None,
            policy: FlowPolicy::default(),
            overlay: Arc::new(Overlay::new(&[])),
            live: vec![crate::overlay::NOBODY; SLOTS as usize],
            since,
            shares: shares(&slots),
            slots,
        }
    }

    /// A new, empty table.
    pub fn empty() -> Self {
        Self::found(vec![Slot::EMPTY; SLOTS as usize], Duration::ZERO)
    }

    /// The policy that it was stored with.
    pub const fn policy(&self) -> &FlowPolicy {
        &self.policy
    }

    /// What it follows from.
    pub const fn inputs(&self) -> Option<&Inputs> {
        self.inputs.as_ref()
    }

    /// The word of a slot.
    pub fn slot(&self, number: u32) -> Option<Slot> {
        self.slots.get(number as usize).copied()
    }

    /// Number of slots of each owner for new flows, by backend index; 0 = nobody.
    pub const fn shares(&self) -> &BTreeMap<u32, u32> {
        &self.shares
    }

    /// The live owner of each slot, as a position among the members counted from 1; 0 = nobody.
    pub fn live(&self) -> &[u32] {
        &self.live
    }

    /// Number of slots that wait for something: moved ones, and tracked ones until no flow lives elsewhere.
    pub fn waiting(&self) -> usize {
        self.since.len()
    }

    /// The backends that slots name as owners for old flows only, with the number of those slots.
    pub fn old_owners(&self) -> BTreeMap<u32, u32> {
        let mut old = BTreeMap::new();
        for slot in self.since.keys().filter_map(|number| self.slot(*number)) {
            if slot.old_owner() != slot.new_owner() {
                *old.entry(slot.old_owner()).or_default() += 1;
            }
        }
        old
    }

    /// The slots that differ from what they should be now, with their words, and the table as it is once they are stored.
    /// Nothing when it is as it should be.
    pub fn next(
        &self,
        service: u32,
        inputs: &Inputs,
        rules: &Rules<'_>,
        census: Option<&Census>,
    ) -> Option<(Vec<(u32, Slot)>, Self)> {
        let before = self.inputs.as_ref();
        // Most of the time nothing is due: no copy is made then.
        let is_due = |(number, since): (&u32, &Duration)| {
            let slot = self.slot(*number).unwrap_or_default();
            let owner = owner(&self.live, *number, inputs);
            let before = (Life::of(slot), *since);
            let after = after(service, *number, before, owner, rules, census);
            after != before || rests(after.0, &inputs.policy)
        };
        if before == Some(inputs) && !self.since.iter().any(is_due) {
            return None;
        }
        let mut next = Self {
            inputs: Some(inputs.clone()),
            policy: inputs.policy,
            ..self.clone()
        };
        let alike = before.filter(|before| before.members == inputs.members);
        let only_availability =
            alike.filter(|before| before.owners == inputs.owners && before.policy == inputs.policy);
        let touched: BTreeSet<u32> = match only_availability {
            Some(before) => {
                let (from, to) = (&before.availability, &inputs.availability);
                let changed = self.overlay.update(&mut next.live, from, to);
                changed
                    .into_iter()
                    .chain(self.since.keys().copied())
                    .collect()
            }
            None => {
                if alike.is_none() {
                    next.overlay = Arc::new(Overlay::new(&inputs.members));
                }
                next.live = next.overlay.live(&inputs.availability);
                (0..SLOTS).collect()
            }
        };
        let mut slots = Vec::new();
        for number in touched {
            if let Some(slot) = next.step(service, number, inputs, rules, census) {
                slots.push((number, slot));
            }
        }
        if !slots.is_empty() {
            next.shares = shares(&next.slots);
        }
        let changed = !slots.is_empty() || before != Some(inputs) || self.since != next.since;
        changed.then_some((slots, next))
    }

    /// Brings one slot a step on; its word, if that differs.
    fn step(
        &mut self,
        service: u32,
        number: u32,
        inputs: &Inputs,
        rules: &Rules<'_>,
        census: Option<&Census>,
    ) -> Option<Slot> {
        let owner = owner(&self.live, number, inputs);
        let word = self.slots.get_mut(number as usize)?;
        let since = self.since.get(&number).copied().unwrap_or(rules.now);
        let before = (Life::of(*word), since);
        let (after, since) = after(service, number, before, owner, rules, census);
        if rests(after, &inputs.policy) {
            self.since.remove(&number);
        } else {
            self.since.insert(number, since);
        }
        let slot = after.slot();
        (std::mem::replace(word, slot) != slot).then_some(slot)
    }
}

/// The backend index that should own a slot; 0 = nobody.
fn owner(live: &[u32], number: u32, inputs: &Inputs) -> u32 {
    let position = live.get(number as usize).copied().unwrap_or_default();
    (position as usize)
        .checked_sub(1)
        .and_then(|at| inputs.owners.get(at))
        .copied()
        .unwrap_or(0)
}

/// What becomes of a slot that is in a state since a moment.
fn after(
    service: u32,
    number: u32,
    (life, since): (Life, Duration),
    owner: u32,
    rules: &Rules<'_>,
    census: Option<&Census>,
) -> (Life, Duration) {
    let elsewhere = match life {
        Life::Tracked { owner } => {
            census.and_then(|census| census.elsewhere(service, number, owner, since))
        }
        Life::Empty | Life::Steady { .. } | Life::Moved { .. } => None,
    };
    life::next((life, since), owner, rules, elsewhere)
}

/// Whether a slot waits for nothing. Under `tracking: all` a tracked one does not.
fn rests(life: Life, policy: &FlowPolicy) -> bool {
    match life {
        Life::Empty | Life::Steady { .. } => true,
        Life::Tracked { .. } => policy.tracking == Tracking::All,
        Life::Moved { .. } => false,
    }
}

fn shares(slots: &[Slot]) -> BTreeMap<u32, u32> {
    let mut shares = BTreeMap::new();
    for slot in slots {
        *shares.entry(slot.new_owner()).or_default() += 1;
    }
    shares
}
