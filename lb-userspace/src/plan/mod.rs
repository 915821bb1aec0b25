//! From the desired state and what is known of the world to the writes that make the data plane true.
//!
//! `desired state (`[`roster`]`) + facts -> `[`select`]`, `[`departure`]` -> `[`target`]` -> `[`diff`] against the [`mirror`]` -> steps ->
//! `[`apply`]. A plan is of all services, or of those alone of which something is new. A slot's way from one owner to the next is [`life`]; a service's table, [`table`]; what the flow table holds,
//! [`census`].
//!
//! **Invariants.** Everything but [`apply`] is pure. Steps come in the order backends, slots, addresses, services, and removals in
//! reverse, so that a packet between any two steps is handled right. Applied steps leave nothing for a second run.

pub mod apply;
pub mod census;
pub mod departure;
pub mod diff;
pub mod life;
pub mod mirror;
mod pool;
pub mod roster;
pub mod select;
mod servers;
pub mod table;
pub mod target;

#[cfg(test)]
mod flow_tests;
#[cfg(test)]
mod tests;

use crate::{
    health::{checker::TargetId, state::HealthState},
    neighbour::Resolution,
    outer_source::OuterSource,
    spec::Name,
};
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

/// What is known of the world, besides the desired state.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Last verdict on each probed backend.
    pub health: BTreeMap<TargetId, HealthState>,
    /// Next hop of each backend address; absent until the first look-up has ended.
    pub next_hops: FxHashMap<IpAddr, Resolution>,
    /// Kernel indexes of the interfaces the program is attached to.
    pub interfaces: BTreeSet<u32>,
    /// When backends came up, CLOCK_MONOTONIC; absent for those that were up when the daemon started.
    pub risen: BTreeMap<TargetId, Duration>,
    /// Backends on their way out.
    pub departures: departure::Departures,
    /// Source address of outer headers, as the node is configured.
    pub outer_source: OuterSource,
    /// CLOCK_MONOTONIC.
    pub now: Duration,
}

/// What a plan is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that there is.
    All,
    /// The slots and backends of these services.
    Services(BTreeSet<Name>),
}

impl Scope {
    /// What a plan has to be of if all that is new since the last one is the health of backends of these services. What a verdict
    /// on a removed backend changes, only a plan of all sees.
    pub fn of(services: BTreeSet<Name>, facts: &Facts) -> Self {
        let mut departures = facts.departures.values();
        if departures.any(|departure| departure.reason == departure::Reason::Removed) {
            Self::All
        } else {
            Self::Services(services)
        }
    }
}
