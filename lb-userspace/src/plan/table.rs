//! One service's slot table as planning sees it: what it follows from, and since when its slots wait.
//!
//! **Invariant.** Once a table has inputs, the owner for new flows in each word is the slot's live owner by those inputs.

use super::{
    census::Census,
    life::{self, Life, Rules},
};
use crate::{
    overlay::{Availability, NOBODY, Overlay},
    spec::{FlowPolicy, Name, Tracking},
};
use anyhow::Result;
use lb_common::{limits::SLOTS, slot::Slot};
use rustc_hash::FxHashMap;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What a table follows from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// Name and weight of each backend that has a weight, in order of name.
    pub members: Vec<(Name, u16)>,
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
    since: FxHashMap<u32, Duration>,
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
        let mut recount = Recount::default();
        words.iter().for_each(|word| recount.count(*word, 1));
        let mut table = Self {
            inputs: None,
            policy: FlowPolicy::default(),
            overlay: Arc::new(Overlay::new::<Name>(&[])),
            since: waiting.map(|(number, _)| (number, now)).collect(),
            shares: BTreeMap::new(),
            old_owners: BTreeMap::new(),
        };
        table.recount(recount);
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

    /// What is due now; nothing when the table is as it should be. `read` reads the words of slots from the data plane, in the
    /// order of their numbers.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn next(
        &self,
        service: u32,
        inputs: &Inputs,
        rules: &Rules<'_>,
        census: Option<&Census>,
        read: &mut dyn FnMut(&[u32]) -> Result<Vec<Slot>>,
    ) -> Result<Option<Due>> {
        let before = self.inputs.as_ref();
        let overlay = match before {
            Some(before) if before.members == inputs.members => Arc::clone(&self.overlay),
            Some(_) | None => Arc::new(Overlay::new(&inputs.members)),
        };
        let (numbers, owners) = self.wanted(&overlay, inputs);
        let words = read(&numbers)?;
        let wanted = numbers.into_iter().zip(words).zip(owners);
        let step = |((number, word), owner): ((u32, Slot), Option<u32>)| {
            let owner = owner.unwrap_or_else(|| word.new_owner());
            self.step((service, number), word, owner, inputs, rules, census)
        };
        let steps: Vec<SlotStep> = wanted.filter_map(step).collect();
        // Most of the time nothing is due to the slots that wait: no copy is made then.
        if steps.is_empty() && before == Some(inputs) {
            return Ok(None);
        }
        let mut table = Self {
            inputs: Some(inputs.clone()),
            policy: inputs.policy,
            overlay,
            ..self.clone()
        };
        let (slots, moved) = table.take(steps);
        Ok(Some(Due {
            slots,
            moved,
            table,
        }))
    }

    /// Takes steps in: what is to be stored, and how many slots get another owner for new flows.
    fn take(&mut self, steps: Vec<SlotStep>) -> (Vec<(u32, Slot)>, u32) {
        let (mut slots, mut moved) = (Vec::with_capacity(steps.len()), 0);
        let mut recount = Recount::default();
        for step in steps {
            match step.waits_since {
                Some(since) => self.since.insert(step.number, since),
                None => self.since.remove(&step.number),
            };
            if step.before == step.word {
                continue;
            }
            slots.push((step.number, step.word));
            moved += u32::from(step.before.new_owner() != step.word.new_owner());
            recount.count(step.before, -1);
            recount.count(step.word, 1);
        }
        self.recount(recount);
        (slots, moved)
    }

    /// Takes changed owners of slots into the counts.
    fn recount(&mut self, recount: Recount) {
        add(&mut self.shares, recount.shares);
        add(&mut self.old_owners, recount.old_owners);
    }

    /// The slots that can have to change, and beside each the backend index of the owner that it should have (0 = nobody);
    /// nothing: the one that it has.
    fn wanted(&self, overlay: &Overlay, inputs: &Inputs) -> (Vec<u32>, Vec<Option<u32>>) {
        let owner = |position: u32| match position {
            NOBODY => Some(0),
            position => {
                let owner = inputs.owners.get(position as usize - 1);
                Some(owner.copied().unwrap_or(0))
            }
        };
        let known = self.inputs.as_ref().filter(|before| {
            (&before.members, &before.owners, before.policy)
                == (&inputs.members, &inputs.owners, inputs.policy)
        });
        let Some(before) = known else {
            let live = overlay.live(&inputs.availability);
            return (0..).zip(live.into_iter().map(owner)).unzip();
        };
        let touched = overlay.update(&before.availability, &inputs.availability);
        let mut is_touched = Vec::new();
        if !self.since.is_empty() && !touched.is_empty() {
            is_touched.resize(SLOTS as usize, false);
            for (number, _) in &touched {
                if let Some(place) = is_touched.get_mut(*number as usize) {
                    *place = true;
                }
            }
        }
        let waits = |number: &u32| is_touched.get(*number as usize) != Some(&true);
        let waiting = self.since.keys().copied().filter(waits);
        let touched = touched.into_iter();
        touched
            .map(|(number, position)| (number, owner(position)))
            .chain(waiting.map(|number| (number, None)))
            .unzip()
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
            before: word,
            word: after.slot(),
            waits_since: waits.then_some(since),
        };
        (step.word != word || step.waits_since != waited).then_some(step)
    }
}

/// By how much the counts of owners change, by backend index: summed up first, for there may be many slots.
#[derive(Default)]
struct Recount {
    shares: FxHashMap<u32, i32>,
    old_owners: FxHashMap<u32, i32>,
}

impl Recount {
    /// Adds the owners of a slot, or takes them away: `times` is 1 or -1.
    fn count(&mut self, word: Slot, times: i32) {
        let (new, old) = (word.new_owner(), word.old_owner());
        *self.shares.entry(new).or_default() += times;
        if old != new {
            *self.old_owners.entry(old).or_default() += times;
        }
    }
}

/// Changes counts; an owner of no slot has none.
fn add(counts: &mut BTreeMap<u32, u32>, changes: FxHashMap<u32, i32>) {
    for (owner, change) in changes {
        let count = counts.entry(owner).or_default();
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            counts.remove(&owner);
        }
    }
}

/// What one slot comes to.
struct SlotStep {
    number: u32,
    before: Slot,
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
