//! What a run found, as JSON and in words.

use super::{
    ledger::{Broken, Causes, Happened, Ledger, locked},
    plan::Kind,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The flood and what it met.
#[derive(Clone, Copy, Debug)]
pub(super) struct FloodReport {
    pub(super) packets: u64,
    pub(super) seconds: f64,
    /// Packets that the balancers forwarded meanwhile, the other traffic with them.
    pub(super) forwarded: u64,
    /// Entries of the flow tables.
    pub(super) entries_before: usize,
    pub(super) entries_after: usize,
}

impl FloodReport {
    fn pps(&self) -> f64 {
        self.packets as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// A run that has ended.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) seconds: f64,
    pub(super) asked: usize,
    pub(super) established: usize,
    pub(super) open_at_end: usize,
    pub(super) flows: u64,
    pub(super) flood: Option<FloodReport>,
    /// Entries of the flow tables after the last event; `None` when they could not be read.
    pub(super) flow_entries_at_end: Option<usize>,
    pub(super) error: Option<String>,
}

impl Report {
    /// Whether all was well.
    pub(super) fn good(&self, ledger: &Ledger) -> bool {
        self.error.is_none()
            && self.established >= self.asked
            && locked(&ledger.broken).is_empty()
            && locked(&ledger.moved).is_empty()
    }

    /// The report as JSON.
    pub(super) fn json(&self, ledger: &Ledger) -> Value {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        // Before the locks are taken here.
        let good = self.good(ledger);
        let events = locked(&ledger.events);
        let (broken, moved) = (locked(&ledger.broken), locked(&ledger.moved));
        json!({
            "seed": self.seed,
            "seconds": rounded(self.seconds),
            "good": good,
            "error": self.error,
            "connections_asked": self.asked,
            "connections": self.established,
            "connections_open_at_end": self.open_at_end,
            "connections_opened": get(&ledger.opened),
            "bytes_checked": get(&ledger.bytes),
            "requests": get(&ledger.requests),
            "broken": broken.len(),
            "broken_list": broken.iter().map(broken_json).collect::<Vec<_>>(),
            "udp_flows": self.flows,
            "udp_answers": get(&ledger.udp_answers),
            "udp_unanswered": get(&ledger.udp_unanswered),
            "udp_rehomed": get(&ledger.udp_rehomed),
            "udp_moved": moved.len(),
            "udp_moved_list": moved.iter().map(broken_json).collect::<Vec<_>>(),
            "expected_losses": get(&ledger.expected_losses),
            "request_failures": *locked(&ledger.request_failures),
            "request_failures_expected": *locked(&ledger.request_failures_expected),
            "open_failures": *locked(&ledger.open_failures),
            "events": events.len(),
            "events_by_kind": by_kind(&events),
            "event_list": events.iter().map(|event| json!({
                "at": rounded(event.at), "kind": event.kind, "words": event.words,
            })).collect::<Vec<_>>(),
            "flow_entries_at_end": self.flow_entries_at_end,
            "flood": self.flood.map(|flood| json!({
                "packets": flood.packets,
                "seconds": rounded(flood.seconds),
                "pps": flood.pps().round(),
                "forwarded": flood.forwarded,
                "flow_entries_before": flood.entries_before,
                "flow_entries_after": flood.entries_after,
            })),
        })
    }

    /// The report in words.
    pub(super) fn words(&self, ledger: &Ledger) -> String {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let events = locked(&ledger.events);
        let kinds: Vec<String> = by_kind(&events)
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        let mut text = format!(
            "
seed                {}
time                {:.1} s
connections         {} of {} established, {} open at the end, {} opened in all
bytes checked       {}
broken              {}
expected losses     {} (their server was killed)
UDP flows           {}, moved: {}, rehomed after a kill: {}; {} answers, {} datagrams unanswered
requests            {}, failed: {}; while a killed server was not noticed yet: {}
not opened at once  {}
events              {}: {}
flow entries at end {}
",
            self.seed,
            self.seconds,
            self.established,
            self.asked,
            self.open_at_end,
            get(&ledger.opened),
            get(&ledger.bytes),
            locked(&ledger.broken).len(),
            get(&ledger.expected_losses),
            self.flows,
            locked(&ledger.moved).len(),
            get(&ledger.udp_rehomed),
            get(&ledger.udp_answers),
            get(&ledger.udp_unanswered),
            get(&ledger.requests),
            causes(&locked(&ledger.request_failures)),
            causes(&locked(&ledger.request_failures_expected)),
            causes(&locked(&ledger.open_failures)),
            events.len(),
            kinds.join(", "),
            self.flow_entries_at_end
                .map_or("not known".into(), |entries| entries.to_string()),
        );
        if let Some(flood) = &self.flood {
            text += &flood.words();
        }
        if let Some(error) = &self.error {
            text += &format!("error               {error}\n");
        }
        text
    }
}

impl FloodReport {
    /// In words.
    pub(super) fn words(&self) -> String {
        format!(
            "SYN flood           {} packets in {:.1} s, {:.0} packets/s; {} forwarded; flow-table entries before {}, after {}\n",
            self.packets,
            self.seconds,
            self.pps(),
            self.forwarded,
            self.entries_before,
            self.entries_after,
        )
    }
}

fn by_kind(events: &[Happened]) -> BTreeMap<&'static str, usize> {
    let count = |kind: &Kind| {
        let of_kind = events.iter().filter(|event| event.kind == kind.name());
        (kind.name(), of_kind.count())
    };
    Kind::ALL.iter().map(count).collect()
}

fn causes(causes: &Causes) -> String {
    if causes.is_empty() {
        return "none".into();
    }
    let words = causes
        .iter()
        .map(|(cause, count)| format!("{count} {cause}"));
    words.collect::<Vec<_>>().join(", ")
}

fn broken_json(broken: &Broken) -> Value {
    json!({
        "at": rounded(broken.at),
        "flow": broken.flow,
        "backend": broken.backend,
        "age": rounded(broken.age),
        "cause": broken.cause,
        "after": broken.after,
    })
}

/// Milliseconds are enough.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1_000.0).round() / 1_000.0
}
