//! One service's slot table as planning sees it: what it follows from, and since when its slots wait.
//!
//! **Invariant.** Once a table has inputs, the owner for new flows in each word is the slot's live owner by those inputs.

use super::{
    census::Census,
    life::{self, Life, Rules},
    roster::{Members, Updates},
};
use crate::{
    overlay::{Availability, NOBODY},
    spec::{FlowPolicy, Tracking},
};
use anyhow::Result;
use lb_common::{limits::SLOTS, slot::Slot};
use rustc_hash::FxHashMap;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// What a table follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// The backends that have a weight and an index.
    pub members: Arc<Members>,
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
        let mut recount = Recount::new(std::iter::empty());
        words.iter().for_each(|word| recount.count(*word, 1));
        let mut table = Self {
            inputs: None,
            policy: FlowPolicy::default(),
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
        mut inputs: Inputs,
        rules: &Rules<'_>,
        census: Option<&Census>,
        updates: &mut Updates,
        read: &mut dyn FnMut(&[u32]) -> Result<Vec<Slot>>,
    ) -> Result<Option<Due>> {
        let before = self.inputs.as_ref();
        // Those that are known have their overlay.
        if let Some(before) = before.filter(|before| before.members == inputs.members) {
            inputs.members = Arc::clone(&before.members);
        }
        let (numbers, owners) = self.wanted(&inputs, updates);
        let words = read(&numbers)?;
        let mut steps = Vec::with_capacity(numbers.len());
        for ((number, word), owner) in numbers.into_iter().zip(words).zip(owners) {
            let owner = owner.unwrap_or_else(|| word.new_owner());
            steps.extend(self.step((service, number), word, owner, rules, census));
        }
        // Most of the time nothing is due to the slots that wait: no copy is made then.
        if steps.is_empty() && before == Some(&inputs) {
            return Ok(None);
        }
        let mut table = Self {
            policy: inputs.policy,
            inputs: Some(inputs),
            since: self.since.clone(),
            shares: self.shares.clone(),
            old_owners: self.old_owners.clone(),
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
        let owners = self.inputs.iter().flat_map(|inputs| &inputs.owners);
        let mut recount = Recount::new(owners.copied());
        let waiting = steps.iter().filter(|step| step.waits_since.is_some());
        self.since.reserve(waiting.count());
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
        for (owner, change) in recount.changes() {
            add(&mut self.shares, owner, change.new);
            add(&mut self.old_owners, owner, change.old);
        }
    }

    /// The slots that can have to change, and beside each the backend index of the owner that it should have (0 = nobody);
    /// nothing: the one that it has.
    fn wanted(&self, inputs: &Inputs, updates: &mut Updates) -> (Vec<u32>, Vec<Option<u32>>) {
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
            let live = inputs.members.overlay().live(&inputs.availability);
            return (0..).zip(live.into_iter().map(owner)).unzip();
        };
        let touched = updates.of(&inputs.members, &before.availability, &inputs.availability);
        let mut is_touched = Vec::new();
        if !self.since.is_empty() && !touched.is_empty() {
            is_touched.resize(SLOTS as usize, false);
            for (number, _) in touched.iter() {
                if let Some(place) = is_touched.get_mut(*number as usize) {
                    *place = true;
                }
            }
        }
        let waits = |number: &u32| is_touched.get(*number as usize) != Some(&true);
        let waiting = self.since.keys().copied().filter(waits);
        let touched = touched.iter();
        touched
            .map(|(number, position)| (*number, owner(*position)))
            .chain(waiting.map(|number| (number, None)))
            .unzip()
    }

    /// The next step of one slot (service index, number), if one is due.
    fn step(
        &self,
        (service, number): (u32, u32),
        word: Slot,
        owner: u32,
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
            Life::Tracked { .. } => rules.policy.tracking != Tracking::All,
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
struct Recount {
    /// Where `near` starts.
    first: u32,
    /// Of the indexes from there on: a service's are mostly given out in a row.
    near: Vec<Change>,
    far: FxHashMap<u32, Change>,
}

/// By how much the counts of one owner change.
#[derive(Clone, Copy, Default)]
struct Change {
    /// Slots that it has for new flows.
    new: i32,
    /// Slots that it has for old flows only.
    old: i32,
}

impl Recount {
    /// Most indexes that are counted in a row.
    const NEAR: usize = 4_096;

    /// Nothing counted yet, most of which will be of `owners`.
    fn new(owners: impl Iterator<Item = u32> + Clone) -> Self {
        let first = owners.clone().min().unwrap_or(0);
        let size = owners.max().map_or(0, |last| (last - first) as usize + 1);
        Self {
            first,
            near: vec![Change::default(); size.min(Self::NEAR)],
            far: FxHashMap::default(),
        }
    }

    /// Adds the owners of a slot, or takes them away: `times` is 1 or -1.
    fn count(&mut self, word: Slot, times: i32) {
        let (new, old) = (word.new_owner(), word.old_owner());
        self.of(new).new += times;
        if old != new {
            self.of(old).old += times;
        }
    }

    fn of(&mut self, owner: u32) -> &mut Change {
        match self.near.get_mut(owner.wrapping_sub(self.first) as usize) {
            Some(change) => change,
            None => self.far.entry(owner).or_default(),
        }
    }

    fn changes(self) -> impl Iterator<Item = (u32, Change)> {
        (self.first..).zip(self.near).chain(self.far)
    }
}

/// Changes a count; an owner of no slot has none.
fn add(counts: &mut BTreeMap<u32, u32>, owner: u32, change: i32) {
    if change == 0 {
        return;
    }
    let count = counts.entry(owner).or_default();
    *count = count.saturating_add_signed(change);
    if *count == 0 {
        counts.remove(&owner);
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
