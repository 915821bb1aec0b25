//! A fake `lbd` for tests of the API and of `lbctl`: the real server on a real socket, and a control loop that
//! answers from fixed data and remembers which changes it was asked for.

// Each test binary uses its own part of this.
#![allow(dead_code)]

pub mod lbctl;

use lb_userspace::{
    api::{
        handle::{Change, ChangeOptions, Handle, Request},
        path::{
            BackendHit, Explanation, FlowTableView, FlowView, FrameView, SecondHit, ServiceHit,
            SizeView, SlotView, TraceLine, TracedPacket, VerdictView,
        },
        protocol::*,
        server::{self, Limits},
    },
    digest::{BackendDigest, DigestNode, DigestView, FlowsDigest, ServiceDigest},
    problem::Problem,
    spec::{BackendSpec, ServiceSpec, StateSpec},
};
use serde_json::Value;
use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A server with its control loop, until it is dropped.
pub struct FakeLbd {
    directory: TempDir,
    runtime: Runtime,
    changes: Changes,
    drains: Drains,
}

type Changes = Arc<Mutex<Vec<(Change, ChangeOptions)>>>;
/// Answers to come; the last one stays.
type Drains = Arc<Mutex<VecDeque<Vec<DrainView>>>>;

impl FakeLbd {
    pub fn start() -> Self {
        Self::start_within(Limits::default())
    }

    pub fn start_within(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let changes = Changes::default();
        let drains: Drains = Arc::new(Mutex::new(VecDeque::from([self::drains()])));
        let (handle, mut requests) = Handle::new(4);
        let (seen, scripted) = (changes.clone(), drains.clone());
        runtime.spawn(async move {
            let mut unanswered = Vec::new();
            while let Some(request) = requests.recv().await {
                unanswered.extend(answer(request, &seen, &scripted));
            }
        });
        let socket = directory.path().join("lbd.sock");
        let listener = runtime
            .block_on(async { server::bind(&socket, None) })
            .unwrap();
        runtime.spawn(server::serve_within(
            listener,
            handle,
            limits,
            std::future::pending(),
        ));
        Self {
            directory,
            runtime,
            changes,
            drains,
        }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("lbd.sock")
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// What is said of drains from now on, an answer for each question; the last one stays.
    pub fn script_drains(&self, answers: impl IntoIterator<Item = Vec<DrainView>>) {
        *self.drains.lock().unwrap() = answers.into_iter().collect();
    }

    /// The changes asked for since the last call, each with its options.
    pub fn take_changes(&self) -> Vec<(Change, ChangeOptions)> {
        std::mem::take(&mut self.changes.lock().unwrap())
    }

    /// Connects and sends `request` as it is.
    pub fn send(&self, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// One request with a JSON body, or none if it is empty: status and body of the answer.
    pub fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let kind = if body.is_empty() {
            ""
        } else {
            "Content-Type: application/json\r\n"
        };
        self.http_with(method, path, kind, body)
    }

    /// As [`Self::http`], with other headers.
    pub fn http_with(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        receive(self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: lbd\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )))
    }
}

/// Reads an answer to its end: status and JSON body.
pub fn receive(mut stream: UnixStream) -> (u16, Value) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (
        status,
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}")),
    )
}

/// A reply that is kept so that its asker waits for ever.
type Unanswered = tokio::sync::oneshot::Sender<Result<ChangeReport, ErrorBody>>;

fn answer(request: Request, changes: &Changes, drains: &Drains) -> Option<Unanswered> {
    // A client that has gone away is no fault of the control loop.
    match request {
        Request::Status(reply) => drop(reply.send(status())),
        Request::Services(reply) => drop(reply.send(Ok(services()))),
        Request::State(reply) => drop(reply.send(Ok(StateView {
            revision: 7,
            state: state(),
        }))),
        Request::Stats(reply) => drop(reply.send(Ok(stats()))),
        Request::Metrics(reply) => drop(reply.send(String::new())),
        Request::Digest(reply) => drop(reply.send(Ok(digest()))),
        Request::Announcements(reply) => drop(reply.send(Ok(Vec::new()))),
        Request::Node(reply) | Request::DrainNode { reply, .. } => {
            drop(reply.send(Ok(lb_userspace::api::announce::NodeView::default())));
        }
        Request::Drains(reply) => {
            let mut answers = drains.lock().unwrap();
            let answer = match answers.len() {
                0 | 1 => answers.front().cloned().unwrap_or_default(),
                _ => answers.pop_front().unwrap(),
            };
            drop(reply.send(Ok(answer)));
        }
        Request::Trace { request, reply } if request.service.as_deref() == Some("www") => {
            drop(reply.send(Ok(trace())));
        }
        Request::Trace { reply, .. } => drop(reply.send(Err(ErrorBody::new(
            ErrorCode::Failed,
            "this lbd has no program",
        )))),
        Request::Explain { request, reply } if request.protocol.is_some() => {
            drop(reply.send(Ok(explanation())));
        }
        Request::Explain { reply, .. } => drop(reply.send(Err(ErrorBody::new(
            ErrorCode::Failed,
            "this lbd has no program",
        )))),
        Request::History(reply) => drop(reply.send(Ok(history()))),
        Request::Change {
            change,
            options,
            reply,
        } => {
            changes.lock().unwrap().push((change.clone(), options));
            if matches!(&change, Change::RemoveService { service } if service == "slow") {
                return Some(reply);
            }
            drop(reply.send(decide(&change, &options)));
        }
    }
    None
}

