//! A trace under way: the program that traces is attached, and what it records goes to one client.
//!
//! **Invariant.** The plain program comes back when the client is gone, when it has not read for ten seconds, and when
//! the daemon stops. If the daemon is killed instead, the next one puts its own plain program in, as ever.

use super::{
    core::Core,
    explain,
    look::{Loaded, failed, invalid},
    run::Daemon,
};
use crate::{
    api::{
        handle::Reply,
        path::{TraceLine, TraceRequest, TraceStatus, TracedPacket},
        protocol::{ErrorBody, ErrorCode},
    },
    dataplane::{DataPlane, Tracer, clock::monotonic},
    explain::hex,
};
use anyhow::Result;
use lb_common::{
    flow::slot_of,
    trace::{Event, Record, SNAP},
    verdict::Verdict,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// What a client gets.
pub type Lines = mpsc::Receiver<TraceLine>;
/// Where the answer goes.
pub(super) type TraceReply = Reply<Result<Lines, ErrorBody>>;

/// How often what was recorded is taken.
pub(super) const POLL: Duration = Duration::from_millis(50);
/// Lines that wait for the client at most.
const QUEUE: usize = 4_096;
/// Events taken at once at most, so that the loop goes on.
const BATCH: usize = 2_048;
/// How long a client may leave its lines unread.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long names of services and backends are kept.
const NAMES: Duration = Duration::from_secs(1);

/// A trace under way.
pub(super) struct Session {
    tracer: Tracer,
    lines: mpsc::Sender<TraceLine>,
    sent: u64,
    /// Events that the client had no room for.
    unread: u64,
    /// Since when it has had no room.
    full: Option<Instant>,
    /// When the status was last said.
    said: Instant,
    names: Names,
}

/// Names by index, as they were a moment ago.
struct Names {
    at: Instant,
    services: BTreeMap<u32, String>,
    backends: BTreeMap<u32, String>,
    interfaces: BTreeMap<u32, String>,
    /// Nanoseconds since 1970 when CLOCK_MONOTONIC began.
    epoch: u64,
}

impl Daemon {
    /// Begins a trace, unless there is one.
    pub(super) fn on_trace(&mut self, request: &TraceRequest, reply: TraceReply) {
        let refusal = if self.looking.is_tracing() {
            Some(
                "a trace is under way already: wait for its end, or end it (one at a time is traced)",
            )
        } else if self.fresh {
            Some(
                "the program is not attached yet; see `lbctl status`, and try again in a few seconds",
            )
        } else {
            None
        };
        if let Some(message) = refusal {
            drop(reply.send(Err(ErrorBody::new(ErrorCode::Conflict, message))));
            return;
        }
        match self.core.filter(request) {
            Err(problem) => drop(reply.send(Err(invalid(problem)))),
            Ok(filter) => {
                self.looking.begin(reply);
                let (loader, loaded) = (self.core.plane.loader(), self.looking.loaded.clone());
                tokio::task::spawn_blocking(move || {
                    drop(loaded.blocking_send(Loaded::Tracer(loader.tracer(&filter))));
                });
            }
        }
    }

    /// Puts a program that traces in place and tells the client.
    pub(super) fn on_tracer(&mut self, tracer: Result<Tracer>) {
        let Some(reply) = self.looking.pending.take() else {
            return;
        };
        let attached = tracer.map(|mut tracer| {
            let attachments = self.core.plane.trace(&mut tracer);
            self.looking.due |= self.take_attachments(attachments);
            tracer
        });
        match attached {
            Err(problem) => drop(reply.send(Err(failed(&problem)))),
            Ok(tracer) => {
                info!("a trace has begun");
                let (lines, receiver) = mpsc::channel(QUEUE);
                self.looking.session = Some(Session::new(tracer, lines, self.core.names()));
                if reply.send(Ok(receiver)).is_err() {
                    self.end_trace();
                }
            }
        }
    }

    /// Hands on what was recorded; ends the trace when nobody wants it any more.
    pub(super) fn on_trace_tick(&mut self) {
        let Some(session) = &mut self.looking.session else {
            return;
        };
        if session.names.at.elapsed() > NAMES {
            session.names = self.core.names();
        }
        if !session.hand_on() {
            self.end_trace();
        }
    }

    /// Puts the plain program back, if another stands in for it.
    pub(super) fn end_trace(&mut self) {
        let Some(session) = self.looking.session.take() else {
            return;
        };
        let attachments = self.core.plane.end_trace();
        self.looking.due |= self.take_attachments(attachments);
        info!(packets = session.sent, "the trace has ended");
    }
}

impl Session {
    fn new(tracer: Tracer, lines: mpsc::Sender<TraceLine>, names: Names) -> Self {
        Self {
            tracer,
            lines,
            sent: 0,
            unread: 0,
            full: None,
            said: Instant::now(),
            names,
        }
    }

    /// Sends what has been recorded, and once a second how it goes; whether the client is still there.
    fn hand_on(&mut self) -> bool {
        for _ in 0..BATCH {
            let Some(event) = self.tracer.take() else {
                break;
            };
            let line = TraceLine::Packet(Box::new(self.names.packet(&event)));
            if self.send(line) {
                self.sent += 1;
            } else {
                self.unread += 1;
            }
        }
        if self.said.elapsed() >= Duration::from_secs(1) {
            self.said = Instant::now();
            let lost = self.tracer.lost().unwrap_or_else(|error| {
                warn!("what a trace has lost cannot be read: {error:#}");
                0
            });
            // It is also how a client that has gone is noticed when there are no packets.
            self.send(TraceLine::Status(TraceStatus {
                packets: self.sent,
                lost: lost + self.unread,
            }));
        }
        let is_stuck = self.full.is_some_and(|since| since.elapsed() > PATIENCE);
        !is_stuck && !self.lines.is_closed()
    }

    fn send(&mut self, line: TraceLine) -> bool {
        let is_sent = self.lines.try_send(line).is_ok();
        if is_sent {
            self.full = None;
        } else {
            self.full.get_or_insert_with(Instant::now);
        }
        is_sent
    }
}

impl Names {
    fn packet(&self, event: &Event) -> TracedPacket {
        let record = &event.record;
        let reached = |stage| record.reached(stage);
        let interface = self.interfaces.get(&record.interface).cloned();
        let service = self.services.get(&record.service).cloned();
        let backend = self.backends.get(&record.backend).cloned();
        let bytes = |frame: &[u8; SNAP], length: u32| {
            hex::encode(frame.get(..length as usize).unwrap_or(frame))
        };
        TracedPacket {
            time_ns: self.epoch.saturating_add(record.time),
            interface: interface.unwrap_or_else(|| format!("index {}", record.interface)),
            verdict: Verdict::from_number(record.verdict).name().into(),
            flow: explain::flow_view(record),
            service: reached(Record::SERVICE).then(|| service.unwrap_or_default()),
            slot: reached(Record::SLOT).then(|| slot_of(record.hash)),
            backend: reached(Record::BACKEND)
                .then(|| backend.unwrap_or_else(|| format!("index {}", record.backend))),
            length_in: record.length_in,
            length_out: record.length_out,
            input: bytes(&event.before, record.length_in),
            output: bytes(&event.after, record.length_out),
        }
    }
}

impl<P: DataPlane> Core<P> {
    fn names(&self) -> Names {
        let indexes = self.mirror.services.values().map(|entry| entry.index);
        let attached = self.attachments().iter();
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Names {
            at: Instant::now(),
            services: indexes
                .filter_map(|index| Some((index, self.service_name(index)?)))
                .collect(),
            backends: self.backend_names(),
            interfaces: attached
                .map(|found| (found.index, found.name.clone()))
                .collect(),
            epoch: unix.saturating_sub(monotonic()).as_nanos() as u64,
        }
    }
}
