//! The clients: long-lived connections, short requests and UDP flows, as tasks on one thread in the client's namespace.

use super::{
    ledger::{Ledger, count},
    server::{DATAGRAM, TCP_PORT, UDP_PORT},
    stream::{GREETING, answered, name, sent},
};
use anyhow::{Context, Result};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Time without progress after which a connection is broken.
const STALLED: Duration = Duration::from_secs(10);
/// Longest wait for a new connection, and then for each piece of an answer to a request.
const REQUEST: Duration = Duration::from_secs(3);
/// Longest wait for the answer to a datagram.
const DATAGRAM_WAIT: Duration = Duration::from_millis(500);
/// Pause of a connection or UDP flow between two pieces, in milliseconds.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 200..=1_000;
/// Pause of a worker between two requests.
const REQUEST_PAUSE: Duration = Duration::from_millis(40);
/// Pause before a connection is opened again.
const RETRY: Duration = Duration::from_millis(300);
/// Bytes in one piece of a long-lived connection.
const PIECE: std::ops::RangeInclusive<usize> = 16..=256;

/// How many of each there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Long-lived connections.
    pub(crate) connections: u64,
    /// Workers that send one request after the other.
    pub(crate) workers: u64,
    /// UDP flows.
    pub(crate) flows: u64,
}

/// All clients, until `stop` becomes true; then every long-lived connection proves once more that it is alive.
///
/// # Errors
/// When there can be no runtime, or a task panicked.
pub(crate) fn run(
    vip: Ipv4Addr,
    load: Load,
    seed: u64,
    ledger: &Arc<Ledger>,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = |random| Client {
        vip,
        ledger: Arc::clone(ledger),
        stop: stop.clone(),
        random: fastrand::Rng::with_seed(seed ^ random),
    };
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for id in 0..load.connections {
            tasks.spawn(client(id).stay_connected(id));
        }
        for id in 0..load.workers {
            tasks.spawn(client(1 << 32 | id).send_requests(id));
        }
        for id in 0..load.flows {
            tasks.spawn(client(2 << 32 | id).send_datagrams(id));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.context("a client panicked")?;
        }
        Ok(())
    })
}

struct Client {
    vip: Ipv4Addr,
    ledger: Arc<Ledger>,
    stop: watch::Receiver<bool>,
    random: fastrand::Rng,
}

/// An open connection.
struct Connection {
    stream: TcpStream,
    backend: String,
    id: u64,
    position: u64,
}

impl Client {
    /// Keeps a connection open, and opens another when it is lost.
    async fn stay_connected(mut self, id: u64) {
        // Not all in one moment.
        sleep(Duration::from_millis(id * 2)).await;
        let mut opened = 0;
        while !self.stopped() {
            let since = Instant::now();
            let mut connection = match Connection::open(self.vip, opened << 20 | id).await {
                Ok(connection) => connection,
                Err(cause) => {
                    count(&self.ledger.open_failures, cause);
                    self.pause(RETRY).await;
                    continue;
                }
            };
            opened += 1;
            self.ledger.opened.fetch_add(1, Relaxed);
            self.ledger.open.fetch_add(1, Relaxed);
            let flow = connection.flow();
            let Err(cause) = self.converse(&mut connection).await else {
                return;
            };
            self.ledger.open.fetch_sub(1, Relaxed);
            self.ledger
                .connection_failed(flow, &connection.backend, since, cause);
            self.pause(RETRY).await;
        }
    }

    /// Exchanges pieces until it is time to stop, and one more.
    async fn converse(&mut self, connection: &mut Connection) -> Result<(), String> {
        loop {
            let last = self.stopped();
            let length = self.random.usize(PIECE);
            connection.exchange(length, STALLED).await?;
            self.ledger.bytes.fetch_add(length as u64, Relaxed);
            if last {
                return Ok(());
            }
            let pause = Duration::from_millis(self.random.u64(PAUSE_MS));
            self.pause(pause).await;
        }
    }

    /// One short request after the other.
    async fn send_requests(mut self, id: u64) {
        let mut number = 0;
        while !self.stopped() {
            number += 1;
            let since = Instant::now();
            self.ledger.requests.fetch_add(1, Relaxed);
            let connection_id = 1 << 40 | id << 32 | number;
            if let Err(cause) = request(self.vip, connection_id).await {
                self.ledger.request_failed(since, cause);
            }
            self.pause(REQUEST_PAUSE).await;
        }
    }

