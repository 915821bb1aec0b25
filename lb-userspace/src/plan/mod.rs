//! From the desired state and what is known of the world to the writes that make the data plane true.
//!
//! `desired state + facts -> `[`select`]` -> `[`target`]` -> `[`diff`] against the [`mirror`]` -> steps -> `[`apply`]
//!
//! **Invariants.** Everything but [`apply`] is pure. Steps come in the order backends, slots, services, and removals in
//! reverse, so that a packet between any two steps is handled right. Applied steps leave nothing for a second run.

pub mod apply;
pub mod diff;
pub mod mirror;
pub mod select;
pub mod target;

#[cfg(test)]
mod tests;

use crate::{
    health::{checker::TargetId, state::HealthState},
    neighbour::Resolution,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What is known of the world, besides the desired state.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Last verdict on each probed backend.
    pub health: BTreeMap<TargetId, HealthState>,
    /// Next hop of each backend address; absent until the first look-up has ended.
    pub next_hops: BTreeMap<IpAddr, Resolution>,
    /// Kernel indexes of the interfaces the program is attached to.
    pub interfaces: BTreeSet<u32>,
}
