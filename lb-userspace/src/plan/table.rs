//! One service's slot table as planning sees it: what it follows from, and since when its slots wait.
//!
//! **Invariant.** Once a table has inputs, the owner for new flows in each word is the slot's live owner by those inputs.

use super::{
    census::Census,
    life::{self, Life, Rules},
};
use crate::{
    overlay::{Availability, NOBODY, Overlay},
    spec::{FlowPolicy, Tracking},
};
use lb_common::slot::Slot;
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

/// What is known of a table beside its words, which are in the data plane. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Table {
    /// Nothing while only the words are known.
    inputs: Option<Inputs>,
    policy: FlowPolicy,
    overlay: Arc<Overlay>,
    /// Since when each slot that has something to wait for is as it is.
    since: BTreeMap<u32, Duration>,
    /// Number of slots of each owner for new flows, by backend index.
    shares: BTreeMap<u32, u32>,
    /// Number of slots of each owner that has them for old flows only, by backend index.
    old_owners: BTreeMap<u32, u32>,
}

/// What is to be stored in a table.
#[derive(Debug)]
pub struct Due {
    /// Number and word of each slot that differs from what it should be.
    pub slots: Vec<(u32, Slot)>,
    /// How many of them get another owner for new flows; the others come a step nearer to rest.
    pub moved: u32,
    /// The table once they are stored.
    pub table: Table,
}

impl Table {
    /// A table of which only the words are known: from an earlier daemon, or empty. What it waits for begins anew.
    pub fn found(words: &[Slot], now: Duration) -> Self {
        let waiting = (0..).zip(words).filter(|(_, word)| word.is_tracked());
        let mut table = Self {
            inputs: None,
            policy: FlowPolicy::default(),
            overlay: Arc::new(Overlay::new(&[])),
            since: waiting.map(|(number, _)| (number, now)).collect(),
            shares: BTreeMap::new(),
            old_owners: BTreeMap::new(),
        };
        for word in words {
            table.count(*word, 1);
        }
        table
    }

    /// The policy that it was stored with.
    pub const fn policy(&self) -> &FlowPolicy {
        &self.policy
    }

    /// What it follows from.
    pub const fn inputs(&self) -> Option<&Inputs> {
        self.inputs.as_ref()
    }

    /// The preferences of its slots.
    pub fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Number of slots of each owner for new flows, by backend index; 0 = nobody.
    pub const fn shares(&self) -> &BTreeMap<u32, u32> {
        &self.shares
    }

    /// The backends that slots name as owners for old flows only, with the number of those slots.
    pub const fn old_owners(&self) -> &BTreeMap<u32, u32> {
        &self.old_owners
    }

    /// Number of slots that wait for something: moved ones, and tracked ones until no entry names another backend.
    pub fn waiting(&self) -> usize {
        self.since.len()
    }

    /// Whether the program looks flows of a slot up.
    pub fn is_tracked(&self, slot: u32) -> bool {
        self.policy.tracking == Tracking::All || self.since.contains_key(&slot)
    }

    /// Whether nothing is to be done to it.
    pub fn is_settled(&self, inputs: &Inputs) -> bool {
        self.since.is_empty() && self.inputs.as_ref() == Some(inputs)
    }

    /// What is due now; nothing when the table is as it should be. `words` are those in the data plane.
    pub fn next(
        &self,
        service: u32,
        mut words: Vec<Slot>,
        inputs: &Inputs,
        rules: &Rules<'_>,
        census: Option<&Census>,
    ) -> Option<Due> {
        let before = self.inputs.as_ref();
        let overlay = match before {
            Some(before) if before.members == inputs.members => Arc::clone(&self.overlay),
            Some(_) | None => Arc::new(Overlay::new(&inputs.members)),
        };
        let step = |(number, owner): (u32, u32)| {
            let word = words.get(number as usize)?;
            self.step((service, number), *word, owner, inputs, rules, census)
        };
        let wanted = self.wanted(&overlay, inputs, &words);
        let steps: Vec<SlotStep> = wanted.into_iter().filter_map(step).collect();
        // Most of the time nothing is due to the slots that wait: no copy is made then.
        if steps.is_empty() && before == Some(inputs) {
            return None;
        }
        let mut table = Self {
            inputs: Some(inputs.clone()),
            policy: inputs.policy,
            overlay,
            ..self.clone()
        };
        let (mut slots, mut moved) = (Vec::new(), 0);
        for step in steps {
            match step.waits_since {
                Some(since) => table.since.insert(step.number, since),
                None => table.since.remove(&step.number),
            };
            let Some(word) = words.get_mut(step.number as usize) else {
                continue;
            };
            let stored = std::mem::replace(word, step.word);
            if stored != step.word {
                slots.push((step.number, step.word));
                moved += u32::from(stored.new_owner() != step.word.new_owner());
                table.recount(stored, step.word);
            }
        }
        Some(Due {
            slots,
            moved,
            table,
        })
    }

