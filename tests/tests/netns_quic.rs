//! QUIC through the balancer, with a real implementation on both ends: a connection whose client moves from address to address
//! stays with its backend, and would not without its connection ID being read.

use anyhow::{Context, Result, bail, ensure};
use lb_tests::{
    netns::Namespace,
    scenario::{Scenario, scenario_of},
    topology::{Backend, CLIENT_V4, CLIENT_V6, Layout, VIP_V4, VIP_V6},
};
use lb_userspace::api::path::Explanation;
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    ServerConfig, TokioRuntime, TransportConfig,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer},
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::time::timeout;

const PORT: u16 = 4_433;
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// After this, a connection without an answer counts as broken.
const SHORT_LIMIT: Duration = Duration::from_secs(2);
/// Config rotation of connection IDs.
const ROTATION: u8 = 5;
/// More addresses of the client.
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3);
/// With three backends a connection stays where it is by chance once in 3 to the power of this.
const MOVES: usize = 25;

/// Issues connection IDs that name a server: config rotation, server ID of two octets, nonce.
struct Ids(u16);

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let [high, low] = self.0.to_be_bytes();
        let first = ROTATION << 5 | fastrand::u8(..32);
        let nonce = fastrand::u64(..).to_be_bytes();
        ConnectionId::new(&[&[first, high, low], &nonce[..]].concat())
    }

    fn cid_len(&self) -> usize {
        11
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What servers and clients know each other by.
#[derive(Clone)]
struct Identity {
    certificate: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Identity {
    fn new() -> Result<Self> {
        let pair = rcgen::generate_simple_self_signed(["quic.example".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(pair.signing_key.serialize_der().into());
        Ok(Self {
            certificate: pair.cert.der().clone(),
            key: Arc::new(key),
        })
    }

    fn server(&self) -> Result<ServerConfig> {
        let mut config =
            ServerConfig::with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.transport_config(Arc::new(transport()?));
        Ok(config)
    }

    fn client(&self) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        config.transport_config(Arc::new(transport()?));
        Ok(config)
    }
}

fn transport() -> Result<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(30).try_into()?));
    Ok(transport)
}

/// Serves on the VIPs of a backend until the program ends: answers each stream with the backend's name and what came.
fn serve(backend: &Backend, number: u16, identity: &Identity) -> Result<()> {
    let (ready, is_ready) = mpsc::channel();
    let (name, identity) = (backend.name.clone(), identity.clone());
    backend.namespace.spawn(move || {
        let start = || -> Result<_> {
            let runtime = runtime()?;
            let endpoints = [VIP_V4.into(), VIP_V6.into()].map(|vip| {
                let _inside = runtime.enter();
                listen(vip, number, &identity)
            });
            Ok((runtime, endpoints))
        };
        let (runtime, [v4, v6]) = match start() {
            Ok((runtime, [Ok(v4), Ok(v6)])) => (runtime, [v4, v6]),
            Ok((_, [one, other])) => return drop(ready.send(one.and(other).map(drop))),
            Err(error) => return drop(ready.send(Err(error))),
        };
        let _ = ready.send(Ok(()));
        runtime.block_on(async { tokio::join!(accept(v4, &name), accept(v6, &name)) });
    });
    is_ready.recv().context("the server ended")?
}

fn listen(vip: IpAddr, number: u16, identity: &Identity) -> Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.cid_generator(move || Box::new(Ids(number)));
    let socket = UdpSocket::bind((vip, PORT))?;
    let (server, runtime) = (identity.server()?, Arc::new(TokioRuntime));
    Ok(Endpoint::new(config, Some(server), socket, runtime)?)
}

