//! Health of backends: one state machine a target, probes that feed it, and a checker that runs thousands of them.

pub mod checker;
pub mod probe;
pub mod state;