/// Accepts a change unless a name or value in it asks for a refusal.
fn explanation() -> Explanation {
    let frame = |length: u32, first: &str| FrameView {
        length,
        hex: "0a".repeat(length as usize),
        headers: vec![first.into()],
    };
    Explanation {
        connection_id: None,
        interface: "eth0".into(),
        verdict: VerdictView {
            name: "forwarded".into(),
            action: "forward".into(),
            description: "Sent to a backend.".into(),
            advice: String::new(),
        },
        flow: Some(FlowView {
            protocol: "tcp".into(),
            source: "198.51.100.9:40000".into(),
            destination: "192.0.2.1:80".into(),
            is_error: false,
        }),
        service: Some(ServiceHit {
            name: "www".into(),
            index: 1,
            hash: "00000000deadbeef".into(),
            hashed: "5-tuple".into(),
        }),
        slot: Some(SlotView {
            number: 7,
            word: "0001000002000001".into(),
            state: "moved".into(),
            meaning: "known flows go where their entry says".into(),
            new_owner: Some("www/web-1".into()),
            old_owner: Some("www/web-2".into()),
        }),
        flow_table: Some(FlowTableView {
            found: true,
            counts: true,
            backend: Some("www/web-2".into()),
            idle_seconds: Some(3),
            closing: true,
            second: Some("www/web-1".into()),
            meaning: "the packet goes where the entry says".into(),
        }),
        backend: Some(BackendHit {
            name: "www/web-2".into(),
            index: 2,
            address: "198.51.100.12".into(),
            mode: "ipip".into(),
            state: "up, gets new flows".into(),
            next_hop: "02:00:00:00:00:07".into(),
            interface: "eth0".into(),
        }),
        second: Some(SecondHit {
            name: "www/web-1".into(),
            index: 1,
            address: "198.51.100.11".into(),
        }),
        size: Some(SizeView {
            received: 40,
            added: 20,
            mtu: 1_500,
            fits: true,
        }),
        input: frame(54, "Ethernet, in"),
        output: Some(frame(74, "Ethernet, out")),
    }
}

