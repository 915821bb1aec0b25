//! The pin directory: what outlives the daemon, and who may touch it.
//!
//! | name | what |
//! |---|---|
//! | `maps-LAYOUT-NUMBER/NAME` | one generation of maps, of one layout version |
//! | `link-INDEX` | the link that keeps the program on the interface with that index |
//!
//! **Invariants.** Whoever holds a [`PinDirectory`] holds its lock; the lock ends with the process, however that ends.
//! Interfaces are named by index because their names may hold characters that a BPF file system refuses, and because
//! an index says which of two interfaces that had the same name one after the other is meant.

use super::sys;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

/// The pin directory, locked.
#[derive(Debug)]
pub(super) struct PinDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

/// One generation of maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    /// Its [`lb_common::maps::LAYOUT_VERSION`].
    pub(super) layout: u32,
    /// Counts up; of two generations the one with the higher number is newer.
    pub(super) number: u32,
    /// Its directory.
    pub(super) path: PathBuf,
}

impl PinDirectory {
    /// Opens and locks the directory, and creates it when it is missing.
    pub(super) fn open(path: &Path) -> Result<Self> {
        check_file_system(path)?;
        fs::create_dir_all(path).with_context(|| {
            format!(
                "cannot create the pin directory {} (BPF file systems refuse \".\" in names)",
                path.display()
            )
        })?;
        Self::lock(path)
    }

    /// Opens and locks the directory if it exists.
    pub(super) fn existing(path: &Path) -> Result<Option<Self>> {
        if !path
            .try_exists()
            .with_context(|| format!("cannot look for the pin directory {}", path.display()))?
        {
            return Ok(None);
        }
        check_file_system(path)?;
        Self::lock(path).map(Some)
    }

    fn lock(path: &Path) -> Result<Self> {
        let directory = File::open(path)
            .with_context(|| format!("cannot open the pin directory {}", path.display()))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err((directory, Errno::EWOULDBLOCK)) => bail!(
                "the pin directory {} is in use by {}; stop that first, or configure another pin directory",
                path.display(),
                holder(&directory).unwrap_or_else(|| "another process".into()),
            ),
            Err((_, error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The interface indexes for which a link is pinned.
    pub(super) fn links(&self) -> Result<Vec<u32>> {
        let index = |name: &str| name.strip_prefix("link-")?.parse().ok();
        Ok(self
            .names()?
            .iter()
            .filter_map(|name| index(name))
            .collect())
    }

    /// Opens the link of an interface index, if one is pinned.
    pub(super) fn link(&self, interface: u32) -> Result<Option<OwnedFd>> {
        let path = self.link_path(interface);
        match sys::open_pin(&path) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot open the link {}", path.display()))
            }
        }
    }

    /// Pins the link of an interface index.
    pub(super) fn pin_link(&self, interface: u32, link: BorrowedFd<'_>) -> Result<()> {
        let path = self.link_path(interface);
        sys::pin(link, &path).with_context(|| format!("cannot pin the link {}", path.display()))
    }

    /// Detaches and removes the link of an interface index. The interface may be gone.
    pub(super) fn remove_link(&self, interface: u32) -> Result<()> {
        if let Some(link) = self.link(interface)? {
            // Fails when the interface is gone, and with it the attachment.
            let _ = sys::link_detach(link.as_fd());
        }
        let path = self.link_path(interface);
        fs::remove_file(&path).with_context(|| format!("cannot remove the link {}", path.display()))
    }

    /// Where the link of an interface index is pinned.
    pub(super) fn link_path(&self, interface: u32) -> PathBuf {
        self.path.join(format!("link-{interface}"))
    }

    /// All generations, oldest first.
    pub(super) fn generations(&self) -> Result<Vec<Generation>> {
        let mut generations: Vec<_> = self
            .names()?
            .iter()
            .filter_map(|name| self.generation(name))
            .collect();
        generations.sort_by_key(|generation| generation.number);
        Ok(generations)
    }

    fn generation(&self, name: &str) -> Option<Generation> {
        let (layout, number) = name.strip_prefix("maps-")?.split_once('-')?;
        Some(Generation {
            layout: layout.parse().ok()?,
            number: number.parse().ok()?,
            path: self.path.join(name),
        })
    }

    /// Creates the directory of a new generation.
    pub(super) fn new_generation(&self, layout: u32) -> Result<Generation> {
        let newest = self
            .generations()?
            .last()
            .map_or(0, |generation| generation.number);
        let number = newest
            .checked_add(1)
            .context("generation numbers have run out; run lbd detach")?;
        let path = self.path.join(format!("maps-{layout}-{number}"));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Generation {
            layout,
            number,
            path,
        })
    }

    /// Removes a generation's pins. Maps that a loaded program uses stay with the program.
    pub(super) fn remove_generation(&self, generation: &Generation) -> Result<()> {
        let path = &generation.path;
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Removes the directory itself, which must be empty.
    pub(super) fn remove(self) -> Result<()> {
        let foreign = self.names()?;
        let path = self.path.display();
        ensure!(
            foreign.is_empty(),
            "{path} holds what is not Guideway's ({}): left as it is",
            foreign.join(", ")
        );
        fs::remove_dir(&self.path).with_context(|| format!("cannot remove {path}"))
    }

    fn names(&self) -> Result<Vec<String>> {
        let name =
            |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        fs::read_dir(&self.path)
            .and_then(|entries| entries.map(name).collect())
            .with_context(|| format!("cannot list {}", self.path.display()))
    }
}

/// Refuses a path that is not, or would not come to be, on a BPF file system.
fn check_file_system(path: &Path) -> Result<()> {
    ensure!(
        path.is_absolute(),
        "the pin directory {} must be an absolute path",
        path.display()
    );
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .ok_or_else(|| anyhow!("no parent directory of {} can be reached", path.display()))?;
    let found =
        statfs(existing).with_context(|| format!("cannot examine {}", existing.display()))?;
    let default = Path::new("/sys/fs/bpf");
    let mount_point = if path.starts_with(default) {
        default
    } else {
        existing
    };
    ensure!(
        found.filesystem_type() == BPF_FS_MAGIC,
        "the pin directory {} is not on a BPF file system; mount one: mount -t bpf bpf {}",
        path.display(),
        mount_point.display(),
    );
    Ok(())
}

/// Who holds the lock on a file, from proc_locks(5): a line such as `1: FLOCK ADVISORY WRITE 1234 00:2d:5678 0 EOF`.
fn holder(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let device = metadata.dev();
    let place = format!(
        "{:02x}:{:02x}:{}",
        libc::major(device),
        libc::minor(device),
        metadata.ino()
    );
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let fields = locks
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let pid = fields
        .filter(|fields| fields.get(5) == Some(&place.as_str()))
        .find_map(|fields| fields.get(4).map(|pid| (*pid).to_owned()))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!(
        "{} (pid {pid})",
        if name.is_empty() {
            "a process"
        } else {
            name.trim_end()
        }
    ))
}
