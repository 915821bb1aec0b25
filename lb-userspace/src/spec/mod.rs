//! The desired state: services and their backends. [`raw`] is what people and programs write (YAML, JSON);
//! [`valid`] is what the rest of the daemon works with and cannot be invalid.

pub mod raw;
pub mod valid;

pub use raw::{BackendPatch, BackendSpec, HealthSpec, ServiceSpec, StateSpec};
pub use valid::{AllDown, Backend, HealthCheck, Name, Protocol, Service, State};
