//! The driver `exabgp`: what is wanted goes to `lbd exabgp`, a process that ExaBGP runs (see [`process`]), which says what
//! differs to ExaBGP and remembers it.

mod memory;
pub mod process;
mod protocol;
mod serve;
mod speaker;
#[cfg(test)]
mod tests;

use super::{
    Announced, Announcer, Outcome, Wanted,
    bgp::{Routes, announced},
    setting::ExabgpSettings,
};
use futures::{SinkExt, StreamExt};
use protocol::{Reply, Request, lines};
use std::time::Duration;
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};
use tokio_util::codec::{Framed, LinesCodec};

/// Between two looks whether ExaBGP is back.
const LOOK: Duration = Duration::from_millis(200);

/// The driver.
#[derive(Debug)]
pub struct ExabgpDriver {
    settings: ExabgpSettings,
    /// None before the first use and after a failure.
    connection: Option<Framed<UnixStream, LinesCodec>>,
}

impl ExabgpDriver {
    /// A driver; nothing is opened yet.
    pub const fn new(settings: ExabgpSettings) -> Self {
        Self {
            settings,
            connection: None,
        }
    }

    async fn connect(&self) -> Result<Framed<UnixStream, LinesCodec>, String> {
        let socket = &self.settings.socket;
        let stream = UnixStream::connect(socket).await.map_err(|error| {
            format!(
                "`lbd exabgp` does not answer on {}: {error}. ExaBGP runs it, by a `process` in its configuration (see \
                 deploy/exabgp.conf): is ExaBGP running, and is this its socket (announce.exabgp.socket)?",
                socket.display()
            )
        })?;
        Ok(Framed::new(stream, lines()))
    }

    /// Asks within the time limit. A connection that ended meanwhile is no failure.
    async fn ask(&mut self, request: &Request) -> Result<Reply, String> {
        let text = serde_json::to_string(request).map_err(|error| error.to_string())?;
        let limit = self.settings.timeout;
        let kept = self.connection.take();
        let exchange = async {
            if let Some(mut kept) = kept
                && let Some(line) = exchange(&mut kept, &text).await
            {
                return Ok((kept, line));
            }
            let mut new = self.connect().await?;
            let line = exchange(&mut new, &text).await;
            line.map(|line| (new, line))
                .ok_or_else(|| "`lbd exabgp` has hung up before it answered".to_owned())
        };
        let (connection, line) = timeout(limit, exchange).await.map_err(|_| {
            let limit = humantime::format_duration(limit);
            format!("`lbd exabgp` has not answered within {limit} (announce.exabgp.timeout)")
        })??;
        let reply = serde_json::from_str(&line).map_err(|error| {
            let socket = self.settings.socket.display();
            format!(
                "what answers on {socket} is no `lbd exabgp`, or one of another version: {error}"
            )
        })?;
        self.connection = Some(connection);
        Ok(reply)
    }
}

/// Sends a line and returns the answer; none: the connection ended.
async fn exchange(connection: &mut Framed<UnixStream, LinesCodec>, text: &str) -> Option<String> {
    connection.send(text).await.ok()?;
    connection.next().await?.ok()
}

impl Announcer for ExabgpDriver {
    async fn adopt(&mut self) -> Result<Announced, String> {
        let reply = self.ask(&Request::Look).await?;
        Ok(announced(&reply.routes))
    }

    async fn reconcile(&mut self, wanted: &Wanted) -> Outcome {
        let routes: Routes = self.settings.attributes.routes(wanted);
        let reply = self.ask(&Request::Announce(routes)).await;
        let reply = reply.unwrap_or_else(Reply::problem);
        Outcome {
            announced: announced(&reply.routes),
            failed: reply.failed,
            problem: reply.problem,
            more: false,
        }
    }

    async fn disturbed(&mut self) {
        if let Some(connection) = &mut self.connection {
            // Nothing is said unasked: somebody else has changed what is announced, or ExaBGP is gone.
            connection.next().await;
            self.connection = None;
            return sleep(LOOK).await;
        }
        loop {
            sleep(LOOK).await;
            if let Ok(connection) = self.connect().await {
                self.connection = Some(connection);
                return;
            }
        }
    }
}
