//! `lbd exabgp`: the process that ExaBGP runs. It takes what is to be announced from a unix socket and says what differs to
//! ExaBGP on its standard output. It ends with ExaBGP, never because `lbd` does.

use super::{
    memory::Memory,
    protocol::{Reply, Request},
    serve::{self, Asked},
    speaker::{self, Fault, Speaker},
};
use crate::{announce::kept, prefix::Prefix};
use anyhow::{Context, Result};
use std::{collections::BTreeMap, io, os::fd::AsFd, path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

/// Between two tries to have ExaBGP take what it has not taken.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks at what ExaBGP has.
const PERIOD: Duration = Duration::from_secs(30);

/// Runs until ExaBGP closes the pipes, or SIGTERM or SIGINT. What it was told is kept beside the socket.
///
/// # Errors
/// What keeps it from starting. Once it runs, nothing does.
pub async fn run(socket: &Path) -> Result<()> {
    let explain = "this is run by ExaBGP, which talks to it through pipes (see deploy/exabgp.conf)";
    let input = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)
        .context(explain)?;
    let output =
        pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?).context(explain)?;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let boot = kept::boot().map_err(anyhow::Error::msg)?;
    let listener = serve::listen(socket).await?;
    // Now the process before this one writes no more.
    let memory = Memory::read(socket.with_extension("json"), boot);
    info!(socket = %socket.display(), "listening");
    let (sender, requests) = mpsc::channel(serve::MAX_CLIENTS);
    let changed = watch::Sender::new(0);
    let clients = tokio::spawn(serve::run(listener, sender, changed.clone()));
    let work = work(Speaker::new(input, output), memory, requests, &changed);
    tokio::select! {
        () = work => info!("ExaBGP is gone"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    clients.abort();
    Ok(())
}

/// Serves requests until ExaBGP is gone. `changed`: the number of the client that has last changed what is announced.
pub(super) async fn work(
    speaker: Speaker<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    memory: Memory,
    mut requests: mpsc::Receiver<Asked>,
    changed: &watch::Sender<u64>,
) {
    let mut announcer = Announcer { speaker, memory };
    let mut said = None;
    // What was announced before, at once.
    let mut next = Instant::now();
    loop {
        let asked = tokio::select! {
            asked = requests.recv() => match asked {
                Some(asked) => Some(asked),
                None => return,
            },
            () = announcer.speaker.gone() => return,
            () = sleep_until(next) => None,
        };
        let asked = match asked {
            Some(Asked {
                request: Request::Look,
                reply,
                ..
            }) => {
                let told = Reply {
                    routes: announcer.memory.told(),
                    ..Reply::default()
                };
                // Who does not wait for it any more asks again.
                let _ = reply.send(told);
                continue;
            }
            Some(Asked {
                request: Request::Announce(routes),
                client,
                reply,
            }) => {
                if announcer.memory.want(routes) {
                    changed.send_replace(client);
                }
                Some(reply)
            }
            None => None,
        };
        let Some(reply) = announcer.settle().await else {
            return;
        };
        if said != reply.problem {
            if let Some(problem) = &reply.problem {
                warn!(%problem, "not all is announced as it should be; it is tried again");
            }
            said.clone_from(&reply.problem);
        }
        let is_settled = reply.problem.is_none() && announcer.memory.is_settled();
        next = Instant::now() + if is_settled { PERIOD } else { RETRY };
        if let Some(asked) = asked {
            let _ = asked.send(reply);
        }
    }
}

/// ExaBGP and what it is to announce.
struct Announcer<R, W> {
    speaker: Speaker<R, W>,
    memory: Memory,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Announcer<R, W> {
    /// Has ExaBGP announce what is wanted; none: it is gone.
    async fn settle(&mut self) -> Option<Reply> {
        let mut failed = BTreeMap::new();
        let problem = match self.tell_all(&mut failed).await {
            Ok(()) => None,
            Err(Fault::Gone) => return None,
            Err(Fault::Odd(problem)) => Some(problem),
        };
        let unwritten = self.memory.save().err();
        Some(Reply {
            routes: self.memory.announced(),
            failed,
            problem: problem.or(unwritten),
        })
    }

    async fn tell_all(&mut self, failed: &mut BTreeMap<Prefix, String>) -> Result<(), Fault> {
        // What attracts packets that cannot be served comes first, and does not wait for the disk.
        let surplus = self.memory.surplus().into_iter();
        let commands = surplus.map(|prefix| (prefix, speaker::withdraw(prefix)));
        let withdrawn = self.tell(commands.collect(), failed).await;
        // What ExaBGP is told to announce must be known to the next process: the order to withdraw it may be lost else.
        // A disk that refuses is reported by who calls this.
        let _ = self.memory.save();
        withdrawn?;
        self.announce(failed).await?;
        self.memory.compare(&self.speaker.table().await?);
        if self
            .memory
            .lacking()
            .keys()
            .all(|prefix| failed.contains_key(prefix))
        {
            return Ok(());
        }
        // Somebody has taken routes away since they were announced.
        self.announce(failed).await?;
        self.memory.compare(&self.speaker.table().await?);
        for prefix in self.memory.lacking().into_keys() {
            let family = if prefix.is_ipv4() { "ipv4" } else { "ipv6" };
            let said = || {
                format!("ExaBGP has no neighbor for it: give one `family {{ {family} unicast; }}`")
            };
            failed.entry(prefix).or_insert_with(said);
        }
        Ok(())
    }

    async fn announce(&mut self, failed: &mut BTreeMap<Prefix, String>) -> Result<(), Fault> {
        let lacking = self.memory.lacking();
        let commands = lacking
            .iter()
            .filter(|(prefix, _)| !failed.contains_key(prefix));
        let commands = commands.map(|(prefix, route)| (*prefix, speaker::announce(*prefix, route)));
        self.tell(commands.collect(), failed).await
    }

    /// Says commands, each about one prefix.
    async fn tell(
        &mut self,
        commands: Vec<(Prefix, String)>,
        failed: &mut BTreeMap<Prefix, String>,
    ) -> Result<(), Fault> {
        let (prefixes, commands): (Vec<_>, Vec<_>) = commands.into_iter().unzip();
        let taken = self.speaker.tell(&commands).await?;
        for ((prefix, command), is_taken) in prefixes.into_iter().zip(commands).zip(taken) {
            if is_taken {
                self.memory.confirm(prefix);
            } else {
                let said = format!(
                    "ExaBGP refuses `{command}`; its log says why. Its neighbors need `api {{ processes [ ... ]; }}`"
                );
                failed.insert(prefix, said);
            }
        }
        Ok(())
    }
}
