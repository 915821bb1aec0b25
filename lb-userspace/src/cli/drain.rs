//! `lbctl backend drain --wait`: watches a drain until the backend can be stopped. `Watch` decides what each look at the
//! drains means; the rest asks `lbd` and the clock.

use super::report::{Failure, grouped};
use crate::api::{
    client::Client,
    protocol::{DrainView, ErrorBody, ErrorCode},
};
use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines about the same, where lines cannot be rewritten.
const LINE: Duration = Duration::from_secs(5);
/// Looks without a word of the drain before it counts as ended: an `lbd` that has just started first waits for verdicts.
const PATIENCE: u32 = 15;
/// What counts as no time limit: a clock can hold it.
pub(super) const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Waits until a backend can be stopped, in one service or in all that have it. Tells how it goes on standard error.
/// Returns the drains as they were last seen.
pub(super) async fn wait(
    client: &Client,
    backend: String,
    service: Option<String>,
    limit: Option<Duration>,
) -> Result<Vec<DrainView>, Failure> {
    let mut watch = Watch::new(backend, service);
    let mut progress = Progress::new();
    let end = Instant::now() + limit.unwrap_or(FOREVER).min(FOREVER);
    let watching = async {
        loop {
            let drains = client
                .drains()
                .await
                .map_err(|gone| watch.unanswered(gone))?;
            match watch.look(&drains) {
                Outcome::Going => progress.say(&watch.line(), watch.news),
                Outcome::Safe => return Ok(()),
                Outcome::Ended(why) => return Err(Failure::from(why)),
            }
            sleep(LOOK).await;
        }
    };
    let result = tokio::select! {
        watched = timeout_at(end, watching) => watched.ok(),
        // A signal that cannot be waited for ends this process as it would have without.
        Ok(()) = tokio::signal::ctrl_c() => Some(Err(watch.goes_on("interrupted").into())),
    };
    progress.finish();
    match result {
        Some(result) => result.map(|()| watch.into_drains()),
        None => {
            let limit = humantime::format_duration(limit.unwrap_or(FOREVER));
            let late = format!("not safe to stop after {limit} ({})", watch.line());
            Err(watch.goes_on(&late).into())
        }
    }
}

/// What is said once all drains are safe.
pub(super) fn done(drains: &[DrainView]) -> String {
    let mut services: Vec<&str> = drains.iter().map(|drain| drain.service.as_str()).collect();
    services.dedup();
    let name = drains.first().map_or("", |drain| drain.backend.as_str());
    format!("safe to stop: {name} ({})\n", services.join(", "))
}

/// What a look at the drains means.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Going,
    Safe,
    Ended(ErrorBody),
}

/// Service and address: a backend whose address was changed is in a service twice, once as removed.
type Place = (String, String);

/// The drains of one backend, as they were last seen.
struct Watch {
    backend: String,
    service: Option<String>,
    seen: BTreeMap<Place, DrainView>,
    /// Looks that showed none yet.
    in_vain: u32,
    /// Whether the last look showed something new but for falling numbers.
    news: bool,
}

impl Watch {
    fn new(backend: String, service: Option<String>) -> Self {
        Self {
            backend,
            service,
            seen: BTreeMap::new(),
            in_vain: 0,
            news: false,
        }
    }

    fn look(&mut self, drains: &[DrainView]) -> Outcome {
        let ours: BTreeMap<Place, DrainView> = drains
            .iter()
            .filter(|drain| drain.backend == self.backend)
            .filter(|drain| {
                self.service
                    .as_ref()
                    .is_none_or(|name| *name == drain.service)
            })
            .map(|drain| {
                (
                    (drain.service.clone(), drain.address.clone()),
                    drain.clone(),
                )
            })
            .collect();
        // One that was removed goes for good once it is safe. Any other may have new flows by now.
        let ended = |(place, drain): &(&Place, &DrainView)| {
            let over = drain.safe && drain.reason == "removed";
            !over && !ours.contains_key(*place)
        };
        if let Some(((service, _), _)) = self.seen.iter().find(ended) {
            return Outcome::Ended(self.ended(&format!("in service `{service}` ")));
        }
        if self.seen.is_empty() && ours.is_empty() {
            self.in_vain += 1;
            self.news = false;
            return match self.in_vain < PATIENCE {
                true => Outcome::Going,
                false => Outcome::Ended(self.ended("")),
            };
        }
        let safe = |drains: &BTreeMap<Place, DrainView>| {
            drains.values().filter(|drain| drain.safe).count()
        };
        self.news = self.seen.len() != ours.len() || safe(&self.seen) != safe(&ours);
        self.seen.extend(ours);
        if self.seen.values().all(|drain| drain.safe) {
            Outcome::Safe
        } else {
            Outcome::Going
        }
    }

    fn into_drains(self) -> Vec<DrainView> {
        self.seen.into_values().collect()
    }

    /// How it goes, in a line.
    fn line(&self) -> String {
        if self.seen.is_empty() {
            return format!("{}: waiting for lbd to begin", self.backend);
        }
        let drains = || self.seen.values();
        let flows = drains().map(|drain| drain.flows).sum();
        let packets: f64 = drains().map(|drain| drain.packets_per_second).sum();
        let unsafe_left = drains()
            .filter(|drain| !drain.safe)
            .map(|drain| drain.seconds_left);
        let left = unsafe_left
            .max()
            .flatten()
            .map_or(String::new(), |seconds| {
                let span = humantime::format_duration(Duration::from_secs(seconds));
                format!(", at most {span} left")
            });
        let flows = grouped(flows);
        format!(
            "{}: {flows} flows, {packets:.1} packets/s{left}",
            self.backend
        )
    }