    /// A UDP flow: who answers stays who answered first.
    async fn send_datagrams(mut self, id: u64) {
        let since = Instant::now();
        let server = SocketAddr::from((self.vip, UDP_PORT));
        let socket = match datagram_socket(server).await {
            Ok(socket) => socket,
            Err(error) => return count(&self.ledger.open_failures, format!("UDP: {error}")),
        };
        let from = socket.local_addr().map_or(0, |address| address.port());
        let flow = format!("udp {from} -> {server}");
        let mut last: Option<(String, Instant)> = None;
        let mut number: u64 = 0;
        while !self.stopped() {
            number += 1;
            match ask(&socket, id, number).await {
                None => drop(self.ledger.udp_unanswered.fetch_add(1, Relaxed)),
                Some(backend) => {
                    self.ledger.udp_answers.fetch_add(1, Relaxed);
                    if let Some((before, at)) = &last
                        && *before != backend
                    {
                        self.ledger
                            .flow_changed(flow.clone(), (before, *at), since, &backend);
                    }
                    last = Some((backend, Instant::now()));
                }
            }
            let pause = Duration::from_millis(self.random.u64(PAUSE_MS));
            self.pause(pause).await;
        }
    }

    fn stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits, but not past the stop.
    async fn pause(&mut self, time: Duration) {
        // An error means that nobody can say stop any more, which is a stop.
        let _ = timeout(time, self.stop.wait_for(|stop| *stop)).await;
    }
}

impl Connection {
    async fn open(vip: Ipv4Addr, id: u64) -> Result<Self, String> {
        let work = async {
            let mut stream = TcpStream::connect((vip, TCP_PORT)).await?;
            stream.set_nodelay(true)?;
            let mut hello = [0; GREETING];
            stream.read_exact(&mut hello).await?;
            Ok(Self {
                stream,
                backend: name(&hello),
                id,
                position: 0,
            })
        };
        match timeout(REQUEST, work).await {
            Ok(done) => done.map_err(cause),
            Err(_) => Err("timed out".into()),
        }
    }

    /// Sends a piece and compares what comes back. `limit` is for each wait.
    async fn exchange(&mut self, length: usize, limit: Duration) -> Result<(), String> {
        let stalled = |_| format!("no progress for {limit:?} at byte {}", self.position);
        let places = self.position..self.position + length as u64;
        let piece: Vec<u8> = places.map(|at| sent(self.id, at)).collect();
        let write = self.stream.write_all(&piece);
        timeout(limit, write)
            .await
            .map_err(stalled)?
            .map_err(cause)?;
        let mut buffer = [0; *PIECE.end()];
        let mut sent = piece.into_iter();
        while sent.len() > 0 {
            let rest = sent.len();
            let read = self.stream.read(&mut buffer[..rest]);
            let got = timeout(limit, read)
                .await
                .map_err(|_| format!("no progress for {limit:?} at byte {}", self.position))?
                .map_err(cause)?;
            if got == 0 {
                return Err("closed by the server".into());
            }
            for (byte, sent) in buffer[..got].iter().zip(&mut sent) {
                let expected = answered(sent, self.position);
                if *byte != expected {
                    return Err(format!(
                        "wrong byte {}: {byte:#04x}, not {expected:#04x}",
                        self.position
                    ));
                }
                self.position += 1;
            }
        }
        Ok(())
    }

    fn flow(&self) -> String {
        let address =
            |end: io::Result<SocketAddr>| end.map_or("?".into(), |address| address.to_string());
        format!(
            "tcp {} -> {}",
            address(self.stream.local_addr()),
            address(self.stream.peer_addr())
        )
    }
}

async fn request(vip: Ipv4Addr, id: u64) -> Result<(), String> {
    let mut connection = Connection::open(vip, id).await?;
    connection.exchange(32, REQUEST).await
}

async fn datagram_socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// Who answers datagram `number` of a flow; nobody if it is lost. Late answers to earlier ones count for nothing.
async fn ask(socket: &UdpSocket, flow: u64, number: u64) -> Option<String> {
    let mut datagram = [0; DATAGRAM];
    let (first, second) = datagram.split_at_mut(8);
    first.copy_from_slice(&flow.to_be_bytes());
    second.copy_from_slice(&number.to_be_bytes());
    // An error is that of an earlier datagram (ICMP), or means a loss.
    let _ = socket.send(&datagram).await;
    let answer = async {
        let mut buffer = [0; DATAGRAM + GREETING];
        loop {
            if let Ok(length) = socket.recv(&mut buffer).await
                && length == buffer.len()
                && buffer[..DATAGRAM] == datagram
            {
                return name(&buffer[DATAGRAM..]);
            }
        }
    };
    timeout(DATAGRAM_WAIT, answer).await.ok()
}

fn cause(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "closed by the server".into(),
        io::ErrorKind::TimedOut => "timed out".into(),
        kind => kind.to_string(),
    }
}