/// A trace of six packets, one in 200 ms.
fn trace() -> tokio::sync::mpsc::Receiver<TraceLine> {
    let (lines, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        for number in 1..=6 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let packet = TracedPacket {
                time_ns: number * 1_000_000_000,
                interface: "eth0".into(),
                verdict: "drop_no_backend".into(),
                flow: Some(FlowView {
                    protocol: "tcp".into(),
                    source: "198.51.100.9:40000".into(),
                    destination: "192.0.2.1:80".into(),
                    is_error: false,
                }),
                service: Some("www".into()),
                slot: Some(7),
                backend: None,
                length_in: 54,
                length_out: 0,
                input: "00".repeat(54),
                output: String::new(),
            };
            if lines
                .send(TraceLine::Packet(Box::new(packet)))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    receiver
}

fn decide(change: &Change, options: &ChangeOptions) -> Result<ChangeReport, ErrorBody> {
    let refuse = |code, message: &str, problems| {
        Err(ErrorBody {
            code,
            message: message.into(),
            problems,
        })
    };
    let dry_run = options.dry_run;
    if let Some(meant) = options.if_revision.filter(|meant| *meant != 7) {
        let message =
            format!("the change is meant for revision {meant}, but revision 7 is in force");
        return refuse(ErrorCode::Conflict, &message, vec![]);
    }
    if options
        .max_move
        .is_some_and(|most| most.is_exceeded_by(10_923, 65_537))
    {
        let message = "the change would move 10923 of 65537 slots of service `www` (16.67 %)";
        return refuse(ErrorCode::Conflict, message, vec![]);
    }
    match change {
        Change::Drain { backend, .. } if backend == "missing" => refuse(
            ErrorCode::NotFound,
            "no service has a backend `missing`; there are: web-1, web-2",
            vec![],
        ),
        Change::Drain { backend, .. } if backend == "last" => Ok(ChangeReport {
            warnings: vec!["service www: no backend takes new flows any more".into()],
            ..report(dry_run)
        }),
        Change::Rollback { revision: 3 } => refuse(
            ErrorCode::NotFound,
            "there is no revision 3 to go back to: 5 to 7 are kept",
            vec![],
        ),
        Change::AddService(service) if service.name == "www" => refuse(
            ErrorCode::Conflict,
            "there is a service \"www\" already",
            vec![],
        ),
        Change::AddService(service) if service.port > 65_535 => {
            let problem = Problem::new("port", service.port, "a port is 0 to 65535", "");
            refuse(
                ErrorCode::Invalid,
                "the service is not valid",
                vec![problem],
            )
        }
        Change::Apply(state) if state.services.iter().any(|service| service.port > 65_535) => {
            let problem = Problem::new("services[0].port", 70_000, "a port is 0 to 65535", "");
            refuse(ErrorCode::Invalid, "the state is not valid", vec![problem])
        }
        Change::RemoveService { service } if service == "missing" => refuse(
            ErrorCode::NotFound,
            "there is no service \"missing\"",
            vec![],
        ),
        Change::RemoveService { service } if service == "stuck" => {
            refuse(ErrorCode::Failed, "cannot write the services map", vec![])
        }
        Change::Apply(same) if *same == state() => Ok(ChangeReport {
            revision: 7,
            changed: false,
            changes: vec![],
            tables: vec![],
            ..report(dry_run)
        }),
        _ => Ok(report(dry_run)),
    }
}

fn report(dry_run: bool) -> ChangeReport {
    ChangeReport {
        revision: if dry_run { 7 } else { 8 },
        dry_run,
        changed: true,
        changes: vec![ChangeLine {
            action: "change".into(),
            kind: "backend".into(),
            name: "www/web-1".into(),
            detail: "weight 100 -> 50".into(),
        }],
        tables: vec![TableChange {
            service: "www".into(),
            slots_changed: 10_923,
            necessary: 10_000,
            collateral: 923,
            new_flows_basis_points: 1_667,
            expiring_slots: 0,
            lost_slots: 0,
            old_flows: "16.67 % stay with their backend unless they send nothing for 1m; the others are not touched".into(),
            seconds: 60,
        }],
        warnings: vec![],
    }
}

fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 4711,
        uptime_seconds: 3_720,
        condition: "degraded".into(),
        warnings: vec!["1 of 3 backends is down".into()],
        revision: 7,
        interfaces: vec![
            InterfaceStatus {
                name: "eth0".into(),
                index: 2,
                mode: "native".into(),
                program_id: 31,
                note: String::new(),
            },
            InterfaceStatus {
                name: "eth9".into(),
                index: 0,
                mode: "none".into(),
                program_id: 0,
                note: "no such interface".into(),
            },
        ],
        services: 2,
        backends: 3,
        backends_active: 2,
        node: None,
    }
}

fn backend(service: &str, name: &str, address: &str) -> BackendView {
    BackendView {
        service: service.into(),
        name: name.into(),
        address: address.into(),
        weight: 100,
        drain: false,
        server_id: None,
        health: "up".into(),
        health_detail: String::new(),
        probe_us: Some(412),
        next_hop: "resolved".into(),
        next_hop_detail: format!("via {address} dev eth0 lladdr 02:00:00:00:00:01"),
        slots: 65_537,
        active: true,
        slow_start_percent: None,
        inactive_reason: String::new(),
    }
}

fn services() -> Vec<ServiceView> {
    let down = BackendView {
        health: "down".into(),
        health_detail: "connection refused".into(),
        probe_us: None,
        slots: 0,
        active: false,
        inactive_reason: "down: connection refused".into(),
        ..backend("www", "web-2", "198.51.100.12")
    };
    vec![
        ServiceView {
            name: "dns".into(),
            address: "2001:db8::53".into(),
            protocol: "udp".into(),
            port: 0,
            mode: "l2".into(),
            gue_port: None,
            hash: "5-tuple".into(),
            when_all_down: "closed".into(),
            tracking: "all".into(),
            on_down: "keep".into(),
            drain_timeout_ms: 600_000,
            udp_settle_ms: 1_500,
            echo: false,
            quic: None,
            slow_start_ms: None,
            condition: "up".into(),
            health: None,
            backends: vec![BackendView {
                health: "unprobed".into(),
                probe_us: None,
                slow_start_percent: Some(25),
                ..backend("dns", "web-1", "2001:db8::1")
            }],
        },
        ServiceView {
            quic: None,
            name: "www".into(),
            address: "192.0.2.1".into(),
            protocol: "tcp".into(),
            port: 80,
            mode: "ipip".into(),
            gue_port: None,
            hash: "5-tuple".into(),
            when_all_down: "open".into(),
            tracking: "moved".into(),
            on_down: "reset".into(),
            drain_timeout_ms: 300_000,
            udp_settle_ms: 60_000,
            echo: true,
            slow_start_ms: Some(90_000),
            condition: "up".into(),
            health: Some(HealthView {
                kind: "tcp".into(),
                port: 80,
                interval_ms: 2_000,
                timeout_ms: 1_000,
                rise: 2,
                fall: 3,
                jitter_percent: 10,
            }),
            backends: vec![backend("www", "web-1", "198.51.100.11"), down],
        },
    ]
}

