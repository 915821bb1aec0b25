//! What the demo writes: plain text of at most 100 columns, bold headings on a terminal only. A closed output is no
//! reason to stop: the demo has things to clean up.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
};

/// Columns of a terminal.
const WIDTH: usize = 100;
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
    say(&format!("  $ {}", folded(typed)));
    for line in answer.trim_end().lines() {
        say(format!("    {line}").trim_end());
    }
}

/// A command folded as a shell reads it, at options, into lines of at most [`WIDTH`] columns with what stands before.
fn folded(typed: &str) -> String {
    let mut lines = String::new();
    let mut column = 4;
    for (i, option) in typed.split(" --").enumerate() {
        let option = if i == 0 {
            option.to_owned()
        } else {
            format!(" --{option}")
        };
        if i > 0 && column + option.len() > WIDTH - 2 {
            lines += " \\\n     ";
            column = 5;
        }
        column += option.len();
        lines += &option;
    }
    lines
}

/// A bar for each of `names`, with its count; zero for one without.
pub(super) fn bars<'a>(names: impl Iterator<Item = &'a str>, counts: &BTreeMap<String, usize>) {
    let total: usize = counts.values().sum();
    let most = counts.values().copied().max().unwrap_or_default().max(1);
    for name in names {
        let count = counts.get(name).copied().unwrap_or_default();
        let percent = 100.0 * count as f64 / total.max(1) as f64;
        let bar = "#".repeat(count * BAR / most);
        say(format!("  {name:<10} {count:>6} {percent:>5.1} %  {bar}").trim_end());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_folded_at_its_options_and_loses_nothing() {
        assert_eq!(
            folded("lbctl service list --output json"),
            "lbctl service list --output json"
        );
        let long = format!(
            "lbctl service add www {}",
            "--health-interval 200ms ".repeat(8).trim_end()
        );
        let lines = folded(&long);
        assert!(
            lines.lines().count() > 1 && lines.lines().all(|line| line.len() + 4 <= WIDTH),
            "{lines}"
        );
        assert_eq!(
            lines
                .replace("\\\n", "")
                .split_whitespace()
                .collect::<Vec<_>>(),
            long.split_whitespace().collect::<Vec<_>>()
        );
    }
}
