//! The desired state on disk: one revisioned document, written whole and atomically, with a copy of the same revision
//! beside it, so that a damaged file costs nothing. The revisions before it are in [`history`].
//!
//! **Invariants.** A document is on disk (file and directory synced) before it is in force. A damaged file is never
//! overwritten: it is moved aside and said. Only one daemon uses a directory, held by a lock.

pub mod history;

use crate::{announce::drain::Phase, spec::StateSpec};
use anyhow::{Context, Result, bail};
use history::{History, Origin};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};
use tracing::warn;

/// Version of the document's shape.
const FORMAT: u32 = 1;
const MAIN: &str = "state.json";
const COPY: &str = "state.copy.json";
const LOCK: &str = "lbd.lock";
const SEED: &str = "hash_seed";
const NODE_DRAIN: &str = "node_drain";

/// The desired state with its revision, as on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    format: u32,
    /// Counts changes; 0 before the first.
    pub revision: u64,
    /// The state as it was given.
    pub state: StateSpec,
}

impl Document {
    /// The document of a revision.
    pub fn new(revision: u64, state: StateSpec) -> Self {
        Self {
            format: FORMAT,
            revision,
            state,
        }
    }
}

/// What was found on disk.
#[derive(Debug)]
pub enum Loaded {
    /// Nothing: a new node.
    Nothing,
    /// The state.
    Good(Document),
    /// The state, from the copy; the text says what is wrong with the main file and where it went.
    Recovered(Document, String),
    /// Files are there and none can be read; the text says why and what to do.
    Unreadable(String),
}

