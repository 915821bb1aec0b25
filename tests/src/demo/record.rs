//! What the demo saw: its measurements, and everything that was not as it should be.

use super::screen::{heading, in_words, say};
use crate::{
    http::Download,
    scenario::Scenario,
    traffic::{Sample, failures},
};
use anyhow::Result;
use std::{collections::BTreeMap, time::Duration};

/// Filled by the acts in their order.
#[derive(Debug, Default)]
pub(super) struct Record {
    requests: usize,
    failed: BTreeMap<String, usize>,
    wrong: Vec<String>,
    /// From the kill of a backend to the moment from which it got no more traffic.
    pub(super) noticed: Duration,
    /// From the start of its web server to the moment from which it got traffic again.
    pub(super) returned: Duration,
    /// The download during which `lbd` was killed and started again.
    pub(super) download: Option<Download>,
}

impl Record {
    /// Counts requests, of which at most `may_fail` may have failed.
    pub(super) fn requests<'a>(
        &mut self,
        samples: impl IntoIterator<Item = &'a Sample> + Clone,
        may_fail: usize,
        when: &str,
    ) {
        self.requests += samples.clone().into_iter().count();
        let failed = failures(samples);
        self.expect(failed.values().sum::<usize>() <= may_fail, || {
            format!("requests failed ({when}): {}", in_words(&failed))
        });
        for (cause, count) in failed {
            *self.failed.entry(format!("{cause} ({when})")).or_default() += count;
        }
    }

    /// Notes what is wrong if `fact` is not true.
    pub(super) fn expect(&mut self, fact: bool, wrong: impl FnOnce() -> String) {
        if !fact {
            self.wrong.push(wrong());
        }
    }

    /// Writes the summary; whether everything was as it should be.
    ///
    /// # Errors
    /// When `lbctl stats` fails.
    pub(super) fn summary(mut self, scenario: &Scenario) -> Result<bool> {
        let stats = scenario.node.stats()?;
        for verdict in stats
            .verdicts
            .iter()
            .filter(|verdict| verdict.action == "drop" && verdict.packets > 0)
        {
            self.wrong.push(format!(
                "{} packets were dropped: {}",
                verdict.packets, verdict.description
            ));
        }
        heading("Summary");
        say(&format!(
            "  requests          {}, of them failed: {}",
            self.requests,
            in_words(&self.failed)
        ));
        say(&format!(
            "  dead backend      without traffic after {} ms",
            self.noticed.as_millis()
        ));
        say(&format!(
            "  backend back      with traffic after {} ms",
            self.returned.as_millis()
        ));
        if let Some(Download {
            bytes,
            time,
            longest_pause,
        }) = self.download
        {
            say(&format!(
                "  download          {} MB verified in {:.1} s, longest pause {} ms",
                bytes / 1_000_000,
                time.as_secs_f64(),
                longest_pause.as_millis()
            ));
        }
        super::screen::command("lbctl stats", &scenario.node.ok("stats")?);
        if self.wrong.is_empty() {
            say("\nEverything was as it should be.");
        } else {
            say("\nNot everything was as it should be:");
            self.wrong
                .iter()
                .for_each(|wrong| say(&format!("  - {wrong}")));
        }
        Ok(self.wrong.is_empty())
    }
}
