//! Guideway's user space. `lbd` keeps the XDP program's maps true to a desired state; `lbctl` changes that state
//! through `lbd`'s API. The modules stand in the order in which a change travels: see ARCHITECTURE.md.

pub mod announce;
pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod desired;
pub mod digest;
pub mod explain;
pub mod health;
pub mod kit;
pub mod maglev;
pub mod metrics;
pub mod neighbour;
mod netlink;
pub mod outer_source;
pub mod overlay;
pub mod plan;
pub mod prefix;
pub mod problem;
pub mod spec;
