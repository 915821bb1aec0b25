//! The test kit: what the tests with real programs, kernels and networks share, and the demo and the chaos run that
//! are made of the same parts.
//!
//! From the bottom up: [`require`] says whether the machine can do it, [`session`] names what a process makes and
//! sweeps what a dead one left, [`netns`] and [`process`] are guards, [`topology`] joins namespaces to a small network,
//! [`speaker`] has it learn routes, [`keepalived`], [`nginx`], [`http`] and [`traffic`] put load on it, [`node`] runs `lbd` and `lbctl`, [`scenario`] is a test of it all.
//! [`host`] makes a namespace a host on which a document's commands can be run.
//! Beside them, [`packet`], [`prog_run`] and [`counters`] run the XDP program on single packets, without a network:
//! those of [`fixtures`], each with all that must become of it, and those of [`fuzz`], which [`model`] judges.

pub mod bench;
pub mod bird;
pub mod chaos;
pub mod counters;
pub mod demo;
pub mod echo;
pub mod effort;
pub mod exabgp;
pub mod failover;
pub mod fixture;
pub mod fixtures;
pub mod frr;
pub mod fuzz;
pub mod gobgp;
pub mod host;
pub mod http;
pub mod interrupt;
pub mod keepalived;
pub mod kit;
pub mod model;
pub mod moment;
pub mod netns;
pub mod network;
pub mod nginx;
pub mod node;
pub mod packet;
pub mod pattern;
pub mod process;
pub mod prog_run;
pub mod recipe;
pub mod require;
pub mod runner;
pub mod scenario;
pub mod session;
pub mod silence;
pub mod speaker;
pub mod topology;
pub mod traffic;
pub mod wait;
pub mod world;
pub mod xdp;
