//! Health of backends: one state machine a target ([`state`]), probes that feed it ([`probe`]), and a checker that
//! runs thousands of them ([`checker`]).

pub mod checker;
pub mod probe;
pub mod state;

pub use checker::{Checker, HealthReport, Target, TargetId, start};
pub use state::HealthState;
