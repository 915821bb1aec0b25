//! What all that talk rtnetlink(7) share: one request with its answer, whole listings, and a limit to each wait.

use anyhow::{Context, Result};
use futures::{Stream, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
};
use std::{net::IpAddr, time::Duration};
use tokio::time::timeout;

/// The kernel answers within microseconds; more than this means that something is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A message with its header.
pub(crate) type Message = NetlinkMessage<RouteNetlinkMessage>;

/// One request with at most one answer; none means acknowledged.
pub(crate) async fn request(
    handle: &Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Option<NetlinkPayload<RouteNetlinkMessage>>> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    let mut answers = handle.clone().request(message)?;
    let answer = timeout(ANSWER_TIMEOUT, answers.next())
        .await
        .context("the kernel does not answer on netlink")?;
    Ok(answer.map(|answer| answer.payload))
}

/// All messages of a listing.
pub(crate) async fn collect<T>(
    messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>> {
    let all = timeout(ANSWER_TIMEOUT, messages.try_collect());
    Ok(all
        .await
        .context("the kernel does not answer on netlink")??)
}

/// The family of an address.
pub(crate) const fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}
