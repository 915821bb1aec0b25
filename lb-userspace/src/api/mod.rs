//! The API: HTTP/JSON on a unix socket. [`protocol`] is what goes over the wire, [`socket`] where, [`server`] answers
//! it from the daemon's [`handle::Handle`], [`openapi`] describes it, [`client`] is what `lbctl` uses; [`announce`] and
//! [`path`] are parts of what goes over the wire.

pub mod announce;
pub mod client;
pub mod handle;
pub mod openapi;
pub mod path;
pub mod protocol;
pub mod server;
pub mod socket;

mod extract;
mod options;
mod routes;
