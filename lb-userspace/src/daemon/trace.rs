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
    plan::target::service_key,
    problem::Problem,
};
use anyhow::Result;
use lb_common::{
    address::Address,
    flow::slot_of,
    trace::{Event, Filter, Record, SNAP},
    verdict::{Action, Verdict},
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
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
/// Packets a second on a CPU, unless the client says otherwise.
const LIMIT: u32 = 1_000;

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
        let attached = tracer.and_then(|mut tracer| {
            let attachments = self.core.plane.trace(&mut tracer);
            self.looking.due |= self.take_attachments(attachments);
            Ok(tracer)
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
            let Some(event) = self.tracer.next() else {
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
            verdict: explain::verdict(record.verdict).name().into(),
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

    /// What the program is to trace.
    fn filter(&self, request: &TraceRequest) -> Result<Filter, Problem> {
        let service = match &request.service {
            None => Filter::ANY_SERVICE,
            Some(name) => self.service_called(name)?,
        };
        let (source, mask) = match &request.source {
            None => Default::default(),
            Some(text) => prefix(text)?,
        };
        let sample = request.sample.unwrap_or(1);
        if sample == 0 {
            let hint = "choose 1 for every packet, 100 for one in a hundred";
            return Err(Problem::new("sample", sample, "not a share", hint));
        }
        Ok(Filter {
            source,
            mask,
            verdicts: verdicts(request.reason.as_deref().unwrap_or("all"))?,
            service,
            sample,
            limit: request.limit.unwrap_or(LIMIT),
            zero: 0,
        })
    }

    fn service_called(&self, name: &str) -> Result<u32, Problem> {
        let mut services = self.state.services.values();
        let index = services
            .find(|service| service.name.to_string() == name)
            .and_then(|service| self.mirror.service_index(&service_key(service)));
        index.ok_or_else(|| {
            Problem::new(
                "service",
                name,
                "no such service in the data plane",
                "`lbctl service list` shows all",
            )
        })
    }
}

/// Address and mask of a prefix, or of a single address.
fn prefix(text: &str) -> Result<(Address, Address), Problem> {
    let refused = || {
        Problem::new(
            "source",
            text,
            "neither an address nor a prefix",
            "give one such as 198.51.100.9, 198.51.100.0/24 or 2001:db8::/32",
        )
    };
    let (address, bits) = text
        .split_once('/')
        .map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| refused())?;
    let most: u32 = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        None => most,
        Some(bits) => bits
            .parse()
            .ok()
            .filter(|bits| *bits <= most)
            .ok_or_else(refused)?,
    };
    // IPv4 is held as the last 32 bits of a mapped IPv6 address.
    let mask = u128::MAX.checked_shl(most - bits).unwrap_or(0);
    let mask = Address::from(IpAddr::from(mask.to_be_bytes()));
    let mut source = Address::from(address);
    for (word, mask) in source.0.iter_mut().zip(mask.0) {
        *word &= mask;
    }
    Ok((source, mask))
}

/// A bit for each verdict that a list names.
fn verdicts(text: &str) -> Result<u64, Problem> {
    let mut wanted = 0;
    for word in text.split(',').map(str::trim) {
        let named = |verdict: &&Verdict| match word {
            "all" => true,
            "drops" => verdict.action() == Action::Drop,
            "passes" => verdict.action() == Action::Pass,
            name => verdict.name() == name,
        };
        let bits = Verdict::ALL
            .iter()
            .filter(named)
            .map(|verdict| 1_u64 << *verdict as u32);
        let bits: u64 = bits.sum();
        if bits == 0 {
            return Err(Problem::new(
                "reason",
                word,
                "no such verdict",
                "choose all, drops, passes, or names from `lbctl stats --all`, separated by commas",
            ));
        }
        wanted |= bits;
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_those_of_both_families() {
        let wants = |text: &str, address: &str| {
            let (source, mask) = prefix(text).unwrap();
            let record = Record {
                source: Address::from(address.parse::<IpAddr>().unwrap()),
                stages: Record::IP,
                ..Record::default()
            };
            let filter = Filter {
                source,
                mask,
                verdicts: u64::MAX,
                service: Filter::ANY_SERVICE,
                ..Filter::default()
            };
            filter.wants(&record)
        };
        for (text, inside, outside) in [
            ("198.51.100.9", "198.51.100.9", "198.51.100.8"),
            ("198.51.100.77/25", "198.51.100.1", "198.51.100.129"),
            ("0.0.0.0/0", "9.9.9.9", "2001:db8::1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
        ] {
            assert!(wants(text, inside) && !wants(text, outside), "{text}");
        }
        assert!(wants("::/0", "9.9.9.9") && wants("::/0", "::1"));
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0",
            "fd00::/129",
            "www",
        ] {
            assert_eq!(prefix(text).unwrap_err().field, "source", "{text}");
        }
    }

    #[test]
    fn reasons_are_verdicts_or_many() {
        let bit = |verdict: Verdict| 1_u64 << verdict as u32;
        assert_eq!(verdicts("all").unwrap().count_ones(), Verdict::COUNT);
        let two = bit(Verdict::DropTooBig) | bit(Verdict::Forwarded);
        assert_eq!(verdicts("drop_too_big, forwarded"), Ok(two));
        let drops = verdicts("drops").unwrap();
        assert_ne!(drops & bit(Verdict::DropNoBackend), 0);
        assert_eq!(drops & verdicts("passes").unwrap(), 0);
        for text in ["", "drop", "drops,", "Forwarded"] {
            assert_eq!(verdicts(text).unwrap_err().field, "reason", "{text}");
        }
    }
}
