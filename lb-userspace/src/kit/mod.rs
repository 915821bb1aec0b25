//! The backend kit, `lbctl backend-kit`: what makes a host a backend. `setup` prints the commands for a plain Linux host,
//! `check` says what is wrong with one; `dataplane::decap` attaches a program for hosts without tunnel modules.
//!
//! **Invariant.** What a backend needs follows from the service's address, its mode and the backend's address:
//! [`Need`], which `setup` and `check` share.

pub mod check;
pub mod facts;
pub mod setup;

use crate::prefix::Prefix;
use lb_common::{backend::Mode, mtu};
use std::net::IpAddr;

/// What a host has to do for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The service's address, or all of them: the inner destination.
    pub vip: Prefix,
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
        let (kind, name, options) = match (self.mode, self.address, self.vip.address()) {
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

    /// The command that makes the VIPs this host's own: on `lo`, which answers no neighbour.
    pub fn own_vip(&self) -> String {
        let (address, length) = (self.vip.address(), self.vip.length());
        if self.vip.is_address() {
            return format!("ip address replace {address}/{length} dev lo");
        }
        let family = if self.vip.is_ipv4() { 4 } else { 6 };
        format!("ip -{family} route replace local {} dev lo", self.vip)
    }
}
