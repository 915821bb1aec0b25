//! Next hops: where the kernel would send a packet for a backend's address, kept current.
//!
//! The kernel's route to each address, the neighbour entry of its next hop and the link are read through netlink and
//! watched. `facts` is what netlink says, in our own types; `resolve` turns facts into an answer; `table` holds all
//! that is known and finds what changed; `kernel` asks the kernel; `path_mtu` hears what routers say of sizes; `watch` runs
//! them. Only `kernel`, `path_mtu` and `watch` do IO.
//!
//! **Invariants.** The fast path never looks a route up: what is sent from here is all it knows. A next hop whose
//! neighbour entry is being renewed keeps its last answer for `table::GRACE`, so that a renewal does not move traffic.
//! Entries that are kept for us stay so when the daemon ends, as the packets that it set on their way go on.

mod facts;
mod kernel;
mod path_mtu;
mod resolve;
mod table;
mod watch;

use anyhow::{Context, Result};
use std::{collections::BTreeSet, fmt, net::IpAddr};
use tokio::{sync::mpsc, task::JoinHandle};

/// Where packets for an address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedHop {
    /// MAC address of the next hop, in the order it has on the wire.
    pub mac: [u8; 6],
    /// Index of the interface behind which it is.
    pub interface: u32,
    /// Name of that interface.
    pub interface_name: String,
    /// The gateway; none when the address is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The source address the kernel would choose, of the same family as the address.
    pub source: IpAddr,
    /// Largest IP packet in bytes: the link's MTU, or the route's, or what a router said lately of the way behind it,
    /// whichever is smallest.
    pub mtu: u16,
}

/// Why packets for an address can go nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// No route matches.
    NoRoute,
    /// The route is of type `unreachable`.
    Unreachable,
    /// The route is of type `prohibit`.
    Prohibited,
    /// The route is of type `blackhole`.
    Blackhole,
    /// The address is this host's own.
    Local,
    /// A multicast, broadcast or anycast address.
    NotUnicast,
    /// The kernel refused the look-up for another reason.
    LookUpFailed {
        /// Its words.
        reason: String,
    },
    /// The interface is down, has no carrier, or is gone.
    LinkDown {
        /// The interface's name.
        interface: String,
    },
    /// The interface has no Ethernet addresses, so that there is no MAC to send to.
    NotEthernet {
        /// The interface's name.
        interface: String,
    },
    /// The host has no source address towards it.
    NoSource {
        /// The interface's name.
        interface: String,
    },
    /// The next hop has been asked for its MAC address and has not answered so far.
    Asking {
        /// The next hop.
        via: IpAddr,
        /// The interface's name.
        interface: String,
    },
    /// The next hop did not answer; it is asked again and again.
    NoNeighbour {
        /// The next hop.
        via: IpAddr,
        /// The interface's name.
        interface: String,
    },
}

/// The answer for one address.
pub type Resolution = Result<ResolvedHop, Unresolved>;

/// A change of an address's answer, or its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopUpdate {
    /// The address.
    pub address: IpAddr,
    /// Its answer.
    pub resolution: Resolution,
}

/// Keeps the next hops of a set of addresses current until it is dropped.
#[derive(Debug)]
pub struct Resolver {
    addresses: mpsc::UnboundedSender<BTreeSet<IpAddr>>,
    task: JoinHandle<()>,
}

/// Starts to keep next hops current. The netlink sockets are opened in the network namespace of the calling thread, and
/// opened again by the task's thread should they ever fail. Must be called within a tokio runtime.
///
/// Each address gets a first update as soon as its answer is known, then one per change.
///
/// # Errors
/// When the netlink sockets cannot be opened.
pub fn start(updates: mpsc::Sender<NextHopUpdate>) -> Result<Resolver> {
    let connection =
        kernel::connect().context("cannot open a netlink socket to watch routes and neighbours")?;
    let (addresses, wanted) = mpsc::unbounded_channel();
    let task = tokio::spawn(watch::run(connection, wanted, updates));
    Ok(Resolver { addresses, task })
}

impl Resolver {
    /// Whether its task has ended although nobody stopped it: a defect.
    pub fn has_died(&self) -> bool {
        self.task.is_finished()
    }

    /// Replaces the set of addresses. Those that stay keep their answers; one that left and comes back gets a first
    /// update again.
    pub fn set_addresses(&self, addresses: BTreeSet<IpAddr>) {
        // The task outlives the sender unless the receiver of its updates is gone: then nobody needs answers.
        let _ = self.addresses.send(addresses);
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Display for ResolvedHop {
    /// As `ip route` and `ip neigh` put it: `via 10.0.0.1 dev eth0 lladdr 02:00:00:00:00:01`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        let [a, b, c, d, e, g] = self.mac;
        write!(
            f,
            "dev {} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}",
            self.interface_name
        )
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoute => f.write_str("no route to the address"),
            Self::Unreachable => f.write_str("the route says unreachable"),
            Self::Prohibited => f.write_str("the route says prohibit"),
            Self::Blackhole => f.write_str(
                "the route says blackhole, or the address is not valid as a destination",
            ),
            Self::Local => f.write_str("the address is this host's own"),
            Self::NotUnicast => f.write_str("not a unicast address"),
            Self::LookUpFailed { reason } => {
                write!(f, "the kernel refused the route look-up: {reason}")
            }
            Self::LinkDown { interface } => write!(f, "interface {interface} is down"),
            Self::NotEthernet { interface } => write!(f, "interface {interface} is not Ethernet"),
            Self::NoSource { interface } => {
                write!(f, "this host has no source address for it on {interface}")
            }
            Self::Asking { via, interface } => {
                write!(f, "waiting for the MAC address of {via} on {interface}")
            }
            Self::NoNeighbour { via, interface } => {
                write!(f, "{via} does not answer on {interface}")
            }
        }
    }
}
