//! `lbd`: the control loop and what feeds it.
//!
//! [`core`] holds the state and is told what happened (`change`: changes of the desired state); `run` listens to the API, probes, next hops, signals and the
//! clock, tells the core, and reconciles once for everything that came together.

mod announce;
mod change;
pub mod core;
mod digest;
mod drains;
mod explain;
mod filter;
mod impact;
mod look;
mod memory;
mod names;
mod run;
mod self_test;
pub mod start;
#[cfg(test)]
mod tests;
mod trace;
mod views;

pub use trace::Lines;

use crate::{
    health::checker::TargetId,
    spec::{Backend, Service},
};

/// What the probes of a backend are known by.
fn target_id(service: &Service, backend: &Backend) -> TargetId {
    TargetId {
        service: service.name.clone(),
        backend: backend.name.clone(),
    }
}