/// The directory that holds the state.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the directory, creating it if missing, and locks it.
    ///
    /// # Errors
    /// When it cannot be created or written, or another daemon holds it.
    pub fn open(directory: &Path) -> Result<Self> {
        let unusable = |what: &str| {
            format!(
                "state_directory {} {what}; name a directory that lbd may write to, on a file system that is not \
                 read-only and not full",
                directory.display()
            )
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)
            .with_context(|| unusable("cannot be made"))?;
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .mode(0o640)
            .open(&path)
            .with_context(|| unusable("cannot be written"))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, _)) => {
                let mut holder = String::new();
                // The holder's number is a courtesy: an unreadable one does not change the refusal.
                let _ = file.read_to_string(&mut holder);
                bail!(
                    "another lbd (pid {}) uses state_directory {}; stop it first, or give this one its own \
                     state_directory, pin_directory and api.socket",
                    holder.trim(),
                    directory.display()
                );
            }
        };
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .with_context(|| unusable("cannot be written"))?;
        Ok(Self {
            directory: directory.to_path_buf(),
            _lock: lock,
        })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Remembers the seed of the flow hash; returns the one that was used before, if it was another.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_seed(&self, seed: u64) -> Result<Option<u64>> {
        let path = self.directory.join(SEED);
        let before = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if before != Some(seed) {
            write_synced(&path, format!("{seed}\n").as_bytes())
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(before.filter(|before| *before != seed))
    }

    /// The phase of the node's drain that was remembered last; none: nothing was. What cannot be read is the error.
    ///
    /// # Errors
    /// What the file has, or why it cannot be read, with what to do.
    pub fn node_drain(&self) -> Result<Option<Phase>, String> {
        let path = self.directory.join(NODE_DRAIN);
        let said = match fs::read_to_string(&path) {
            Ok(text) => match Phase::parse(text.trim()) {
                Some(phase) => return Ok(Some(phase)),
                None => format!("holds {:?}", text.trim()),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => format!("cannot be read: {error}"),
        };
        Err(format!(
            "{} {said}: whether this node was drained is not known, so it is taken for drained; `lbctl node undrain` has it \
             serve",
            path.display()
        ))
    }

    /// Remembers the phase of the node's drain.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_node_drain(&self, phase: Phase) -> Result<()> {
        let path = self.directory.join(NODE_DRAIN);
        replace_file(&path, format!("{}\n", phase.as_str()).as_bytes())
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Reads the state. A damaged main file is moved aside when the copy is good.
    pub fn load(&self) -> Loaded {
        let (main, copy) = (self.directory.join(MAIN), self.directory.join(COPY));
        let damage = match read(&main) {
            Ok(Some(document)) => {
                self.remember(&document);
                return Loaded::Good(document);
            }
            Ok(None) if !copy.exists() => return Loaded::Nothing,
            Ok(None) => format!("{} is missing", main.display()),
            Err(damage) => damage,
        };
        match read(&copy) {
            Ok(Some(document)) => {
                let mended = match self.replace(&document, true) {
                    Ok(kept) => kept
                        .iter()
                        .map(|path| format!(" (kept as {})", path.display()))
                        .collect(),
                    Err(problem) => format!(" (and could not be mended: {problem:#})"),
                };
                let said = format!(
                    "{damage}{mended}; revision {} was recovered from {}",
                    document.revision,
                    copy.display()
                );
                self.remember(&document);
                Loaded::Recovered(document, said)
            }
            Ok(None) => Loaded::Unreadable(format!("{damage}, and there is no copy")),
            Err(second) => Loaded::Unreadable(format!("{damage}; {second}")),
        }
    }

    /// The revisions that are kept, seen from the one in force; none is while the state cannot be read.
    pub fn history(&self, current: Option<u64>) -> History {
        History::new(&self.directory, current)
    }

    /// Makes a document the one in force, with a place in the history. `damaged`: the files that are there cannot be read,
    /// and are kept under other names.
    ///
    /// # Errors
    /// When the disk refuses; the document in force is then the old one.
    pub fn commit(&self, document: &Document, origin: &Origin, damaged: bool) -> Result<()> {
        let history = self.history(Some(document.revision));
        history.write(
            document.revision,
            &document.state,
            SystemTime::now(),
            origin,
        )?;
        if let Err(refusal) = self.replace(document, damaged) {
            history.forget(document.revision);
            return Err(refusal);
        }
        history.prune(document.revision);
        Ok(())
    }

    /// Gives the document in force its place in the history if it has none: it comes from an `lbd` that kept no history.
    fn remember(&self, document: &Document) {
        let history = self.history(Some(document.revision));
        if document.revision == 0 || history.has(document.revision, &document.state) {
            return;
        }
        let written = fs::metadata(self.directory.join(MAIN)).and_then(|file| file.modified());
        let time = written.unwrap_or_else(|_| SystemTime::now());
        let origin = Origin {
            change: String::new(),
            summary: String::new(),
        };
        if let Err(problem) = history.write(document.revision, &document.state, time, &origin) {
            warn!(problem = %format!("{problem:#}"), "the revision in force has no place in the history");
        }
    }

    /// Writes the document and its copy. Both are on disk under other names before either takes its place, so a full disk
    /// refuses the change as a whole; the files then have their old content. When they cannot be read (`damaged`), they
    /// are kept under the names that are returned.
    fn replace(&self, document: &Document, damaged: bool) -> Result<Vec<PathBuf>> {
        let text = serde_json::to_vec_pretty(document).context("writing the state as JSON")?;
        let paths = [MAIN, COPY].map(|name| self.directory.join(name));
        let written = paths.iter().try_for_each(|path| {
            write_synced(&new(path), &text)
                .with_context(|| format!("writing {}", new(path).display()))
        });
        if written.is_err() {
            for path in &paths {
                // What was written takes the room that the next attempt needs. It may not be there.
                let _ = fs::remove_file(new(path));
            }
        }
        written?;
        let unreadable = paths.iter().filter(|path| damaged && read(path).is_err());
        let kept = unreadable
            .map(|path| move_aside(path))
            .collect::<Result<_>>()?;
        let [main, copy] = &paths;
        fs::rename(new(main), main).with_context(|| format!("writing {}", main.display()))?;
        // From here on the document is in force: the copy is a second chance, and the next change renews it.
        if let Err(problem) =
            fs::rename(new(copy), copy).and_then(|()| File::open(&self.directory)?.sync_all())
        {
            warn!(%problem, copy = %copy.display(), "the state was written, its copy was not");
        }
        Ok(kept)
    }
}

/// Renames a file to the first free `NAME.damaged-N`, which is returned.
fn move_aside(path: &Path) -> Result<PathBuf> {
    let name = |n: u32| PathBuf::from(format!("{}.damaged-{n}", path.display()));
    let aside = (1..)
        .map(name)
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| name(0));
    fs::rename(path, &aside).with_context(|| format!("moving {} aside", path.display()))?;
    Ok(aside)
}

