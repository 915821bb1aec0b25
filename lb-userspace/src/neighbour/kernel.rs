//! What we ask of the kernel over netlink.

use super::facts::{self, Event, Hop, Link, Neighbour, Route};
use crate::netlink::{self, Connection, collect, family};
use anyhow::{Context, Result, anyhow, bail};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags,
            NeighbourMessage,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
};
use std::{collections::HashMap, net::IpAddr};

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// Requests on their way at once: few enough for the socket's receive buffer.
const PARALLEL: usize = 64;
/// What was heard.
pub(super) enum Heard {
    /// Events, in order.
    Events(Vec<Event>),
    /// The kernel had more to say than the buffer took (`ENOBUFS`): what we know may be wrong.
    Lost,
}

/// Opens the sockets: see [`Connection::open`].
pub(super) fn connect() -> Result<Connection> {
    Connection::open(false, &GROUPS)
}

impl Connection {
    /// Waits for an event and takes those that are there already with it: a burst is worked through once. Loses nothing
    /// when the future is dropped.
    pub(super) async fn listen(&mut self) -> Result<Heard> {
        let mut events = Vec::new();
        let mut next = self.events.next().await;
        loop {
            let (message, _) =
                next.ok_or_else(|| anyhow!("the netlink socket for events was closed"))?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => events.extend(facts::event(&inner)),
                NetlinkPayload::Overrun(_) => return Ok(Heard::Lost),
                _ => {}
            }
            match self.events.next().now_or_never() {
                Some(more) => next = more,
                None => return Ok(Heard::Events(events)),
            }
        }
    }

    /// All links, by index.
    pub(super) async fn links(&self) -> Result<HashMap<u32, Link>> {
        let messages = self.handle.link().get().execute();
        Ok(collect(messages)
            .await
            .context("reading the links")?
            .iter()
            .filter_map(facts::link)
            .collect())
    }

    /// All neighbour entries.
    pub(super) async fn neighbours(&self) -> Result<HashMap<Hop, Neighbour>> {
        let messages = self.handle.neighbours().get().execute();
        Ok(collect(messages)
            .await
            .context("reading the neighbours")?
            .iter()
            .filter_map(facts::neighbour)
            .collect())
    }

    /// The kernel's route to each address.
    pub(super) async fn routes(&self, addresses: Vec<IpAddr>) -> Result<Vec<(IpAddr, Route)>> {
        let look_up = |address| async move { Ok((address, self.route(address).await?)) };
        stream::iter(addresses)
            .map(look_up)
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    /// Has the kernel ask next hops for their MAC addresses and keep the entries fresh. Returns the refusals.
    ///
    /// `NTF_EXT_MANAGED` (Linux 5.16, commit 7482e3841d52) makes the kernel itself renew the entry and spare it from
    /// garbage collection. Older kernels ignore that attribute; they act on `NTF_USE`, as if a packet were to be sent.
    pub(super) async fn ask(&self, hops: Vec<Hop>) -> Result<Vec<(Hop, i32)>> {
        self.put(
            hops,
            NeighbourFlags::Use,
            NeighbourExtFlags::Managed,
            NLM_F_CREATE,
        )
        .await
    }

    /// Leaves entries to the kernel's ordinary ageing again. Returns the refusals. `NTF_USE` here keeps the state as it
    /// is: without it the entry would take the (empty) state of the request.
    pub(super) async fn release(&self, hops: Vec<Hop>) -> Result<Vec<(Hop, i32)>> {
        self.put(hops, NeighbourFlags::Use, NeighbourExtFlags::empty(), 0)
            .await
    }

    async fn route(&self, address: IpAddr) -> Result<Route> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(address);
        request.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        request
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::from(address)));
        let request = RouteNetlinkMessage::GetRoute(request);
        let answer = netlink::request(&self.handle, request, NLM_F_REQUEST).await;
        match answer.with_context(|| format!("looking up the route to {address}"))? {
            Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))) => {
                Ok(facts::route(&route))
            }
            Some(NetlinkPayload::Error(error)) => Ok(Err(facts::refusal(-error.raw_code()))),
            other => bail!("unexpected answer to the look-up of the route to {address}: {other:?}"),
        }
    }

    async fn put(
        &self,
        hops: Vec<Hop>,
        flags: NeighbourFlags,
        extended: NeighbourExtFlags,
        create: u16,
    ) -> Result<Vec<(Hop, i32)>> {
        let put = |hop: Hop| async move {
            let mut entry = NeighbourMessage::default();
            entry.header.family = family(hop.address);
            entry.header.ifindex = hop.interface;
            entry.header.flags = flags;
            entry
                .attributes
                .push(NeighbourAttribute::Destination(match hop.address {
                    IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
                    IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
                }));
            entry
                .attributes
                .push(NeighbourAttribute::ExtFlags(extended));
            let flags = NLM_F_REQUEST | NLM_F_ACK | create;
            let entry = RouteNetlinkMessage::NewNeighbour(entry);
            match netlink::request(&self.handle, entry, flags).await? {
                Some(NetlinkPayload::Error(error)) => anyhow::Ok(Some((hop, -error.raw_code()))),
                _ => Ok(None),
            }
        };
        let refusals = stream::iter(hops).map(put).buffer_unordered(PARALLEL);
        refusals
            .try_filter_map(|refusal| async move { Ok(refusal) })
            .try_collect()
            .await
    }
}
