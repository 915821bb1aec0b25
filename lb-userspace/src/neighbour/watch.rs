//! The task that keeps next hops current: hears what changes, asks what it needs to know, sends what is new.

use super::{
    NextHopUpdate,
    facts::Hop,
    kernel::{self, Heard},
    path_mtu::Listener,
    table::Table,
};
use crate::netlink::Connection;
use anyhow::Result;
use std::{
    collections::BTreeSet,
    io, mem,
    net::IpAddr,
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, interval_at, sleep},
};
use tracing::{debug, info, warn};

/// How often silent next hops are asked again and graces are ended.
const TICK: Duration = Duration::from_millis(500);
/// How soon after a link has changed its routes are looked at again.
const SECOND_LOOK: Duration = Duration::from_millis(20);
/// How often everything is read afresh, in case an event did not say all.
const RESYNC: Duration = Duration::from_secs(30);
/// How soon after a loss everything is read a second time. From its first loss until its buffer has been emptied the
/// kernel drops all further events and says so only once, so the first reading may have missed some of them.
const AFTER_LOSS: Duration = Duration::from_secs(1);
/// How long to wait before a failed netlink socket is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Runs until the receiver of the updates or the sender of the addresses is gone.
pub(super) async fn run(
    mut connection: Connection,
    mut wanted: mpsc::UnboundedReceiver<BTreeSet<IpAddr>>,
    updates: mpsc::Sender<NextHopUpdate>,
) {
    let mut table = Table::default();
    let told = Listener::open();
    while let Err(error) = follow(&mut connection, &told, &mut table, &mut wanted, &updates).await {
        warn!("next hops are not current, netlink is opened again: {error:#}");
        connection = reopen().await;
        info!("netlink is open again");
    }
}

async fn reopen() -> Connection {
    loop {
        sleep(REOPEN).await;
        match kernel::connect() {
            Ok(connection) => return connection,
            Err(error) => warn!("next hops are not current, cannot open netlink: {error:#}"),
        }
    }
}

/// Follows one connection. Ends with `Ok` when nobody needs the answers any more.
async fn follow(
    connection: &mut Connection,
    told: &Listener,
    table: &mut Table,
    wanted: &mut mpsc::UnboundedReceiver<BTreeSet<IpAddr>>,
    updates: &mpsc::Sender<NextHopUpdate>,
) -> Result<()> {
    // Before anything is answered: without the links every address would look as if its interface were down.
    resync_from(connection, table).await?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut resync = interval_at(tokio::time::Instant::now() + RESYNC, RESYNC);
    resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lost = false;
    while settle(connection, table, updates).await? {
        tokio::select! {
            heard = connection.listen() => match heard? {
                Heard::Events(events) => events.into_iter().for_each(|event| table.apply(event)),
                Heard::Lost => {
                    warn!("netlink events were lost, reading everything afresh");
                    lost = true;
                    resync.reset_immediately();
                }
            },
            addresses = wanted.recv() => match addresses {
                Some(addresses) => table.set_addresses(&addresses),
                None => return Ok(()),
            },
            path = told.listen() => {
                if table.set_path_mtu(path, Instant::now()) {
                    info!(address = %path.address, mtu = path.mtu, "a router says that larger packets do not get there");
                }
            }
            _ = tick.tick() => table.tick(Instant::now()),
            () = sleep(SECOND_LOOK), if table.is_to_look_again() => table.look_again(),
            _ = resync.tick() => {
                resync_from(connection, table).await?;
                if mem::take(&mut lost) {
                    resync.reset_after(AFTER_LOSS);
                }
            }
        }
    }
    Ok(())
}

/// Reads links and neighbours afresh.
async fn resync_from(connection: &Connection, table: &mut Table) -> Result<()> {
    table.resync(connection.links().await?, connection.neighbours().await?);
    Ok(())
}

/// Does what the table says is to be done. False when nobody listens any more.
async fn settle(
    connection: &Connection,
    table: &mut Table,
    updates: &mpsc::Sender<NextHopUpdate>,
) -> Result<bool> {
    for (address, route) in connection.routes(table.take_unrouted()).await? {
        table.set_route(address, route);
    }
    for update in table.take_updates(Instant::now()) {
        match &update.resolution {
            Ok(hop) => debug!(address = %update.address, "next hop {hop}"),
            Err(reason) => debug!(address = %update.address, "no next hop: {reason}"),
        }
        if updates.send(update).await.is_err() {
            return Ok(false);
        }
    }
    report("ask for", &connection.ask(table.take_unasked()).await?);
    report("release", &connection.release(table.take_released()).await?);
    Ok(true)
}

/// Says which next hops the kernel refused. An interface or entry that went away in between is no surprise: its event is
/// on the way.
fn report(what: &str, refusals: &[(Hop, i32)]) {
    let expected = [libc::ENODEV, libc::ENETDOWN, libc::ENOENT];
    let mut surprising = refusals
        .iter()
        .filter(|(_, errno)| !expected.contains(errno));
    if let Some((hop, errno)) = surprising.next() {
        let error = io::Error::from_raw_os_error(*errno);
        warn!(
            "the kernel refused to {what} {} next hops, first {}: {error}",
            1 + surprising.count(),
            hop.address
        );
    }
}
