//! The driver, `lbd exabgp` and an ExaBGP that is played: what goes well, and each way in which it does not.

use super::{ExabgpDriver, memory::Memory, process::work, serve, speaker::Speaker};
use crate::{
    announce::{Announced, Announcer, Role, Wanted, bgp::Attributes, setting::ExabgpSettings},
    prefix::Prefix,
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex},
    net::UnixStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Long, since machines may be slow; nothing waits for all of it.
const LIMIT: Duration = Duration::from_secs(30);

/// How ExaBGP behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// It refuses commands with this word in them.
    Refuses(&'static str),
    /// It takes routes with this word in them, and does not have them then.
    Forgets(&'static str),
    /// It does not read.
    Frozen,
    /// It says this instead of answers.
    Says(&'static [u8]),
}

/// An ExaBGP, with the `lbd exabgp` that it runs.
struct Played {
    mood: watch::Sender<Mood>,
    said: Arc<Mutex<Vec<String>>>,
    tasks: Vec<JoinHandle<()>>,
    /// Ends with ExaBGP.
    work: JoinHandle<()>,
    exabgp: JoinHandle<()>,
}

impl Played {
    async fn start(socket: &Path, boot: &str) -> Self {
        let (commands, output) = duplex(1 << 16);
        let (answers, input) = duplex(1 << 16);
        let (mood, moods) = watch::channel(Mood::Well);
        let said = Arc::new(Mutex::new(vec![]));
        let exabgp = tokio::spawn(play(commands, answers, moods, Arc::clone(&said)));
        let memory = Memory::read(socket.with_extension("json"), boot.into());
        let listener = serve::listen(socket).await.unwrap();
        let (sender, requests) = mpsc::channel(8);
        let changed = watch::Sender::new(0);
        let clients = tokio::spawn(serve::run(listener, sender, changed.clone()));
        let work = tokio::spawn(async move {
            work(Speaker::new(input, output), memory, requests, &changed).await;
        });
        Self {
            mood,
            said,
            tasks: vec![clients],
            work,
            exabgp,
        }
    }

    fn be(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Commands that it was told, but for those that ask; they are forgotten then.
    fn said(&self) -> Vec<String> {
        let mut said = std::mem::take(&mut *self.said.lock().unwrap());
        said.retain(|line| line.contains("route"));
        said
    }

    async fn wait_said(&self, words: &str) {
        let wait = async {
            while !self
                .said
                .lock()
                .unwrap()
                .iter()
                .any(|line| line.contains(words))
            {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LIMIT, wait).await.unwrap();
    }

    /// Ends ExaBGP; `lbd exabgp` ends then by itself.
    async fn end(self) {
        self.exabgp.abort();
        timeout(LIMIT, self.work).await.unwrap().unwrap();
        for task in &self.tasks {
            task.abort();
        }
        // As with a process that ends, its socket is closed.
        sleep(Duration::from_millis(50)).await;
    }
}

async fn play(
    commands: DuplexStream,
    mut answers: DuplexStream,
    mut moods: watch::Receiver<Mood>,
    said: Arc<Mutex<Vec<String>>>,
) {
    let mut lines = BufReader::new(commands).lines();
    let mut routes = BTreeMap::new();
    loop {
        // Its sender lives as long as this.
        let _ = moods.wait_for(|mood| *mood != Mood::Frozen).await;
        let Ok(Some(line)) = lines.next_line().await else {
            return;
        };
        // The mood may have changed while it waited for the line.
        let _ = moods.wait_for(|mood| *mood != Mood::Frozen).await;
        let mood = moods.borrow().clone();
        said.lock().unwrap().push(line.clone());
        let mut answer = String::new();
        let prefix = line.split(' ').nth(2).unwrap_or_default().to_owned();
        match (&mood, line.as_str()) {
            (Mood::Says(words), _) => {
                answers.write_all(words).await.unwrap();
                continue;
            }
            (_, "reset") => continue,
            (_, "version") => answer += "exabgp 4.2.21\ndone\n",
            (_, "show adj-rib out") => {
                for (prefix, hop) in &routes {
                    answer += &format!("neighbor 192.0.2.9 ipv4 unicast {prefix} next-hop {hop}\n");
                }
                answer += "done\n";
            }
            (Mood::Refuses(word), line) if line.contains(word) => answer += "error\n",
            (Mood::Forgets(word), line) if line.contains(word) => answer += "done\n",
            (_, line) if line.starts_with("announce route ") => {
                routes.insert(prefix, "self");
                answer += "done\n";
            }
            (_, line) if line.starts_with("withdraw route ") => {
                routes.remove(&prefix);
                answer += "done\n";
            }
            _ => answer += "error\n",
        }
        answers.write_all(answer.as_bytes()).await.unwrap();
    }
}

fn driver(socket: &Path) -> ExabgpDriver {
    ExabgpDriver::new(ExabgpSettings {
        socket: socket.into(),
        attributes: Attributes {
            next_hop_v4: "198.51.100.7".parse().ok(),
            next_hop_v6: None,
            med: 10,
            draining_med: 900,
            communities: vec!["65001:7".parse().unwrap()],
        },
        timeout: LIMIT,
    })
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("lbd.sock");
    (directory, socket)
}

fn vip(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn serving(vips: &[&str]) -> Wanted {
    vips.iter()
        .map(|text| (vip(text), Some(Role::Serving)))
        .collect()
}

async fn disturbed(driver: &mut ExabgpDriver) {
    timeout(LIMIT, driver.disturbed()).await.unwrap();
}

#[tokio::test]
async fn exabgp_is_told_what_differs_in_full() {
    let (_directory, socket) = place();
    let mut driver = driver(&socket);
    let absent = driver.adopt().await.unwrap_err();
    assert!(
        absent.contains("`lbd exabgp` does not answer on")
            && absent.contains("announce.exabgp.socket"),
        "{absent}"
    );
    let outcome = driver.reconcile(&serving(&["192.0.2.1"])).await;
    assert!(outcome.problem.unwrap().contains("does not answer"));

    let played = Played::start(&socket, "boot").await;
    disturbed(&mut driver).await;
    assert_eq!(driver.adopt().await, Ok(Announced::new()));
    let mut wanted = serving(&["192.0.2.1", "2001:db8::/64"]);
    wanted.insert(vip("192.0.2.9"), None);
    let outcome = driver.reconcile(&wanted).await;
    assert!(
        outcome.is_complete() && outcome.announced.len() == 2,
        "{outcome:?}"
    );
    let expected = [
        "announce route 192.0.2.1/32 next-hop 198.51.100.7 med 10 community [65001:7]",
        "announce route 2001:db8::/64 next-hop self med 10 community [65001:7]",
    ];
    assert_eq!(played.said(), expected);
    assert!(driver.reconcile(&wanted).await.is_complete());
    assert_eq!(played.said(), [""; 0]);

    let wanted = [(vip("2001:db8::/64"), Some(Role::Draining))].into();
    let outcome = driver.reconcile(&wanted).await;
    assert_eq!(
        outcome.announced,
        [(vip("2001:db8::/64"), Role::Draining)].into()
    );
    let expected = [
        "withdraw route 192.0.2.1/32",
        "announce route 2001:db8::/64 next-hop self med 900 local-preference 0 community [65001:7 65535:0]",
    ];
    assert_eq!(played.said(), expected);
    played.end().await;
    disturbed(&mut driver).await;
}

#[tokio::test]
async fn what_was_told_outlives_exabgp_and_not_the_boot() {
    let (_directory, socket) = place();
    let played = Played::start(&socket, "boot").await;
    let outcome = driver(&socket)
        .reconcile(&serving(&["192.0.2.1", "192.0.2.2"]))
        .await;
    assert!(outcome.is_complete(), "{outcome:?}");
    // What it cannot withdraw before it ends is withdrawn by the next.
    played.be(Mood::Refuses("withdraw"));
    let outcome = driver(&socket).reconcile(&serving(&["192.0.2.1"])).await;
    assert!(
        outcome.failed[&vip("192.0.2.2")].contains("refuses `withdraw route 192.0.2.2/32`"),
        "{outcome:?}"
    );
    assert_eq!(outcome.announced.len(), 2);
    played.end().await;

    let played = Played::start(&socket, "boot").await;
    played.wait_said("announce route 192.0.2.1/32").await;
    assert_eq!(played.said()[0], "withdraw route 192.0.2.2/32");
    let found = driver(&socket).adopt().await.unwrap();
    assert_eq!(found, [(vip("192.0.2.1"), Role::Serving)].into());
    played.end().await;

    let played = Played::start(&socket, "another boot").await;
    assert_eq!(driver(&socket).adopt().await, Ok(Announced::new()));
    assert!(
        driver(&socket)
            .reconcile(&Wanted::new())
            .await
            .is_complete()
    );
    assert_eq!(played.said(), [""; 0]);
    played.end().await;
    std::fs::write(socket.with_extension("json"), "{\"boot\":").unwrap();
    let played = Played::start(&socket, "boot").await;
    assert_eq!(driver(&socket).adopt().await, Ok(Announced::new()));
    played.end().await;
}

#[tokio::test]
async fn one_vip_that_is_refused_or_has_no_neighbor_stops_no_other() {
    let (_directory, socket) = place();
    let played = Played::start(&socket, "boot").await;
    let mut driver = driver(&socket);
    let wanted = serving(&["192.0.2.1", "192.0.2.2"]);
    for (mood, words) in [
        (
            Mood::Refuses("192.0.2.1"),
            "ExaBGP refuses `announce route 192.0.2.1/32 next-hop",
        ),
        (
            Mood::Forgets("192.0.2.1"),
            "ExaBGP has no neighbor for it: give one `family { ipv4 unicast; }`",
        ),
    ] {
        played.be(mood);
        let outcome = driver.reconcile(&wanted).await;
        assert_eq!(
            outcome.announced,
            [(vip("192.0.2.2"), Role::Serving)].into()
        );
        let said = &outcome.failed[&vip("192.0.2.1")];
        assert!(outcome.failed.len() == 1 && said.contains(words), "{said}");
    }
    played.be(Mood::Well);
    let outcome = driver.reconcile(&wanted).await;
    assert!(
        outcome.is_complete() && outcome.announced.len() == 2,
        "{outcome:?}"
    );
    played.end().await;
}

#[tokio::test]
async fn an_exabgp_that_hangs_is_named_and_told_when_it_goes_on() {
    let (_directory, socket) = place();
    let played = Played::start(&socket, "boot").await;
    let mut driver = driver(&socket);
    assert!(
        driver
            .reconcile(&serving(&["192.0.2.1", "192.0.2.2"]))
            .await
            .is_complete()
    );
    played.be(Mood::Frozen);
    let outcome = driver
        .reconcile(&serving(&["192.0.2.1", "192.0.2.3"]))
        .await;
    assert!(
        outcome
            .problem
            .unwrap()
            .contains("ExaBGP has not answered for 2 s")
    );
    assert_eq!(
        outcome.announced.len(),
        2,
        "what is not known to be gone is not said to be"
    );
    assert_eq!(
        driver.adopt().await.unwrap().len(),
        3,
        "who comes now is told what may be announced"
    );
    played.said();
    // It answers all that it was told meanwhile; nobody asks again.
    played.be(Mood::Refuses("192.0.2.3"));
    played.wait_said("announce route 192.0.2.3/32").await;
    let outcome = driver
        .reconcile(&serving(&["192.0.2.1", "192.0.2.3"]))
        .await;
    assert_eq!(
        outcome.announced,
        [(vip("192.0.2.1"), Role::Serving)].into()
    );
    assert!(
        outcome.failed[&vip("192.0.2.3")].contains("refuses"),
        "{outcome:?}"
    );
    played.be(Mood::Well);
    assert!(
        driver
            .reconcile(&serving(&["192.0.2.1", "192.0.2.3"]))
            .await
            .is_complete()
    );
    played.end().await;
}

#[tokio::test]
async fn an_exabgp_that_talks_nonsense_is_quoted() {
    let (_directory, socket) = place();
    let played = Played::start(&socket, "boot").await;
    let mut driver = driver(&socket);
    assert!(
        driver
            .reconcile(&serving(&["192.0.2.1"]))
            .await
            .is_complete()
    );
    for (nonsense, words) in [
        (&b"good morning\n"[..], "but says `good morning`"),
        (b"\xff\xfe\n", "but says `\u{fffd}\u{fffd}`"),
        (b"", "exabgp.api.ack"),
    ] {
        played.be(Mood::Says(nonsense));
        let outcome = driver.reconcile(&serving(&["192.0.2.2"])).await;
        let problem = outcome.problem.unwrap();
        assert!(problem.contains(words), "{problem}");
        played.be(Mood::Well);
        assert!(
            driver
                .reconcile(&serving(&["192.0.2.1"]))
                .await
                .is_complete()
        );
    }
    played.end().await;
}

#[tokio::test]
async fn nobody_on_the_socket_can_do_harm() {
    let (_directory, socket) = place();
    let played = Played::start(&socket, "boot").await;
    let mut lbd = driver(&socket);
    assert!(lbd.reconcile(&serving(&["192.0.2.1"])).await.is_complete());
    played.said();
    for garbage in [
        &b"shutdown\n"[..],
        b"\xff\xff\n",
        b"{\"announce\":{\"192.0.2.1/32 next-hop self\\nshutdown\":null}}\n",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = String::new();
        timeout(LIMIT, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.contains("\"problem\":\""), "{garbage:?}: {answer}");
    }
    // One that hangs up halfway, and some that say nothing.
    let mut half = UnixStream::connect(&socket).await.unwrap();
    half.write_all(b"{\"announce\":").await.unwrap();
    drop(half);
    let mut silent = vec![];
    for _ in 0..10 {
        silent.push(UnixStream::connect(&socket).await.unwrap());
    }
    assert!(lbd.reconcile(&serving(&["192.0.2.1"])).await.is_complete());
    assert_eq!(played.said(), [""; 0]);
    // Who changes something is heard of by the others.
    assert!(
        driver(&socket)
            .reconcile(&Wanted::new())
            .await
            .is_complete()
    );
    disturbed(&mut lbd).await;
    let outcome = lbd.reconcile(&serving(&["192.0.2.1"])).await;
    assert!(
        outcome.is_complete() && outcome.announced.len() == 1,
        "{outcome:?}"
    );
    played.end().await;
}
