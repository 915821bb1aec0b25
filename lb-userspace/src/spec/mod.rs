//! The desired state: services and their backends. [`raw`] is what people and programs write (YAML, JSON);
//! [`valid`] is what the rest of the daemon works with and cannot be invalid.

pub mod change;
mod export;
pub(crate) mod field;
mod parse;
pub mod raw;
pub mod valid;
pub mod yaml;

pub use export::mode_name;
pub use raw::{BackendPatch, BackendSpec, HealthSpec, QuicSpec, ServiceSpec, StateSpec};
pub use valid::{
    AllDown, Backend, FlowPolicy, Hash, HealthCheck, Limits, Name, OnDown, Protocol, ServerId,
    Service, State, Tracking,
};

/// The name that was probably meant by `given`, if one is close enough to suggest.
pub fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let close = known
        .map(|name| (strsim::jaro_winkler(given, name), name))
        .filter(|(likeness, _)| *likeness > 0.8);
    close
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
