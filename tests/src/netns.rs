//! Network namespaces as guards: named, so that a person can enter them, and removed on drop, also when a test panics.
//!
//! They are entered with setns(2) on a thread of its own or in a child before exec. `ip netns exec` is not used: it
//! mounts another /sys, which hides the BPF file system.

use crate::process::output;
use anyhow::{Context, Result};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::SigSet,
};
use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    sync::Arc,
    thread::{self, JoinHandle},
};

/// Where iproute2 keeps the names of namespaces.
const DIRECTORY: &str = "/run/netns";

/// A network namespace that exists as long as this value, unless [`Namespace::keep`] is called.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
    kept: bool,
}

impl Namespace {
    /// Creates a namespace with its loopback interface up.
    ///
    /// # Errors
    /// When a namespace of this name exists, or without root.
    pub fn create(name: &str) -> Result<Self> {
        output(Command::new("ip").args(["netns", "add", name]))?;
        let path = Path::new(DIRECTORY).join(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let namespace = Self {
            name: name.into(),
            file: Arc::new(file),
            kept: false,
        };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` inside, on a thread of its own, and waits for it.
    ///
    /// # Panics
    /// When `work` does, with its message.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.file);
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts `work` inside, on a thread of its own.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = Arc::clone(&self.file);
        thread::spawn(move || {
            enter(&file);
            work()
        })
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = Arc::clone(&self.file);
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes two system calls, setns(2) and that of pthread_sigmask(3), which
        // are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                // Signals that this program waits for itself are blocked here, and a child would inherit that.
                SigSet::empty().thread_set_mask()?;
                Ok(setns(&file, CloneFlags::CLONE_NEWNET)?)
            });
        }
        command
    }

    /// Runs `ip` inside with the words of `arguments`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        output(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(arguments.split_whitespace()),
        )
        .map(drop)
    }

    /// Sets a value under /proc/sys, such as `net/ipv4/ip_forward`, as this namespace sees it.
    ///
    /// # Errors
    /// When there is no such value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that opens it.
        self.run(|| fs::write(Path::new("/proc/sys").join(key), value))
            .with_context(|| format!("cannot set {key} to {value} in {}", self.name))
    }

    /// Leaves the namespace in place when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.name);
        }
    }
}

fn enter(file: &File) {
    if let Err(error) = setns(file, CloneFlags::CLONE_NEWNET) {
        panic!("cannot enter a network namespace of the test: {error}");
    }
}

/// Names of all namespaces.
pub fn list() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Ends the processes in a namespace and removes it. What fails is said, not returned: there is nothing left to do.
pub fn remove(name: &str) {
    let pids = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        // It may have ended by itself by now.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    if let Err(error) = output(Command::new("ip").args(["netns", "del", name])) {
        eprintln!("{error:#}");
    }
}