    /// The slots that can have to change, with the backend index of the owner that each should have (0 = nobody).
    fn wanted(&self, overlay: &Overlay, inputs: &Inputs, words: &[Slot]) -> Vec<(u32, u32)> {
        let owner = |position: u32| match position {
            NOBODY => 0,
            position => inputs
                .owners
                .get(position as usize - 1)
                .copied()
                .unwrap_or(0),
        };
        let known = self.inputs.as_ref().filter(|before| {
            (&before.members, &before.owners, before.policy)
                == (&inputs.members, &inputs.owners, inputs.policy)
        });
        let Some(before) = known else {
            let live = overlay.live(&inputs.availability);
            return (0..).zip(live.into_iter().map(owner)).collect();
        };
        if before.availability == inputs.availability {
            let as_it_is = |number: &u32| Some((*number, words.get(*number as usize)?.new_owner()));
            return self.since.keys().filter_map(as_it_is).collect();
        }
        let mut live = positions(words, &inputs.owners);
        let changed = overlay.update(&mut live, &before.availability, &inputs.availability);
        let waiting = self.since.keys().copied();
        let touched: BTreeSet<u32> = changed.into_iter().chain(waiting).collect();
        let wanted = |number: u32| Some((number, owner(*live.get(number as usize)?)));
        touched.into_iter().filter_map(wanted).collect()
    }

    /// The next step of one slot (service index, number), if one is due.
    fn step(
        &self,
        (service, number): (u32, u32),
        word: Slot,
        owner: u32,
        inputs: &Inputs,
        rules: &Rules<'_>,
        census: Option<&Census>,
    ) -> Option<SlotStep> {
        let before = Life::of(word);
        let waited = self.since.get(&number).copied();
        let since = waited.unwrap_or(rules.now);
        let elsewhere = match before {
            Life::Tracked { owner } => {
                census.and_then(|census| census.elsewhere(service, number, owner, since))
            }
            Life::Empty | Life::Steady { .. } | Life::Moved { .. } => None,
        };
        let (after, since) = life::next((before, since), owner, rules, elsewhere);
        let waits = match after {
            Life::Empty | Life::Steady { .. } => false,
            // Under `tracking: all` a tracked slot waits for nothing.
            Life::Tracked { .. } => inputs.policy.tracking != Tracking::All,
            Life::Moved { .. } => true,
        };
        let step = SlotStep {
            number,
            word: after.slot(),
            waits_since: waits.then_some(since),
        };
        (step.word != word || step.waits_since != waited).then_some(step)
    }

    /// Counts the owners of a slot that has changed.
    fn recount(&mut self, before: Slot, after: Slot) {
        self.count(before, -1);
        self.count(after, 1);
    }

    /// Adds the owners of a slot to the counts, or takes them away: `times` is 1 or -1.
    fn count(&mut self, word: Slot, times: i32) {
        let (new, old) = (word.new_owner(), word.old_owner());
        add(&mut self.shares, new, times);
        if old != new {
            add(&mut self.old_owners, old, times);
        }
    }
}

/// Changes a count; an owner of no slot has none.
fn add(counts: &mut BTreeMap<u32, u32>, owner: u32, times: i32) {
    let count = counts.entry(owner).or_default();
    *count = count.saturating_add_signed(times);
    if *count == 0 {
        counts.remove(&owner);
    }
}

/// What one slot comes to.
struct SlotStep {
    number: u32,
    word: Slot,
    /// Since when it waits for something, if it does.
    waits_since: Option<Duration>,
}

/// The owner for new flows of each slot as a position among `owners` counted from 1; [`NOBODY`] for any other.
pub fn positions(words: &[Slot], owners: &[u32]) -> Vec<u32> {
    let highest = owners.iter().max().map_or(0, |owner| *owner as usize);
    let mut position = vec![NOBODY; highest + 1];
    for (owner, number) in owners.iter().zip(1..) {
        if let Some(place) = position.get_mut(*owner as usize) {
            *place = number;
        }
    }
    let of = |word: &Slot| {
        position
            .get(word.new_owner() as usize)
            .copied()
            .unwrap_or(NOBODY)
    };
    words.iter().map(of).collect()
}
