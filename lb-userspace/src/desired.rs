//! The desired state on disk: one revisioned document, written whole and atomically, with a copy of the same revision
//! beside it, so that a damaged file costs nothing.
//!
//! **Invariants.** A document is on disk (file and directory synced) before it is in force. A damaged file is never
//! overwritten: it is moved aside and said. Only one daemon uses a directory, held by a lock.

use crate::spec::StateSpec;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Version of the document's shape.
const FORMAT: u32 = 1;
const MAIN: &str = "state.json";
const COPY: &str = "state.copy.json";
const LOCK: &str = "lbd.lock";

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

    /// Reads the state. A damaged main file is moved aside when the copy is good.
    ///
    /// # Errors
    /// When the damaged file cannot be moved or the good one not written back.
    pub fn load(&self) -> Result<Loaded> {
        let (main, copy) = (self.directory.join(MAIN), self.directory.join(COPY));
        let damage = match read(&main) {
            Ok(Some(document)) => return Ok(Loaded::Good(document)),
            Ok(None) if !copy.exists() => return Ok(Loaded::Nothing),
            Ok(None) => format!("{} is missing", main.display()),
            Err(damage) => damage,
        };
        match read(&copy) {
            Ok(Some(document)) => {
                let aside = self.move_aside(&main)?;
                self.save(&document)?;
                let said = format!(
                    "{damage}{aside}; revision {} was recovered from {}",
                    document.revision,
                    copy.display()
                );
                Ok(Loaded::Recovered(document, said))
            }
            Ok(None) => Ok(Loaded::Unreadable(format!(
                "{damage}, and there is no copy"
            ))),
            Err(second) => Ok(Loaded::Unreadable(format!("{damage}; {second}"))),
        }
    }

    /// Writes the document, first the main file, then the copy.
    ///
    /// # Errors
    /// When the disk refuses; the file then has its old content.
    pub fn save(&self, document: &Document) -> Result<()> {
        let text = serde_json::to_vec_pretty(document).context("writing the state as JSON")?;
        for name in [MAIN, COPY] {
            let path = self.directory.join(name);
            write_atomically(&self.directory, &path, &text)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// Moves unreadable files aside, so that the next state can be written.
    ///
    /// # Errors
    /// When a file cannot be renamed.
    pub fn give_up_damaged(&self) -> Result<()> {
        for name in [MAIN, COPY] {
            let path = self.directory.join(name);
            if read(&path).is_err() {
                self.move_aside(&path)?;
            }
        }
        Ok(())
    }

    /// Renames a file to the first free `NAME.damaged-N` and says so in words; nothing when it does not exist.
    fn move_aside(&self, path: &Path) -> Result<String> {
        if !path.exists() {
            return Ok(String::new());
        }
        let name = |n: u32| PathBuf::from(format!("{}.damaged-{n}", path.display()));
        let aside = (1..)
            .map(name)
            .find(|candidate| !candidate.exists())
            .unwrap_or_else(|| name(0));
        fs::rename(path, &aside).with_context(|| format!("moving {} aside", path.display()))?;
        Ok(format!(" (kept as {})", aside.display()))
    }
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

/// Writes a file so that after a crash it has either its old or its new content, whole.
fn write_atomically(directory: &Path, path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o640)
        .open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()?;
    Ok(())
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

    #[test]
    fn what_was_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(matches!(store.load().unwrap(), Loaded::Nothing));
        for revision in 1..4 {
            store.save(&document(revision)).unwrap();
            assert!(
                matches!(store.load().unwrap(), Loaded::Good(found) if found == document(revision))
            );
        }
    }

    #[test]
    fn a_file_cut_anywhere_is_recovered_from_the_copy_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.save(&document(7)).unwrap();
        let main = directory.path().join(MAIN);
        let whole = fs::read(&main).unwrap();
        for cut in 0..whole.len() {
            fs::write(&main, &whole[..cut]).unwrap();
            let Loaded::Recovered(found, said) = store.load().unwrap() else {
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
        let Loaded::Unreadable(said) = store.load().unwrap() else {
            panic!()
        };
        assert!(said.contains(MAIN) && said.contains(COPY), "{said}");
        assert_eq!(
            fs::read(directory.path().join(MAIN)).unwrap(),
            b"{\"format\": 1, \"rev"
        );
        store.give_up_damaged().unwrap();
        assert!(matches!(store.load().unwrap(), Loaded::Nothing));
        assert!(directory.path().join("state.json.damaged-1").exists());
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
        let Loaded::Unreadable(said) = store.load().unwrap() else {
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
