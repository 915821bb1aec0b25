//! The test kit: what the tests with real programs, kernels and networks share, and the demo that is made of the
//! same parts.
//!
//! [`require`] says whether the machine can do it, [`session`] names what a process makes and sweeps what a dead one
//! left, [`netns`] and [`process`] are guards.

pub mod counters;
pub mod fixture;
pub mod http;
pub mod netns;
pub mod packet;
pub mod pattern;
pub mod process;
pub mod prog_run;
pub mod require;
pub mod session;
pub mod wait;
