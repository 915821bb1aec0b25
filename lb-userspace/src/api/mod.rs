//! The API: HTTP/JSON on a unix socket. [`protocol`] is what goes over the wire, [`server`] answers it from the
//! daemon's [`handle::Handle`], [`client`] is what `lbctl` uses.

pub mod client;
pub mod handle;
pub mod protocol;
pub mod server;
