//! The unix socket of `lbd exabgp`. Whoever is root or runs ExaBGP may speak, others are told so; nobody can make the process
//! wait or end, or keep more than a bounded amount.

use super::protocol::{self, Reply, Request, lines};
use anyhow::{Context, Result, bail};
use futures::{SinkExt, StreamExt};
use nix::unistd::geteuid;
use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::codec::{Framed, LinesCodec};
use tracing::{info, warn};

/// Most connections at a time: `lbd`, the watchdog, and some to spare.
pub const MAX_CLIENTS: usize = 16;
/// Longest wait for a client to take an answer.
const SLOW: Duration = Duration::from_secs(5);
/// How long the last words of one who is sent away are waited for.
const FAREWELL: Duration = Duration::from_millis(100);
/// How often, and how long apart, the socket of an earlier process that is about to end is looked at.
const HANDOVER: (u32, Duration) = (30, Duration::from_millis(100));

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Asked {
    /// The number of the connection, from 1.
    pub client: u64,
    /// What is asked.
    pub request: Request,
    /// Who waits.
    pub reply: oneshot::Sender<Reply>,
}

/// Makes the socket. One that an earlier process left is replaced.
///
/// # Errors
/// When another process answers there, or the directory refuses.
pub async fn listen(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    let mut looks = 0;
    while UnixStream::connect(path).await.is_ok() {
        // The one before has not seen yet that its ExaBGP has ended.
        looks += 1;
        if looks == HANDOVER.0 {
            bail!(
                "another `lbd exabgp` listens on {shown}; each process of ExaBGP needs a socket of its own"
            );
        }
        sleep(HANDOVER.1).await;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {shown}"));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!("cannot listen on {shown}; its directory must exist and belong to the user that ExaBGP runs as")
    })?;
    // ExaBGP's umask would keep root without further capabilities out. Who may speak is decided by who speaks.
    fs::set_permissions(path, Permissions::from_mode(0o666))
        .with_context(|| format!("cannot open {shown} to lbd"))?;
    Ok(listener)
}

/// Takes connections for ever. `changed`: the number of the one that has last changed what is announced.
pub async fn run(
    listener: UnixListener,
    requests: mpsc::Sender<Asked>,
    changed: watch::Sender<u64>,
) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut number = 0;
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(problem) => {
                warn!(%problem, "a connection cannot be taken");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        number += 1;
        let (requests, changes) = (requests.clone(), changed.subscribe());
        tokio::spawn(async move {
            let mut stream = Framed::new(stream, lines());
            if let Err(problem) = client(number, &mut stream, &requests, changes).await {
                info!(%problem, "a client is sent away");
                answer(&mut stream, &Reply::problem(problem)).await;
                // The kernel drops the answer of who hangs up before it has read all.
                let _ = timeout(FAREWELL, stream.next()).await;
            }
            drop(place);
        });
    }
}

/// Serves one connection until it ends, or somebody else changes what is announced.
async fn client(
    number: u64,
    stream: &mut Framed<UnixStream, LinesCodec>,
    requests: &mpsc::Sender<Asked>,
    mut changes: watch::Receiver<u64>,
) -> Result<(), String> {
    let who = stream
        .get_ref()
        .peer_cred()
        .map_err(|error| error.to_string())?
        .uid();
    if who != 0 && who != geteuid().as_raw() {
        return Err(format!("user {who} may not tell ExaBGP what to announce"));
    }
    loop {
        let line = tokio::select! {
            line = stream.next() => line,
            () = requests.closed() => return Ok(()),
            _ = changes.changed() => {
                if *changes.borrow_and_update() == number {
                    continue;
                }
                return Ok(());
            }
        };
        let line = match line {
            Some(line) => line.map_err(|error| format!("the request cannot be read: {error}"))?,
            None => return Ok(()),
        };
        let request = protocol::parse(&line)?;
        let (reply, answered) = oneshot::channel();
        if requests
            .send(Asked {
                client: number,
                request,
                reply,
            })
            .await
            .is_err()
        {
            return Ok(());
        }
        let Ok(reply) = answered.await else {
            return Ok(());
        };
        if !answer(stream, &reply).await {
            return Ok(());
        }
    }
}

/// Sends an answer; whether it was taken.
async fn answer(stream: &mut Framed<UnixStream, LinesCodec>, reply: &Reply) -> bool {
    let Ok(text) = serde_json::to_string(reply) else {
        return false;
    };
    matches!(timeout(SLOW, stream.send(text)).await, Ok(Ok(())))
}
