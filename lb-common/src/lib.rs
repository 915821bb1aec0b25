//! What Guideway's XDP program and its user space agree on: map keys and values, the slot word, the verdicts,
//! the flow hash.
//!
//! **Invariants.** No type here has implicit padding (asserted at compile time), because the kernel compares map
//! keys byte by byte. Fields that come from or go into packets are in network byte order and say so; everything
//! else is in host order. Nothing allocates, nothing panics.

#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod backend;
pub mod checksum;
pub mod decap;
pub mod flow;
pub mod flow_set;
pub mod flow_table;
pub mod fragment;
pub mod gue;
pub mod header;
pub mod icmp;
pub mod limits;
pub mod maps;
pub mod mtu;
pub mod quic;
pub mod rate;
pub mod service;
pub mod service_bucket;
pub mod slot;
pub mod stats;
pub mod trace;
pub mod verdict;

#[cfg(feature = "user")]
mod pod {
    use crate::{address, backend, decap, flow_table, fragment, quic, service, stats, trace};

    // SAFETY: each of these is `repr(C)` or `repr(transparent)`, `Copy`, has no padding (asserted beside its
    // definition) and is valid for every bit pattern.
    unsafe impl aya::Pod for address::Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for backend::BackendEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for backend::NextHop {}
    // SAFETY: as above.
    unsafe impl aya::Pod for service::ServiceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for service::PrefixKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for service::ServiceEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for stats::Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for flow_table::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for flow_table::FlowEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for trace::Event {}
    // SAFETY: as above.
    unsafe impl aya::Pod for trace::Filter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for trace::Scratch {}
    // SAFETY: as above.
    unsafe impl aya::Pod for fragment::FragmentKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for fragment::FragmentEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for decap::LocalKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for quic::ServerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for quic::ServerEntry {}
}
