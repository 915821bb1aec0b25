//! The driver and a gobgpd that is played: what goes well, and each way in which it does not.

use super::{
    GobgpDriver,
    message::{
        AddPathRequest, DeletePathRequest, Destination, ListPathRequest, ListPathResponse, Path,
        TableEvent, WatchEventResponse,
    },
    path::{self, OURS},
};
use crate::{
    announce::{
        Announced, Announcer, Role, Wanted,
        bgp::{Attributes, GRACEFUL_SHUTDOWN},
        setting::{DrainTimes, Driver, GobgpSettings, Settings, Watermarks},
        withdraw_all,
    },
    prefix::Prefix,
};
use axum::http::{HeaderMap, Request, Response};
use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use prost::Message;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

/// Long, since machines may be slow; nothing waits for all of it.
const LIMIT: Duration = Duration::from_secs(30);

/// How gobgpd behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// It refuses paths to 192.0.2.1.
    Refuses,
    /// It takes paths, and does not have them then.
    Forgets,
    Silent,
    /// It has no such API.
    Stranger,
}

struct State {
    mood: Mood,
    table: BTreeMap<(Prefix, u32), Path>,
    /// How many paths were added and deleted.
    changes: usize,
    watchers: Vec<SendStream<Bytes>>,
}

struct Played {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Played {
    /// Starts it; port 0: any.
    async fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            mood: Mood::Well,
            table: BTreeMap::new(),
            changes: 0,
            watchers: vec![],
        }));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut clients = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                clients.spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    fn be(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    fn changes(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().changes)
    }

    /// Somebody else changes a path.
    fn put(&self, path: Path, is_there: bool) {
        let mut state = self.state.lock().unwrap();
        let key = (path::prefix(&path).unwrap(), path.identifier);
        if is_there {
            state.table.insert(key, path.clone());
        } else {
            state.table.remove(&key);
        }
        state.tell(Path {
            is_withdraw: !is_there,
            ..path
        });
    }

    fn paths(&self) -> Vec<(Prefix, u32)> {
        self.state.lock().unwrap().table.keys().copied().collect()
    }
}

impl State {
    fn tell(&mut self, path: Path) {
        let event = WatchEventResponse {
            table: Some(TableEvent { paths: vec![path] }),
        };
        let event = frame(&event);
        self.watchers
            .retain_mut(|watcher| watcher.send_data(event.clone(), false).is_ok());
    }

    fn change(&mut self, path: Path, is_there: bool) -> Result<(), (u8, &'static str)> {
        let prefix = path::prefix(&path).unwrap();
        if self.mood == Mood::Refuses && prefix == vip("192.0.2.1") {
            return Err((2, "no such luck"));
        }
        self.changes += 1;
        if self.mood == Mood::Forgets {
            return Ok(());
        }
        let key = (prefix, path.identifier);
        if is_there {
            self.table.insert(key, path.clone());
        } else {
            self.table.remove(&key);
        }
        self.tell(Path {
            is_withdraw: !is_there,
            ..path
        });
        Ok(())
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        calls.spawn(call(request, respond, Arc::clone(&state)));
    }
}

async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    state: Arc<Mutex<State>>,
) {
    let (head, mut body) = request.into_parts();
    let mut text = BytesMut::new();
    while let Some(Ok(chunk)) = body.data().await {
        body.flow_control().release_capacity(chunk.len()).unwrap();
        text.extend_from_slice(&chunk);
    }
    // A byte that says that it is not compressed, and four with the length.
    let text = text.split_off(5);
    if state.lock().unwrap().mood == Mood::Silent {
        return std::future::pending().await;
    }
    let mut stream = respond
        .send_response(
            Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap(),
            false,
        )
        .unwrap();
    let mut state = state.lock().unwrap();
    let result = match head.uri.path() {
        _ if state.mood == Mood::Stranger => Err((12, "unknown service apipb.GobgpApi")),
        "/apipb.GobgpApi/AddPath" => state
            .change(AddPathRequest::decode(text).unwrap().path.unwrap(), true)
            .map(|()| vec![frame(&())]),
        "/apipb.GobgpApi/DeletePath" => state
            .change(
                DeletePathRequest::decode(text).unwrap().path.unwrap(),
                false,
            )
            .map(|()| vec![frame(&())]),
        "/apipb.GobgpApi/ListPath" => {
            let family = ListPathRequest::decode(text).unwrap().family;
            let paths = state.table.values().filter(|path| path.family == family);
            Ok(paths
                .map(|path| {
                    frame(&ListPathResponse {
                        destination: Some(Destination {
                            paths: vec![path.clone()],
                        }),
                    })
                })
                .collect())
        }
        "/apipb.GobgpApi/WatchEvent" => {
            state.watchers.push(stream);
            return;
        }
        other => panic!("{other}"),
    };
    let mut trailers = HeaderMap::new();
    let (code, words) = match result {
        Ok(frames) => {
            for frame in frames {
                stream.send_data(frame, false).unwrap();
            }
            (0, "")
        }
        Err(refusal) => refusal,
    };
    trailers.insert("grpc-status", code.to_string().parse().unwrap());
    trailers.insert("grpc-message", words.parse().unwrap());
    stream.send_trailers(trailers).unwrap();
}

