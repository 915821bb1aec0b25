//! The driver `route`: a VIP is announced by a route to it in a routing table of its own, which a BGP speaker imports.
//!
//! The route is of type `blackhole`, so that it names no interface and no next hop; no rule leads to the table, so that no
//! packet meets it. Its metric says how the VIP is announced: [`SERVING`] or [`DRAINING`].
//!
//! **Invariants.** Only routes of our protocol in our table are removed. A VIP that begins to drain has both routes for a moment,
//! never none. Routes stay when the daemon ends.

use super::{Announced, Announcer, Outcome, Role, Wanted, setting::RouteSettings};
use crate::{
    netlink::{self, Connection, Message, collect},
    prefix::Prefix,
};
use anyhow::{Context, Result, anyhow};
use futures::{FutureExt, StreamExt};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    net::IpAddr,
};

/// Metric of the route to a VIP that the node serves.
pub const SERVING: u32 = 100;
/// Metric of the route to a VIP that the node is about to give up.
pub const DRAINING: u32 = 1_000;

/// Routes in our table, of our protocol: each prefix with its metrics.
type Present = BTreeMap<Prefix, BTreeSet<u32>>;

/// The driver.
#[derive(Debug)]
pub struct RouteDriver {
    settings: RouteSettings,
    /// None before the first use and after a failure.
    connection: Option<Connection>,
}

impl RouteDriver {
    /// A driver; nothing is opened yet.
    pub const fn new(settings: RouteSettings) -> Self {
        Self {
            settings,
            connection: None,
        }
    }

    fn connection(&mut self) -> Result<&Connection> {
        if self.connection.is_none() {
            // Strict: the kernel lists our table alone, not those with the routes of the whole internet.
            let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
            let connection = Connection::open(true, &groups);
            self.connection = Some(connection.context("cannot open a netlink socket")?);
        }
        self.connection.as_ref().context("no netlink socket")
    }

    async fn present(&mut self) -> Result<Present> {
        let settings = self.settings;
        let handle = self.connection()?.handle.clone();
        let mut present = Present::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for message in list(&handle, family, settings.table).await? {
                if let Some((prefix, metric)) = own(&message, settings) {
                    present.entry(prefix).or_default().insert(metric);
                }
            }
        }
        Ok(present)
    }

    async fn make(&mut self, wanted: &Wanted) -> Result<Outcome> {
        let mut present = self.present().await?;
        let steps = steps(&present, wanted);
        let settings = self.settings;
        let mut outcome = Outcome::default();
        for Step {
            prefix,
            metric,
            add,
        } in steps
        {
            let handle = &self.connection()?.handle;
            let result = if add {
                put(handle, prefix, metric, settings).await
            } else {
                remove(handle, prefix, metric, settings).await
            };
            let metrics = present.entry(prefix).or_default();
            match (result, add) {
                (Ok(()), true) => drop(metrics.insert(metric)),
                (Ok(()), false) => drop(metrics.remove(&metric)),
                (Err(problem), _) => drop(outcome.failed.insert(prefix, format!("{problem:#}"))),
            }
        }
        outcome.announced = roles(&present);
        Ok(outcome)
    }
}

impl Announcer for RouteDriver {
    async fn adopt(&mut self) -> Result<Announced, String> {
        let present = self.present().await;
        present.map(|present| roles(&present)).map_err(|problem| {
            self.connection = None;
            format!("{problem:#}")
        })
    }

    async fn reconcile(&mut self, wanted: &Wanted) -> Outcome {
        self.make(wanted).await.unwrap_or_else(|problem| {
            self.connection = None;
            Outcome {
                problem: Some(format!("{problem:#}")),
                ..Outcome::default()
            }
        })
    }

    async fn disturbed(&mut self) {
        let Some(connection) = &mut self.connection else {
            return pending().await;
        };
        let mut next = connection.events.next().await;
        let mut ours = false;
        loop {
            ours |= match next {
                // The socket is gone; the next look opens another.
                None => {
                    self.connection = None;
                    return;
                }
                Some((message, _)) => is_about(&message, self.settings.table),
            };
            next = match connection.events.next().now_or_never() {
                Some(more) => more,
                None if ours => return,
                None => connection.events.next().await,
            };
        }
    }
}

/// One change of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    prefix: Prefix,
    metric: u32,
    /// Add it, or else remove it.
    add: bool,
}

/// What leads from the routes that are there to those that are wanted: additions first, but for VIPs that are draining no more.
/// FRR (8.4, `ip import-table`) forgets a VIP when any route to it goes, until the next one comes: the old one must go first.
fn steps(present: &Present, wanted: &Wanted) -> Vec<Step> {
    let wanted: BTreeSet<(Prefix, u32)> = wanted
        .iter()
        .filter_map(|(prefix, role)| Some((*prefix, metric((*role)?))))
        .collect();
    let present: BTreeSet<(Prefix, u32)> = present
        .iter()
        .flat_map(|(prefix, metrics)| metrics.iter().map(|metric| (*prefix, *metric)))
        .collect();
    let step = |add| {
        move |(prefix, metric): &(Prefix, u32)| Step {
            prefix: *prefix,
            metric: *metric,
            add,
        }
    };
    let was_draining = |step: &Step| present.contains(&(step.prefix, DRAINING));
    let added = wanted.difference(&present).map(step(true));
    let (back, new): (Vec<Step>, Vec<Step>) = added.partition(was_draining);
    let removed = present.difference(&wanted).map(step(false));
    new.into_iter().chain(removed).chain(back).collect()
}

