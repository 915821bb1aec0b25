//! What the demo writes: plain text of at most 100 columns, bold headings on a terminal only. A closed output is no
//! reason to stop: the demo has things to clean up.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
};

/// Columns of the longest bar.
const BAR: usize = 50;

/// Writes a line or several.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Announces an act.
pub(super) fn heading(text: &str) {
    if io::stdout().is_terminal() {
        say(&format!("\n\x1b[1m== {text} ==\x1b[0m"));
    } else {
        say(&format!("\n== {text} =="));
    }
}

/// A command as a person would type it, and what it answered.
pub(super) fn command(typed: &str, answer: &str) {
    say(&format!("  $ {typed}"));
    for line in answer.trim_end().lines() {
        say(&format!("    {line}"));
    }
}

/// A bar for each of `names`, with its count; zero for one without.
pub(super) fn bars<'a>(names: impl Iterator<Item = &'a str>, counts: &BTreeMap<String, usize>) {
    let total: usize = counts.values().sum();
    let most = counts.values().copied().max().unwrap_or_default().max(1);
    for name in names {
        let count = counts.get(name).copied().unwrap_or_default();
        let percent = 100.0 * count as f64 / total.max(1) as f64;
        say(&format!(
            "  {name:<10} {count:>6} {percent:>5.1} %  {}",
            "#".repeat(count * BAR / most)
        ));
    }
}

/// Counts in words: `12 connection refused, 1 timed out`, or `none`.
pub(super) fn in_words(counts: &BTreeMap<String, usize>) -> String {
    if counts.is_empty() {
        return "none".into();
    }
    counts
        .iter()
        .map(|(cause, count)| format!("{count} {cause}"))
        .collect::<Vec<_>>()
        .join(", ")
}