fn frame(message: &impl Message) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut frame).unwrap();
    frame.freeze()
}

fn settings(address: SocketAddr, limit: Duration) -> GobgpSettings {
    GobgpSettings {
        address,
        attributes: Attributes {
            next_hop_v4: None,
            next_hop_v6: "2001:db8::11".parse().ok(),
            med: 10,
            draining_med: 900,
            communities: vec!["65001:7".parse().unwrap()],
        },
        timeout: limit,
    }
}

fn driver(address: SocketAddr, limit: Duration) -> GobgpDriver {
    GobgpDriver::new(settings(address, limit))
}

fn vip(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn serving(vips: &[&str]) -> Wanted {
    vips.iter()
        .map(|text| (vip(text), Some(Role::Serving)))
        .collect()
}

/// A path of somebody else.
fn foreign(prefix: &str) -> Path {
    let route = path::route(&Path::default());
    Path {
        identifier: 0,
        ..path::path(vip(prefix), &route)
    }
}

async fn disturbed(driver: &mut GobgpDriver) {
    timeout(LIMIT, driver.disturbed()).await.unwrap();
}

#[tokio::test]
async fn its_table_is_made_what_is_wanted() {
    let played = Played::start(0).await;
    played.put(foreign("192.0.2.1"), true);
    played.put(foreign("192.0.2.77"), true);
    let mut driver = driver(played.address, LIMIT);
    assert_eq!(driver.adopt().await, Ok(Announced::new()));
    let mut wanted = serving(&["192.0.2.1", "2001:db8::/64"]);
    wanted.insert(vip("192.0.2.9"), None);
    let outcome = driver.reconcile(&wanted).await;
    assert!(
        outcome.is_complete() && outcome.announced.len() == 2,
        "{outcome:?}"
    );
    let others = [(vip("192.0.2.1"), 0), (vip("192.0.2.77"), 0)];
    let both = [
        others[0],
        (vip("192.0.2.1"), OURS),
        others[1],
        (vip("2001:db8::/64"), OURS),
    ];
    assert_eq!((played.paths(), played.changes()), (both.into(), 2));
    assert!(driver.reconcile(&wanted).await.is_complete());
    assert_eq!(played.changes(), 0);

    // The next daemon finds what is ours.
    let mut next = self::driver(played.address, LIMIT);
    assert_eq!(next.adopt().await.unwrap().len(), 2);
    let outcome = next
        .reconcile(&[(vip("2001:db8::/64"), Some(Role::Draining))].into())
        .await;
    assert_eq!(
        outcome.announced,
        [(vip("2001:db8::/64"), Role::Draining)].into()
    );
    let route = {
        let state = played.state.lock().unwrap();
        path::route(&state.table[&(vip("2001:db8::/64"), OURS)])
    };
    assert_eq!(
        (route.med, route.local_pref, route.next_hop),
        (900, Some(0), "2001:db8::11".parse().ok())
    );
    assert!(route.communities.contains(&GRACEFUL_SHUTDOWN), "{route:?}");
    assert!(next.reconcile(&Wanted::new()).await.is_complete());
    assert_eq!(played.paths(), others);
}

#[tokio::test]
async fn changes_by_others_are_heard_of_and_own_ones_are_not_news() {
    let played = Played::start(0).await;
    let mut driver = driver(played.address, LIMIT);
    let wanted = serving(&["192.0.2.1"]);
    let quiet = Duration::from_millis(200);
    driver.adopt().await.unwrap();
    assert!(
        timeout(quiet, driver.disturbed()).await.is_err(),
        "before anything has changed"
    );
    assert!(driver.reconcile(&wanted).await.is_complete());
    played.put(foreign("192.0.2.77"), true);
    assert!(
        timeout(quiet, driver.disturbed()).await.is_err(),
        "own changes, and those of other prefixes"
    );
    let ours = played.state.lock().unwrap().table[&(vip("192.0.2.1"), OURS)].clone();
    played.put(ours, false);
    disturbed(&mut driver).await;
    assert!(driver.reconcile(&wanted).await.is_complete());
    played.put(foreign("192.0.2.1"), true);
    disturbed(&mut driver).await;
    let orphan = Path {
        identifier: OURS,
        ..foreign("192.0.2.78")
    };
    played.put(orphan, true);
    disturbed(&mut driver).await;
    assert!(driver.reconcile(&wanted).await.is_complete());
    assert!(!played.paths().contains(&(vip("192.0.2.78"), OURS)));
}

#[tokio::test]
async fn a_gobgpd_that_is_absent_or_restarted_is_found_again() {
    let first = Played::start(0).await;
    let address = first.address;
    let wanted = serving(&["192.0.2.1"]);
    let mut driver = driver(address, LIMIT);
    driver.adopt().await.unwrap();
    assert!(driver.reconcile(&wanted).await.is_complete());
    first.task.abort();
    disturbed(&mut driver).await;
    let outcome = driver.reconcile(&wanted).await;
    let problem = outcome.problem.unwrap();
    assert!(
        problem.contains("gobgpd does not answer on 127.0.0.1") && problem.contains("--api-hosts"),
        "{problem}"
    );
    assert!(outcome.announced.is_empty());
    let second = Played::start(address.port()).await;
    disturbed(&mut driver).await;
    assert!(driver.reconcile(&wanted).await.is_complete());
    assert_eq!(second.paths(), [(vip("192.0.2.1"), OURS)]);
}

#[tokio::test]
async fn nothing_is_announced_by_a_gobgpd_that_does_not_run() {
    let played = Played::start(0).await;
    let wanted = serving(&["192.0.2.1"]);
    driver(played.address, LIMIT).reconcile(&wanted).await;
    let settings = Settings {
        allow: vec![],
        watermarks: Watermarks { up: 0, down: 0 },
        hold_down: LIMIT,
        drain: DrainTimes {
            converge: LIMIT,
            linger: LIMIT,
        },
        driver: Driver::Gobgp(settings(played.address, LIMIT)),
    };
    let withdrawn = async || withdraw_all(&settings, "/nonexistent".as_ref()).await;
    assert_eq!(withdrawn().await, Ok(vec!["192.0.2.1".into()]));
    assert!(played.paths().is_empty());
    played.be(Mood::Stranger);
    assert!(withdrawn().await.is_err());
    played.task.abort();
    assert!(played.task.await.is_err());
    assert_eq!(withdrawn().await, Ok(vec![]));
}

#[tokio::test]
async fn refusals_and_silence_are_named() {
    let played = Played::start(0).await;
    let wanted = serving(&["192.0.2.1", "192.0.2.2"]);
    played.be(Mood::Refuses);
    let outcome = driver(played.address, LIMIT).reconcile(&wanted).await;
    assert_eq!(
        outcome.announced,
        [(vip("192.0.2.2"), Role::Serving)].into()
    );
    assert_eq!(
        outcome.failed,
        [(vip("192.0.2.1"), "gobgpd refuses: no such luck".into())].into()
    );
    played.be(Mood::Forgets);
    let outcome = driver(played.address, LIMIT).reconcile(&wanted).await;
    let said = "gobgpd has taken it, and its table does not show it";
    assert_eq!(outcome.failed, [(vip("192.0.2.1"), said.into())].into());
    for (mood, words) in [
        (
            Mood::Silent,
            "has not answered within 300ms (announce.gobgp.timeout)",
        ),
        (
            Mood::Stranger,
            "has no API of GoBGP 3 (package apipb): unknown service",
        ),
    ] {
        played.be(mood);
        let problem = driver(played.address, Duration::from_millis(300))
            .adopt()
            .await
            .unwrap_err();
        assert!(problem.contains(words), "{problem}");
    }
}

#[tokio::test]
async fn what_is_no_gobgpd_is_no_harm() {
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(garbage).await;
            }
        });
        let outcome = driver(address, LIMIT)
            .reconcile(&serving(&["192.0.2.1"]))
            .await;
        let problem = outcome.problem.unwrap();
        assert!(problem.contains("does not answer"), "{problem}");
        task.abort();
    }
}
