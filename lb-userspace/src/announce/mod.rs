//! Which VIPs this node attracts traffic for, and how routers are told.
//!
//! [`decide`] turns facts into a decision for each VIP, with the reason in words; [`drain`] is how the node as a whole leaves;
//! [`Announcing`] keeps both for the daemon. All of that is pure. A driver ([`Announcer`]: `route`, `exec`, `exabgp`,
//! `gobgp`) makes what is
//! announced equal what is wanted; [`worker`] runs it beside the control loop, and again when it fails or is disturbed.
//!
//! **Invariants.** Nothing is withdrawn because something is not known yet: before the driver has said what it finds and
//! every backend has a verdict, nothing is decided, and what is announced stays. Nothing is withdrawn because `lbd` ends.

pub mod bgp;
pub mod decide;
pub mod drain;
pub mod exabgp;
pub mod exec;
pub mod gobgp;
mod kept;
mod node;
pub mod route;
pub mod setting;
#[cfg(test)]
mod tests;
pub mod watchdog;
pub mod worker;

pub use node::Announcing;

use crate::{dataplane::Attachment, prefix::Prefix};
use exabgp::ExabgpDriver;
use exec::ExecDriver;
use gobgp::GobgpDriver;
use route::RouteDriver;
use serde::{Deserialize, Serialize};
use setting::{Driver, Settings};
use std::{collections::BTreeMap, future::Future, path::Path};

/// How a VIP is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// As one that this node serves.
    Serving,
    /// As one that this node is about to give up: routers prefer any other way.
    Draining,
}

/// VIPs that are announced.
pub type Announced = BTreeMap<Prefix, Role>;

/// What is to be: every VIP that is known, and how it is announced; none: it is withdrawn.
pub type Wanted = BTreeMap<Prefix, Option<Role>>;

/// What a driver has brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is announced now, as far as it knows.
    pub announced: Announced,
    /// What went wrong with single VIPs.
    pub failed: BTreeMap<Prefix, String>,
    /// What keeps all of it from being done.
    pub problem: Option<String>,
    /// Whether it stopped before it was through, so that no order has to wait: it is to be asked again at once.
    pub more: bool,
}

impl Outcome {
    /// Whether all was done.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.problem.is_none() && !self.more
    }
}

/// A way to tell routers.
pub trait Announcer: Send + 'static {
    /// What an earlier daemon left announced.
    fn adopt(&mut self) -> impl Future<Output = Result<Announced, String>> + Send;

    /// Makes what is announced equal what is wanted, in bounded time.
    fn reconcile(&mut self, wanted: &Wanted) -> impl Future<Output = Outcome> + Send;

    /// Returns when somebody else may have changed what is announced. Loses nothing when the future is dropped.
    fn disturbed(&mut self) -> impl Future<Output = ()> + Send;
}

/// Withdraws all that is announced; returns what was.
///
/// # Errors
/// What is in the way of it.
pub async fn withdraw_all(
    settings: &Settings,
    state_directory: &Path,
) -> Result<Vec<String>, String> {
    match &settings.driver {
        Driver::Route(route) => withdraw(RouteDriver::new(*route)).await,
        Driver::Exec(exec) => withdraw(ExecDriver::new(exec.clone(), state_directory)).await,
        Driver::Exabgp(exabgp) => withdraw(ExabgpDriver::new(exabgp.clone())).await,
        // It keeps nothing over its own end.
        Driver::Gobgp(gobgp) if gobgp::is_gone(gobgp).await => Ok(Vec::new()),
        Driver::Gobgp(gobgp) => withdraw(GobgpDriver::new(gobgp.clone())).await,
    }
}

async fn withdraw(mut driver: impl Announcer) -> Result<Vec<String>, String> {
    let before = driver.adopt().await?;
    let mut outcome = driver.reconcile(&Wanted::new()).await;
    while outcome.more {
        outcome = driver.reconcile(&Wanted::new()).await;
    }
    let failed = outcome.failed.iter().next();
    let failed = failed.map(|(prefix, problem)| format!("{prefix}: {problem}"));
    match outcome.problem.or(failed) {
        Some(problem) => Err(problem),
        None => Ok(before.keys().map(ToString::to_string).collect()),
    }
}

/// Whether packets are balanced: on one interface at least, and on every one that they can come in by.
pub fn balances(attachments: &[Attachment]) -> Result<(), String> {
    let bare = attachments
        .iter()
        .find(|attachment| attachment.up && attachment.mode.is_none());
    if let Some(Attachment { name, note, .. }) = bare {
        return Err(format!("the program is not on {name}, which is up: {note}"));
    }
    if attachments.iter().any(|attachment| attachment.up) {
        return Ok(());
    }
    let names: Vec<&str> = attachments
        .iter()
        .map(|attachment| attachment.name.as_str())
        .collect();
    Err(format!(
        "no interface is up with a carrier ({})",
        names.join(", ")
    ))
}
