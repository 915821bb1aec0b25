//! Earlier revisions of the desired state: a file for each of the newest ones, to look at and to go back to.
//!
//! **Invariant.** The file of a revision is on disk before the revision is in force, so a file with a higher number than
//! the revision in force is of a change that never was: it is not shown, and overwritten.

use super::{FORMAT, new, replace_file};
use crate::{api::protocol::RevisionView, spec::StateSpec};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, File},
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};
use tracing::warn;

/// Revisions that are kept, the one in force included.
pub const KEPT: u64 = 100;
pub(super) const DIRECTORY: &str = "history";

/// How a revision came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The command that made it, such as `backend add`; empty when not known.
    pub change: String,
    /// What it changed, in one line; empty when not known.
    pub summary: String,
}

/// A revision as on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    revision: u64,
    /// RFC 3339 in UTC.
    time: String,
    change: String,
    summary: String,
    state: StateSpec,
}

/// The revisions on disk, seen from the one in force. Cheap to clone; may be read on another thread.
#[derive(Clone, Debug)]
pub struct History {
    directory: PathBuf,
    /// The revision in force; none while the state cannot be read: then every file counts.
    current: Option<u64>,
}

/// Why a revision cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is not kept: a sentence that says which are.
    NotKept(String),
    /// Its file cannot be read: a sentence that says why.
    Unreadable(String),
}

impl History {
    pub(super) fn new(state_directory: &Path, current: Option<u64>) -> Self {
        Self {
            directory: state_directory.join(DIRECTORY),
            current,
        }
    }

    /// The revisions that are kept, newest first. This reads every file.
    ///
    /// # Errors
    /// When the directory cannot be read. A file that cannot be read is shown as such.
    pub fn list(&self) -> Result<Vec<RevisionView>> {
        let view = |revision| match self.read(revision) {
            Ok(record) => record.map(|record| RevisionView {
                revision,
                time: record.time,
                change: record.change,
                summary: record.summary,
                current: self.current == Some(revision),
                problem: String::new(),
            }),
            Err(problem) => Some(RevisionView {
                revision,
                time: String::new(),
                change: String::new(),
                summary: String::new(),
                current: self.current == Some(revision),
                problem,
            }),
        };
        Ok(self
            .revisions()?
            .into_iter()
            .rev()
            .filter_map(view)
            .collect())
    }

    /// The state of a revision.
    ///
    /// # Errors
    /// Why it cannot be had, in words that say what can.
    pub fn state(&self, revision: u64) -> Result<StateSpec, Missing> {
        let unreadable = |problem: String| {
            Missing::Unreadable(format!(
                "revision {revision} cannot be restored: {problem}; `lbctl history` shows which can"
            ))
        };
        let kept = self.revisions();
        let kept = kept.map_err(|problem| unreadable(format!("{problem:#}")))?;
        let record = if kept.contains(&revision) {
            self.read(revision).map_err(unreadable)?
        } else {
            None
        };
        record.map(|record| record.state).ok_or_else(|| {
            let range = match (kept.first(), kept.last()) {
                (Some(first), Some(last)) if first == last => format!("only {first} is kept"),
                (Some(first), Some(last)) => format!("{first} to {last} are kept"),
                _ => "none is kept yet".into(),
            };
            Missing::NotKept(format!(
                "there is no revision {revision} to go back to: {range} (see `lbctl history`)"
            ))
        })
    }

    /// The newest revision that has a file, whether it was ever in force or not.
    pub fn newest(&self) -> Option<u64> {
        let all = Self {
            current: None,
            ..self.clone()
        };
        all.revisions().ok()?.last().copied()
    }

    /// Numbers of the files that count.
    fn revisions(&self) -> Result<BTreeSet<u64>> {
        let unreadable = || format!("{} cannot be read", self.directory.display());
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error).with_context(unreadable),
        };
        let mut revisions = BTreeSet::new();
        for entry in entries {
            let name = entry.with_context(unreadable)?.file_name();
            revisions.extend(name.to_str().and_then(number));
        }
        if let Some(current) = self.current {
            revisions.retain(|revision| *revision <= current);
        }
        Ok(revisions)
    }

    fn path(&self, revision: u64) -> PathBuf {
        self.directory.join(format!("{revision:010}.json"))
    }

    /// A revision's file; nothing when there is none.
    fn read(&self, revision: u64) -> Result<Option<Record>, String> {
        let path = self.path(revision);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
        };
        let record: Record = serde_json::from_slice(&text)
            .map_err(|error| format!("{} is damaged: {error}", path.display()))?;
        if record.format != FORMAT {
            return Err(format!(
                "{} has format {}, this lbd reads format {FORMAT}: it was written by another version",
                path.display(),
                record.format
            ));
        }
        if record.revision != revision {
            return Err(format!(
                "{} is damaged: it says it is revision {}",
                path.display(),
                record.revision
            ));
        }
        Ok(Some(record))
    }

    /// Writes a revision's file, in place of one that is there.
    pub(super) fn write(
        &self,
        revision: u64,
        state: &StateSpec,
        time: SystemTime,
        origin: &Origin,
    ) -> Result<()> {
        let path = self.path(revision);
        let record = Record {
            format: FORMAT,
            revision,
            time: humantime::format_rfc3339_seconds(time).to_string(),
            change: origin.change.clone(),
            summary: origin.summary.clone(),
            state: state.clone(),
        };
        // Without blanks: a hundred large states are on disk.
        let text = serde_json::to_vec(&record).context("writing the state as JSON")?;
        let written = self.make_directory().and_then(|()| {
            replace_file(&path, &text)?;
            File::open(&self.directory)?.sync_all()
        });
        if written.is_err() {
            // What was written takes the room that the next attempt needs. It may not be there.
            let _ = fs::remove_file(new(&path));
        }
        written.with_context(|| format!("writing {}", path.display()))
    }

    fn make_directory(&self) -> std::io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&self.directory)
    }

    /// Whether the file of a revision holds this state.
    pub(super) fn has(&self, revision: u64, state: &StateSpec) -> bool {
        matches!(self.read(revision), Ok(Some(record)) if record.state == *state)
    }

    /// Removes the file of a revision that did not come into force.
    pub(super) fn forget(&self, revision: u64) {
        // What is left of it is not shown, and overwritten by the next attempt.
        let _ = fs::remove_file(self.path(revision));
    }

    /// Removes the files of revisions that are too old to be kept.
    pub(super) fn prune(&self, current: u64) {
        let old = self
            .revisions()
            .unwrap_or_default()
            .into_iter()
            .take_while(|revision| revision + KEPT <= current);
        for revision in old {
            if let Err(problem) = fs::remove_file(self.path(revision)) {
                warn!(%problem, file = %self.path(revision).display(), "an old revision could not be removed");
            }
        }
    }
}

/// The revision whose file has this name.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    let plain = digits.len() >= 10 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}
