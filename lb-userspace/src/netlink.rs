//! What all that talk rtnetlink(7) share: the sockets, one request with its answer, whole listings, and a limit to each wait.

use anyhow::{Context, Result};
use futures::{Stream, StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{AddressFamily, RouteNetlinkMessage},
    sys::{AsyncSocket, SocketAddr},
};
use std::{net::IpAddr, time::Duration};
use tokio::{task::JoinSet, time::timeout};

/// The kernel answers within microseconds; more than this means that something is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Receive buffer for events, in bytes; the kernel gives at most `net.core.rmem_max`.
const EVENT_BUFFER: usize = 1 << 20;

/// A message with its header.
pub(crate) type Message = NetlinkMessage<RouteNetlinkMessage>;

/// Two sockets: one for requests and their answers, one that only listens, so that a flood of events cannot push an answer
/// out. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Connection {
    /// For requests.
    pub(crate) handle: Handle,
    /// What the kernel says unasked.
    pub(crate) events: UnboundedReceiver<(Message, SocketAddr)>,
    /// Drives the sockets; aborted on drop.
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Opens the sockets in the network namespace of the calling thread, within a tokio runtime; one hears of `groups`.
    /// `is_strict`: the kernel acts on what a listing asks for, a table say, and lists nothing else.
    pub(crate) fn open(is_strict: bool, groups: &[MulticastGroup]) -> Result<Self> {
        let requests = if is_strict {
            rtnetlink::new_connection_with_strict_check()
        } else {
            rtnetlink::new_connection()
        };
        let (requests, handle, _) = requests.context("for requests")?;
        let (mut listener, _, events) =
            rtnetlink::new_multicast_connection(groups).context("for events")?;
        listener
            .socket_mut()
            .socket_mut()
            .set_rx_buf_sz(EVENT_BUFFER)
            .context("receive buffer")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(requests);
        tasks.spawn(listener);
        Ok(Self {
            handle,
            events,
            _tasks: tasks,
        })
    }
}

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