/// A drain under way.
pub fn drain(service: &str, backend: &str, flows: u64, safe: bool) -> DrainView {
    DrainView {
        service: service.into(),
        backend: backend.into(),
        address: "198.51.100.11".into(),
        reason: "drain".into(),
        since_seconds: 75,
        seconds_left: Some(225),
        flows,
        packets_per_second: 3.5,
        slots: 21_845,
        safe,
    }
}

fn drains() -> Vec<DrainView> {
    let removed = DrainView {
        reason: "removed".into(),
        address: "198.51.100.19".into(),
        seconds_left: None,
        packets_per_second: 0.0,
        ..drain("www", "web-9", 0, true)
    };
    let nameless = DrainView {
        service: String::new(),
        backend: String::new(),
        ..removed.clone()
    };
    vec![nameless, drain("www", "web-1", 1_234, false), removed]
}

pub fn digest() -> DigestView {
    let backend = |name: &str| BackendDigest {
        name: name.into(),
        address: "198.51.100.11".into(),
        weight: 100,
        drain: false,
        server_id: String::new(),
        availability: 65_536,
    };
    DigestView {
        node: DigestNode {
            hash_seed: 11,
            version: "0.1.0".into(),
            layout: 2,
        },
        services: vec![ServiceDigest {
            quic: String::new(),
            name: "www".into(),
            address: "192.0.2.1".into(),
            protocol: "tcp".into(),
            port: 80,
            mode: "ipip".into(),
            hash: "5-tuple".into(),
            flows: FlowsDigest::default(),
            table: "0123456789abcdef".into(),
            inputs: "fedcba9876543210".into(),
            backends: vec![backend("web-1"), backend("web-2")],
        }],
    }
}

fn history() -> Vec<RevisionView> {
    let revision = |revision, change: &str, summary: &str| RevisionView {
        revision,
        time: format!("2024-05-01T12:00:0{revision}Z"),
        change: change.into(),
        summary: summary.into(),
        current: false,
        problem: String::new(),
    };
    vec![
        RevisionView {
            current: true,
            ..revision(7, "rollback 5", "remove backend www/web-3, and 2 more")
        },
        RevisionView {
            time: String::new(),
            problem: "history/0000000006.json is damaged".into(),
            ..revision(6, "", "")
        },
        revision(5, "", ""),
    ]
}

/// The desired state of the fake.
pub fn state() -> StateSpec {
    let backend = |name: &str, address: &str| BackendSpec {
        name: name.into(),
        address: address.into(),
        weight: 100,
        drain: false,
        server_id: None,
    };
    StateSpec {
        services: vec![ServiceSpec {
            name: "www".into(),
            address: "192.0.2.1".into(),
            protocol: "tcp".into(),
            port: 80,
            mode: "ipip".into(),
            gue_port: None,
            hash: None,
            when_all_down: "open".into(),
            health: None,
            tracking: None,
            on_down: None,
            drain_timeout: None,
            udp_settle: None,
            slow_start: None,
            echo: false,
            quic: None,
            backends: vec![
                backend("web-1", "198.51.100.11"),
                backend("web-2", "198.51.100.12"),
            ],
        }],
    }
}

fn stats() -> Stats {
    let verdict = |name: &str, action: &str, description: &str, packets| VerdictStats {
        name: name.into(),
        action: action.into(),
        description: description.into(),
        packets,
    };
    Stats {
        verdicts: vec![
            verdict("forwarded", "forward", "Sent to a backend.", 1_234_567),
            verdict(
                "pass_fragment",
                "pass",
                "A fragment that names no service.",
                0,
            ),
        ],
        services: vec![ServiceStats {
            name: "www".into(),
            packets: 1_234_567,
            bytes: 98_765_432,
            backends: vec![BackendStats {
                name: "web-1".into(),
                packets: 1_234_567,
                bytes: 98_765_432,
            }],
        }],
        flows: FlowStats {
            entries: 5,
            capacity: 262_144,
            ..FlowStats::default()
        },
    }
}