async fn accept(endpoint: Endpoint, name: &str) {
    while let Some(incoming) = endpoint.accept().await {
        let name = name.to_owned();
        tokio::spawn(async move {
            let connection = incoming.await?;
            loop {
                let (mut out, mut stream) = connection.accept_bi().await?;
                let bytes = stream.read_to_end(1 << 20).await?;
                out.write_all(&[name.as_bytes(), b" ", &bytes].concat())
                    .await?;
                out.finish()?;
            }
            #[allow(unreachable_code)]
            anyhow::Ok(())
        });
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

/// Sends bytes and gives the name of the backend that sent them back.
async fn ask(connection: &Connection, bytes: usize, limit: Duration) -> Result<String> {
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
    let exchange = async {
        let (mut out, mut stream) = connection.open_bi().await?;
        out.write_all(&sent).await?;
        out.finish()?;
        anyhow::Ok(stream.read_to_end(1 << 20).await?)
    };
    let answer = timeout(limit, exchange).await.context("no answer")??;
    let end = answer.iter().position(|byte| *byte == b' ');
    let (name, received) = answer.split_at(end.context("no name")?);
    ensure!(received[1..] == sent, "other bytes came back");
    Ok(String::from_utf8(name.to_vec())?)
}

/// A client with one connection, in the client's namespace.
struct Client {
    endpoint: Endpoint,
    connection: Connection,
    addresses: [IpAddr; 2],
    moves: usize,
}

impl Client {
    async fn connect(vip: IpAddr, identity: &Identity) -> Result<Self> {
        let addresses: [IpAddr; 2] = if vip.is_ipv4() {
            [CLIENT_V4.into(), OTHER_V4.into()]
        } else {
            [CLIENT_V6.into(), OTHER_V6.into()]
        };
        let socket = UdpSocket::bind((addresses[0], 0))?;
        let (config, runtime) = (EndpointConfig::default(), Arc::new(TokioRuntime));
        let mut endpoint = Endpoint::new(config, None, socket, runtime)?;
        endpoint.set_default_client_config(identity.client()?);
        let server = SocketAddr::new(vip, PORT);
        let connecting = endpoint.connect(server, "quic.example")?;
        let connection = timeout(LIMIT, connecting).await.context("no handshake")??;
        Ok(Self {
            endpoint,
            connection,
            addresses,
            moves: 0,
        })
    }

    /// Goes on from another address and port.
    fn move_on(&mut self) -> Result<()> {
        self.moves += 1;
        let address = self.addresses[self.moves % 2];
        Ok(self.endpoint.rebind(UdpSocket::bind((address, 0))?)?)
    }

    /// Moves and asks so many times; the backend must be `name`.
    async fn stays_with(&mut self, name: &str, moves: usize, when: &str) -> Result<()> {
        for _ in 0..moves {
            self.move_on()?;
            let answer = ask(&self.connection, 20_000, LIMIT).await;
            let answer = answer.with_context(|| format!("{when}, after move {}", self.moves))?;
            ensure!(answer == name, "{answer} instead of {name} {when}");
        }
        Ok(())
    }
}

/// Starts the servers, and the service on three of the four backends, with these options.
fn set_up(scenario: &mut Scenario, vip: IpAddr, quic: Option<&str>) -> Result<Identity> {
    let identity = Identity::new()?;
    for (backend, number) in scenario.topology.backends.iter().zip(1..) {
        serve(backend, number, &identity)?;
    }
    let client = &scenario.topology.client;
    client.ip(&format!("address add {OTHER_V4}/24 dev eth0"))?;
    client.ip(&format!("address add {OTHER_V6}/64 dev eth0 nodad"))?;
    scenario.start_lbd()?;
    let options = quic.unwrap_or_default();
    scenario.node.ok(&format!(
        "service add quic --address {vip} --port {PORT} --protocol udp --udp-settle 0s {options}"
    ))?;
    for number in 1..=3 {
        add_backend(scenario, number, quic.is_some())?;
    }
    scenario
        .node
        .wait_active(&["backend-1", "backend-2", "backend-3"])?;
    Ok(identity)
}

fn add_backend(scenario: &Scenario, number: usize, quic: bool) -> Result<()> {
    let Backend { name, v4, .. } = &scenario.topology.backends[number - 1];
    let id = if quic {
        format!("--server-id {number:04x}")
    } else {
        String::new()
    };
    let command = format!("backend add {name} --service quic --address {v4} {id}");
    scenario.node.ok(&command).map(drop)
}

fn inside<T: Send>(client: &Namespace, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    client.run(|| runtime()?.block_on(work))
}

/// What `lbctl explain` says of packets with a short header and these connection IDs.
fn explained(scenario: &Scenario, vip: IpAddr) -> Result<()> {
    let from = if vip.is_ipv4() {
        "198.51.100.9:40000"
    } else {
        "[2001:db8::9]:40000"
    };
    for (id, server, routed) in [
        ("a00002", Some("0002"), true),
        ("bf0003", Some("0003"), true),
        ("a000ff", Some("00ff"), false),
        ("e00002", None, false),
        ("a0", None, false),
    ] {
        let to = SocketAddr::new(vip, PORT);
        let command = format!("--output json explain udp {from} {to} --payload 40{id}");
        let text = scenario.node.ok(&command)?;
        let said: Explanation = serde_json::from_str(&text)?;
        let found = said.connection_id.context("no connection ID")?;
        ensure!(found.routed == routed, "{id}: {}", found.meaning);
        ensure!(found.server_id.as_deref() == server, "{id}: {text}");
        ensure!(said.slot.is_none() == routed, "{id}: {text}");
        let backend = said.backend.context("no backend")?.name;
        if let (true, Some(server)) = (routed, server) {
            let number = server.trim_start_matches('0');
            ensure!(backend.ends_with(&format!("backend-{number}")), "{backend}");
        }
    }
    let plain = scenario.node.ok(&format!(
        "explain udp {from} {} --payload 40a00002",
        SocketAddr::new(vip, PORT)
    ))?;
    ensure!(plain.contains("QUIC        server ID 0002"), "{plain}");
    Ok(())
}

const QUIC: &str = "--quic-server-id-length 2 --quic-config-rotation 5";

fn connection_stays(vip: IpAddr) {
    scenario_of(4, Layout::Routed, "auto", |scenario| {
        let identity = set_up(scenario, vip, Some(QUIC))?;
        let scenario = &*scenario;
        explained(scenario, vip)?;
        inside(&scenario.topology.client, async {
            let mut client = Client::connect(vip, &identity).await?;
            let name = ask(&client.connection, 100_000, LIMIT).await?;
            client
                .stays_with(&name, MOVES, "while nothing changes")
                .await?;

            add_backend(scenario, 4, true)?;
            scenario
                .node
                .wait_active(&["backend-1", "backend-2", "backend-3", "backend-4"])?;
            client
                .stays_with(&name, MOVES, "after a backend was added")
                .await?;

            scenario.node.ok(&format!("backend drain {name}"))?;
            client
                .stays_with(&name, MOVES, "while its backend is drained")
                .await?;
            for _ in 0..5 {
                let other = Client::connect(vip, &identity).await?;
                let other = ask(&other.connection, 1_000, LIMIT).await?;
                ensure!(other != name, "a new connection goes to the drained {name}");
            }

            scenario.node.ok(&format!("backend remove {name}"))?;
            client
                .stays_with(&name, MOVES, "while its backend is removed")
                .await
        })?;
        let table = scenario.node.ok("stats")?;
        ensure!(table.contains("packets by connection ID"), "{table}");
        let quic = scenario.node.stats()?.flows.quic;
        // A client's own IDs are of another config seven times out of eight.
        ensure!(
            quic.routed > 100 && quic.unknown + quic.other_config > 0 && quic.gone == 0,
            "{quic:?}"
        );
        Ok(())
    });
}

#[test]
fn a_connection_stays_with_its_backend_while_client_and_backends_change() {
    connection_stays(VIP_V4.into());
}

#[test]
fn over_ipv6_too() {
    connection_stays(VIP_V6.into());
}

/// That the tests above can fail.
#[test]
fn without_quic_a_connection_breaks_when_its_client_moves() {
    scenario_of(4, Layout::Routed, "auto", |scenario| {
        let vip = VIP_V4.into();
        let identity = set_up(scenario, vip, None)?;
        inside(&scenario.topology.client, async {
            let mut client = Client::connect(vip, &identity).await?;
            let name = ask(&client.connection, 100_000, LIMIT).await?;
            for _ in 0..MOVES {
                client.move_on()?;
                match ask(&client.connection, 20_000, SHORT_LIMIT).await {
                    Ok(answer) if answer == name => {}
                    Ok(_) | Err(_) => return Ok(()),
                }
            }
            bail!("after {MOVES} moves the connection is still with {name}")
        })
    });
}
