//! Names of what a test makes (namespaces, directories, pins) and the sweep of what a killed process left.
//!
//! **Invariant.** A name is `gw-PID-N...`: it tells its process, so tests of many processes never meet, and whatever
//! names a process that is gone may be removed by anybody.

use crate::{netns, require::BPFFS};
use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

const PREFIX: &str = "gw-";

/// The names that one test, or the demo, uses for everything it makes. Dropping it removes what carries them.
#[derive(Debug)]
pub struct Session {
    prefix: String,
    kept: bool,
}

impl Session {
    /// A session with names of its own. The first one of a process sweeps what dead processes left.
    pub fn unique() -> Self {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::of(format!("{PREFIX}{}-{number}", process::id()))
    }

    /// The session with a fixed name, for what has to be found again: `gw-NAME`.
    pub fn named(name: &str) -> Self {
        Self::of(format!("{PREFIX}{name}"))
    }

    fn of(prefix: String) -> Self {
        Self {
            prefix,
            kept: false,
        }
    }

    /// What [`Session::named`] makes this session of again.
    pub fn name(&self) -> &str {
        self.prefix.strip_prefix(PREFIX).unwrap_or(&self.prefix)
    }

    /// Whether something carries this session's names.
    pub fn exists(&self) -> bool {
        self.directory().exists() || self.pins().exists() || !self.namespaces().is_empty()
    }

    /// Leaves everything in place when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Name of a namespace: `gw-PID-N-ROLE`.
    pub fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.prefix)
    }

    /// The directory for files. It is not created here.
    pub fn directory(&self) -> PathBuf {
        std::env::temp_dir().join(&self.prefix)
    }

    /// The directory for pins of BPF maps and links. It is not created here.
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.prefix)
    }

    fn namespaces(&self) -> Vec<String> {
        let of_session = |name: &String| {
            name.strip_prefix(&self.prefix)
                .is_some_and(|rest| rest.starts_with('-'))
        };
        netns::list().into_iter().filter(of_session).collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for name in self.namespaces() {
            netns::remove(&name);
        }
        for directory in [self.directory(), self.pins()] {
            // Often nothing is there; what cannot be removed is left to the next sweep.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Removes what processes that no longer live have left.
fn sweep() {
    let directories = [std::env::temp_dir(), PathBuf::from(BPFFS)];
    let names = directories.iter().flat_map(|directory| {
        fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
    });
    let dead: std::collections::BTreeSet<String> = names
        .chain(netns::list())
        .filter_map(|name| session_of_dead_process(&name))
        .collect();
    dead.into_iter().map(Session::of).for_each(drop);
}

/// `gw-PID-N` of a name that begins so, when no process has that id.
fn session_of_dead_process(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
    let pid: u32 = parts.next()?.parse().ok()?;
    let number: u32 = parts.next()?.parse().ok()?;
    let alive = Path::new("/proc").join(pid.to_string()).exists();
    (!alive).then(|| format!("{PREFIX}{pid}-{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sessions_of_dead_processes_are_swept() {
        // Process ids end at 2^22 (proc(5), pid_max).
        assert_eq!(
            session_of_dead_process("gw-99999999-3-client").as_deref(),
            Some("gw-99999999-3")
        );
        assert_eq!(
            session_of_dead_process("gw-99999999-3").as_deref(),
            Some("gw-99999999-3")
        );
        let own = Session::unique().namespace("client");
        for name in [
            own.as_str(),
            "gw-demo-client",
            "gw-1-x",
            "gw-",
            "other-99999999-3",
        ] {
            assert_eq!(session_of_dead_process(name), None, "{name}");
        }
    }
}