/// The document in a file, nothing if there is none, or what is wrong with it.
fn read(path: &Path) -> Result<Option<Document>, String> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    let document: Document = serde_json::from_slice(&text)
        .map_err(|error| format!("{} is damaged: {error}", path.display()))?;
    if document.format != FORMAT {
        return Err(format!(
            "{} has format {}, this lbd reads format {FORMAT}: it was written by another version",
            path.display(),
            document.format
        ));
    }
    Ok(Some(document))
}

/// Where the new content of a file is written first.
fn new(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Replaces a file's content as a whole.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let other = new(path);
    write_synced(&other, content)?;
    fs::rename(other, path)
}

/// Writes a file and waits until it is on disk.
fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o640)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ServiceSpec;

    fn document(revision: u64) -> Document {
        let service: ServiceSpec = serde_json::from_str(
            r#"{"name":"www","address":"10.0.0.1","protocol":"tcp","port":80}"#,
        )
        .unwrap();
        Document::new(
            revision,
            StateSpec {
                services: vec![service],
            },
        )
    }

    fn origin() -> Origin {
        Origin {
            change: "apply".into(),
            summary: "add service www".into(),
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(matches!(store.load(), Loaded::Nothing));
        for revision in 1..4 {
            store.commit(&document(revision), &origin(), false).unwrap();
            assert!(matches!(store.load(), Loaded::Good(found) if found == document(revision)));
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_recovered_from_the_copy_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.commit(&document(7), &origin(), false).unwrap();
        let main = directory.path().join(MAIN);
        let whole = fs::read(&main).unwrap();
        for cut in 0..whole.len() {
            fs::write(&main, &whole[..cut]).unwrap();
            let Loaded::Recovered(found, said) = store.load() else {
                panic!("cut at {cut}")
            };
            assert_eq!(found, document(7));
            assert!(
                said.contains("state.json is damaged") && said.contains("damaged-"),
                "{said}"
            );
            assert_eq!(
                fs::read(&main).unwrap(),
                whole,
                "the main file is written back"
            );
        }
        assert_eq!(
            fs::read(directory.path().join("state.json.damaged-1")).unwrap(),
            b""
        );
    }

    #[test]
    fn when_both_are_damaged_nothing_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for name in [MAIN, COPY] {
            fs::write(directory.path().join(name), b"{\"format\": 1, \"rev").unwrap();
        }
        let Loaded::Unreadable(said) = store.load() else {
            panic!()
        };
        assert!(said.contains(MAIN) && said.contains(COPY), "{said}");
        assert_eq!(
            fs::read(directory.path().join(MAIN)).unwrap(),
            b"{\"format\": 1, \"rev"
        );
        store.commit(&document(3), &origin(), true).unwrap();
        assert!(matches!(store.load(), Loaded::Good(found) if found == document(3)));
        assert!(directory.path().join("state.json.damaged-1").exists());
    }

    #[test]
    fn a_refused_write_leaves_both_files_as_they_were() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.commit(&document(7), &origin(), false).unwrap();
        // A directory in the place where the copy is written first: it cannot be opened for writing.
        let obstacle = new(&directory.path().join(COPY));
        fs::create_dir(&obstacle).unwrap();
        assert!(store.commit(&document(8), &origin(), false).is_err());
        assert!(
            !new(&directory.path().join(MAIN)).exists(),
            "nothing is left behind"
        );
        for name in [MAIN, COPY] {
            let found = read(&directory.path().join(name)).unwrap();
            assert_eq!(found, Some(document(7)), "{name}");
        }
        fs::remove_dir(&obstacle).unwrap();
        store.commit(&document(8), &origin(), false).unwrap();
    }

    #[test]
    fn another_seed_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let said = [7, 7, 8, 8].map(|seed| store.remember_seed(seed).unwrap());
        assert_eq!(said, [None, None, Some(7), None]);
    }

    #[test]
    fn another_format_is_refused_in_words() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        fs::write(
            directory.path().join(MAIN),
            r#"{"format": 9, "revision": 1, "state": {"services": []}}"#,
        )
        .unwrap();
        let Loaded::Unreadable(said) = store.load() else {
            panic!()
        };
        assert!(said.contains("format 9"), "{said}");
    }

    #[test]
    fn a_second_daemon_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let first = Store::open(directory.path()).unwrap();
        let refused = Store::open(directory.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("pid {}", std::process::id())),
            "{refused}"
        );
        drop(first);
        Store::open(directory.path()).unwrap();
    }
}
