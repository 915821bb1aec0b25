//! The backend kit, `lbctl backend-kit`: what makes a host a backend. `setup` prints the commands for a plain Linux host,
//! `check` says what is wrong with one; `dataplane::decap` attaches a program for hosts without tunnel modules.
//!
//! **Invariant.** What a backend needs follows from the service's address, its mode and the backend's address:
//! [`Need`], which `setup` and `check` share.

pub mod check;
pub mod facts;
mod prefix;
pub mod setup;

pub use prefix::Prefix;

use lb_common::{backend::Mode, mtu};
use std::net::IpAddr;

/// What a host has to do for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The service's address: the inner destination.
    pub vip: IpAddr,
    /// How packets come.
    pub mode: Mode,
    /// The backend's own address: the outer destination.
    pub address: IpAddr,
    /// UDP port of GUE.
    pub gue_port: u16,
}

/// A kernel's tunnel device that takes IP in IP of one pair of families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name; at most 15 bytes, as the kernel asks.
    pub name: &'static str,
    /// Its type, as `ip link` names it.
    pub kind: &'static str,
    /// More of `ip link add`.
    pub options: &'static str,
}

impl Need {
    /// The tunnel device; none in mode `l2`.
    pub fn device(&self) -> Option<Device> {
        let (kind, name, options) = match (self.mode, self.address, self.vip) {
            (Mode::L2, ..) => return None,
            (_, IpAddr::V4(_), IpAddr::V4(_)) => ("ipip", "gw-ipip", ""),
            (_, IpAddr::V4(_), IpAddr::V6(_)) => ("sit", "gw-sit", ""),
            (_, IpAddr::V6(_), _) => ("ip6tnl", "gw-ip6tnl", " mode any"),
        };
        Some(Device {
            name,
            kind,
            options,
        })
    }

    /// Most bytes that the balancer puts before a packet.
    pub fn overhead(&self) -> u32 {
        mtu::overhead(self.mode, self.address.is_ipv4()).into()
    }

    /// Length of the VIP's host route: 32 or 128.
    pub fn vip_length(&self) -> u8 {
        if self.vip.is_ipv4() { 32 } else { 128 }
    }
}