const fn metric(role: Role) -> u32 {
    match role {
        Role::Serving => SERVING,
        Role::Draining => DRAINING,
    }
}

/// What routes announce: of several to a prefix, the best one.
fn roles(present: &Present) -> Announced {
    let role = |metrics: &BTreeSet<u32>| match metrics.first()? {
        &DRAINING => Some(Role::Draining),
        _ => Some(Role::Serving),
    };
    present
        .iter()
        .filter_map(|(prefix, metrics)| Some((*prefix, role(metrics)?)))
        .collect()
}

async fn list(handle: &Handle, family: AddressFamily, table: u32) -> Result<Vec<RouteMessage>> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.attributes.push(RouteAttribute::Table(table));
    let listing = collect(handle.route().get(request).execute()).await;
    match listing {
        // There is no such table before its first route.
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(Vec::new()),
        other => other.with_context(|| format!("reading routing table {table}")),
    }
}

fn errno(error: &anyhow::Error) -> Option<i32> {
    match error.downcast_ref()? {
        rtnetlink::Error::NetlinkError(error) => Some(-error.raw_code()),
        _ => None,
    }
}

/// Prefix and metric of a route that is ours.
fn own(message: &RouteMessage, settings: RouteSettings) -> Option<(Prefix, u32)> {
    if table(message) != settings.table || u8::from(message.header.protocol) != settings.protocol {
        return None;
    }
    let (mut address, mut metric) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    Some((
        Prefix::around(address?, message.header.destination_prefix_length)?,
        metric,
    ))
}

/// The number of a route's table.
fn table(message: &RouteMessage) -> u32 {
    let mut attributes = message.attributes.iter();
    attributes
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or_else(|| message.header.table.into())
}

/// Whether an event may be about our table.
fn is_about(message: &Message, ours: u32) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => table(route) == ours,
        NetlinkPayload::InnerMessage(_) => false,
        // The kernel had more to say than the socket took.
        _ => true,
    }
}

fn route(prefix: Prefix, metric: u32, settings: RouteSettings) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = netlink::family(prefix.address());
    route.header.destination_prefix_length = prefix.length();
    route.header.protocol = RouteProtocol::from(settings.protocol);
    route.header.kind = RouteType::BlackHole;
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(prefix.address())),
        RouteAttribute::Table(settings.table),
        RouteAttribute::Priority(metric),
    ];
    route
}

async fn put(handle: &Handle, prefix: Prefix, metric: u32, settings: RouteSettings) -> Result<()> {
    let message = RouteNetlinkMessage::NewRoute(route(prefix, metric, settings));
    match send(handle, message, NLM_F_CREATE | NLM_F_EXCL).await? {
        None => Ok(()),
        Some(error) if error.raw_os_error() == Some(libc::EEXIST) => Err(anyhow!(
            "routing table {} has a route to it of metric {metric} that is not ours; remove it, or name another table \
             (announce.route.table)",
            settings.table
        )),
        Some(error) => Err(error).context("the kernel refuses the route"),
    }
}

async fn remove(
    handle: &Handle,
    prefix: Prefix,
    metric: u32,
    settings: RouteSettings,
) -> Result<()> {
    let message = RouteNetlinkMessage::DelRoute(route(prefix, metric, settings));
    match send(handle, message, 0).await? {
        // Somebody else was faster.
        Some(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(error).context("the kernel does not remove the route")
        }
        _ => Ok(()),
    }
}

/// Sends a request that is acknowledged; what the kernel says against it.
async fn send(
    handle: &Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Option<io::Error>> {
    let answer = netlink::request(handle, message, NLM_F_REQUEST | NLM_F_ACK | flags).await?;
    Ok(match answer {
        Some(NetlinkPayload::Error(error)) if error.code.is_some() => Some(error.to_io()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_to_drain_has_both_routes_and_what_comes_back_never_has() {
        let vip: Prefix = "192.0.2.1".parse().unwrap();
        let other: Prefix = "2001:db8::/64".parse().unwrap();
        let present = Present::from([
            (vip, BTreeSet::from([SERVING])),
            (other, BTreeSet::from([7])),
        ]);
        let wanted = Wanted::from([(vip, Some(Role::Draining)), (other, None)]);
        let step = |prefix, metric, add| Step {
            prefix,
            metric,
            add,
        };
        let expected = [
            step(vip, DRAINING, true),
            step(vip, SERVING, false),
            step(other, 7, false),
        ];
        assert_eq!(steps(&present, &wanted), expected);
        let reached = Present::from([(vip, BTreeSet::from([DRAINING]))]);
        assert_eq!(steps(&reached, &wanted), []);
        let back = Wanted::from([(vip, Some(Role::Serving)), (other, Some(Role::Serving))]);
        let expected = [
            step(other, SERVING, true),
            step(vip, DRAINING, false),
            step(vip, SERVING, true),
        ];
        assert_eq!(steps(&reached, &back), expected);
        assert_eq!(roles(&reached), [(vip, Role::Draining)].into());
    }
}
