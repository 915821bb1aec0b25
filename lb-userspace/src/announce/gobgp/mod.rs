//! The driver `gobgp`: routes to VIPs are paths in gobgpd's global table, added and deleted by its gRPC API. What is there is
//! read after every change, from time to time, and when it changes.
//!
//! gobgpd keeps nothing over a restart of its own: then `lbd` has to be there.

mod api;
mod message;
mod path;
#[cfg(test)]
mod tests;

use super::{
    Announced, Announcer, Outcome, Wanted,
    bgp::{Routes, announced},
    setting::GobgpSettings,
};
use crate::prefix::Prefix;
use api::{Api, Fault};
use futures::{StreamExt, stream::BoxStream};
use message::{Path, WatchEventResponse};
use std::{collections::BTreeMap, fmt, io::ErrorKind, time::Duration};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

/// Between two looks whether gobgpd is back.
const LOOK: Duration = Duration::from_millis(200);
/// How often what differs is made equal: once more if its table is not what it was made.
const ROUNDS: u32 = 2;

type Events = BoxStream<'static, Result<WatchEventResponse, tonic::Status>>;

/// The driver.
pub struct GobgpDriver {
    settings: GobgpSettings,
    /// None before the first use and after a failure.
    connection: Option<Connection>,
}

/// A connection, and what came of it.
struct Connection {
    api: Api,
    events: Events,
    /// Our routes in its table at the last look.
    known: Routes,
}

impl fmt::Debug for GobgpDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection = self.connection.as_ref();
        f.debug_struct("GobgpDriver")
            .field("settings", &self.settings)
            .field("known", &connection.map(|connection| &connection.known))
            .finish_non_exhaustive()
    }
}

/// Whether nobody listens where gobgpd's API should be.
pub async fn is_gone(settings: &GobgpSettings) -> bool {
    let connecting = timeout(settings.timeout, TcpStream::connect(settings.address));
    matches!(connecting.await, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused)
}

impl GobgpDriver {
    /// A driver; nothing is opened yet.
    pub const fn new(settings: GobgpSettings) -> Self {
        Self {
            settings,
            connection: None,
        }
    }

    /// The connection, with what the table has if it is new.
    async fn connection(&mut self) -> Result<&mut Connection, String> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let api = Api::connect(self.settings.address, self.settings.timeout).await?;
                let known = api.list().await.map_err(Fault::into_words)?;
                let events = api.watch();
                Connection { api, events, known }
            }
        };
        Ok(self.connection.insert(connection))
    }

    async fn make(&mut self, wanted: &Wanted) -> Result<Outcome, String> {
        let routes = self.settings.attributes.routes(wanted);
        let connection = self.connection().await?;
        let mut failed = BTreeMap::new();
        for _ in 0..ROUNDS {
            failed.clear();
            connection.equalize(&routes, &mut failed).await?;
            connection.known = connection.api.list().await.map_err(Fault::into_words)?;
            if connection.known == routes {
                break;
            }
        }
        for (prefix, _) in differences(&connection.known, &routes) {
            let said = || "gobgpd has taken it, and its table does not show it".into();
            failed.entry(prefix).or_insert_with(said);
        }
        Ok(Outcome {
            announced: announced(&connection.known),
            failed,
            ..Outcome::default()
        })
    }
}

impl Connection {
    /// Deletes and adds what differs.
    async fn equalize(
        &mut self,
        routes: &Routes,
        failed: &mut BTreeMap<Prefix, String>,
    ) -> Result<(), String> {
        for (prefix, change) in differences(&self.known, routes) {
            let result = match change {
                Change::Delete(path) => self.api.delete(path).await,
                Change::Add(path) => self.api.add(path).await,
            };
            match result {
                Ok(()) => {}
                Err(Fault::Refused(problem)) => drop(failed.insert(prefix, problem)),
                Err(Fault::Silent(problem)) => return Err(problem),
            }
        }
        Ok(())
    }

    /// Whether an event says that the table is not what is known of it.
    fn is_news(&self, event: &WatchEventResponse) -> bool {
        let paths = event.table.iter().flat_map(|table| &table.paths);
        let mut news = paths.filter(|path| {
            let known = path::prefix(path).and_then(|prefix| self.known.get(&prefix));
            let ours = path::is_ours(path) && !path.is_withdraw;
            match known {
                Some(known) => !ours || path::route(path) != *known,
                None => ours,
            }
        });
        news.next().is_some()
    }
}

/// One change of the table.
#[derive(Clone, Debug, PartialEq)]
enum Change {
    Delete(Path),
    Add(Path),
}

/// What leads from the routes that are known to those that are wanted: what attracts packets that cannot be served comes
/// first.
fn differences(known: &Routes, wanted: &Routes) -> Vec<(Prefix, Change)> {
    let gone = known
        .iter()
        .filter(|(prefix, _)| !wanted.contains_key(prefix));
    let deleted = gone.map(|(prefix, route)| (*prefix, Change::Delete(path::path(*prefix, route))));
    let new = wanted
        .iter()
        .filter(|(prefix, route)| known.get(prefix) != Some(route));
    let added = new.map(|(prefix, route)| (*prefix, Change::Add(path::path(*prefix, route))));
    deleted.chain(added).collect()
}

impl Announcer for GobgpDriver {
    async fn adopt(&mut self) -> Result<Announced, String> {
        let connection = self.connection().await?;
        Ok(announced(&connection.known))
    }

    async fn reconcile(&mut self, wanted: &Wanted) -> Outcome {
        self.make(wanted).await.unwrap_or_else(|problem| {
            self.connection = None;
            Outcome {
                problem: Some(problem),
                ..Outcome::default()
            }
        })
    }

    async fn disturbed(&mut self) {
        while let Some(connection) = &mut self.connection {
            match connection.events.next().await {
                Some(Ok(event)) if connection.is_news(&event) => return,
                Some(Ok(_)) => {}
                // gobgpd is gone, or tells no more; a new connection shows.
                Some(Err(_)) | None => {
                    self.connection = None;
                    return sleep(LOOK).await;
                }
            }
        }
        loop {
            sleep(LOOK).await;
            if TcpStream::connect(self.settings.address).await.is_ok() {
                return;
            }
        }
    }
}