    fn ended(&self, place: &str) -> ErrorBody {
        let message = format!(
            "the drain of backend `{}` {place}was ended by somebody else, so it is not safe to stop: see `lbctl history`",
            self.backend
        );
        ErrorBody::new(ErrorCode::Conflict, message)
    }

    fn unanswered(&self, gone: ErrorBody) -> Failure {
        let message = format!(
            "whether `{}` is safe to stop is not known: {}",
            self.backend, gone.message
        );
        ErrorBody { message, ..gone }.into()
    }

    fn goes_on(&self, why: &str) -> ErrorBody {
        let name = &self.backend;
        let message = format!(
            "{why}; the drain of `{name}` goes on: `lbctl drains` shows it, `lbctl backend undrain {name}` ends it"
        );
        ErrorBody::new(ErrorCode::Failed, message)
    }
}

/// Lines about how it goes, on standard error.
pub(super) struct Progress {
    terminal: bool,
    last: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            last: None,
        }
    }

    /// On a terminal the line is rewritten; elsewhere it is written when there are news, and every few seconds.
    pub(super) fn say(&mut self, line: &str, news: bool) {
        let due = self.last.is_none_or(|last| last.elapsed() >= LINE);
        let text = match (self.terminal, news || due) {
            // Back to the start of the line, and clear it.
            (true, _) => format!("\r\x1b[K{line}"),
            (false, true) => format!("{line}\n"),
            (false, false) => return,
        };
        self.last = Some(Instant::now());
        // Nobody may be listening; the drain goes on all the same.
        let _ = io::stderr().write_all(text.as_bytes());
    }

    pub(super) fn finish(&self) {
        if self.terminal && self.last.is_some() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(service: &str, backend: &str, flows: u64, safe: bool) -> DrainView {
        DrainView {
            service: service.into(),
            backend: backend.into(),
            address: "198.51.100.11".into(),
            reason: "drain".into(),
            since_seconds: 3,
            seconds_left: Some(297),
            flows,
            packets_per_second: 1.25,
            slots: 17,
            safe,
        }
    }

    fn ended(outcome: Outcome) -> String {
        match outcome {
            Outcome::Ended(why) => why.message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_safe_once_it_is_in_every_service() {
        let mut watch = Watch::new("a".into(), None);
        let other = drain("www", "b", 9, false);
        let both = |www, dns| {
            [
                drain("www", "a", 5, www),
                other.clone(),
                drain("dns", "a", 7, dns),
            ]
        };
        assert_eq!(watch.look(&both(false, false)), Outcome::Going);
        assert_eq!(
            (watch.line().as_str(), watch.news),
            ("a: 12 flows, 2.5 packets/s, at most 4m 57s left", true)
        );
        assert_eq!(watch.look(&both(false, false)), Outcome::Going);
        assert!(!watch.news);
        assert_eq!(watch.look(&both(true, false)), Outcome::Going);
        assert!(watch.news);
        assert_eq!(watch.look(&both(true, true)), Outcome::Safe);
        assert_eq!(done(&watch.into_drains()), "safe to stop: a (dns, www)\n");
    }

    #[test]
    fn one_service_may_be_meant() {
        let mut watch = Watch::new("a".into(), Some("www".into()));
        let drains = [drain("www", "a", 0, true), drain("dns", "a", 7, false)];
        assert_eq!(watch.look(&drains), Outcome::Safe);
    }

    #[test]
    fn a_drain_that_disappears_was_ended() {
        let mut watch = Watch::new("a".into(), None);
        let other = || [drain("www", "b", 1, false)];
        for _ in 1..PATIENCE {
            assert_eq!(watch.look(&other()), Outcome::Going);
            assert_eq!(watch.line(), "a: waiting for lbd to begin");
        }
        assert!(ended(watch.look(&other())).contains("somebody else"));
        let (www, dns) = (drain("www", "a", 1, false), drain("dns", "a", 0, true));
        assert_eq!(watch.look(&[www.clone(), dns.clone()]), Outcome::Going);
        let said = ended(watch.look(std::slice::from_ref(&dns)));
        assert!(said.contains("in service `www` was ended"), "{said}");
        let said = ended(watch.look(&[www]));
        assert!(said.contains("in service `dns` was ended"), "{said}");
    }

    #[test]
    fn what_was_removed_may_disappear_once_it_is_safe() {
        let mut watch = Watch::new("a".into(), None);
        let www = |flows, safe| drain("www", "a", flows, safe);
        let removed = |safe| DrainView {
            reason: "removed".into(),
            address: "198.51.100.99".into(),
            ..drain("www", "a", 1, safe)
        };
        assert_eq!(watch.look(&[www(5, false), removed(true)]), Outcome::Going);
        assert_eq!(watch.look(&[www(3, false)]), Outcome::Going);
        assert_eq!(watch.look(&[www(0, true)]), Outcome::Safe);
        assert_eq!(done(&watch.into_drains()), "safe to stop: a (www)\n");
        let mut watch = Watch::new("a".into(), None);
        assert_eq!(watch.look(&[www(5, false), removed(false)]), Outcome::Going);
        ended(watch.look(&[www(5, false)]));
    }

    #[test]
    fn an_unknown_time_is_not_said() {
        let mut watch = Watch::new("a".into(), None);
        let unknown = DrainView {
            seconds_left: None,
            ..drain("www", "a", 1_000, false)
        };
        watch.look(&[unknown]);
        assert_eq!(watch.line(), "a: 1,000 flows, 1.2 packets/s");
    }
}
