//! Child processes as guards: each in a process group of its own, its output in a log file, killed on drop.

use crate::wait::wait_until;
use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    fs::{self, OpenOptions},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the error has the command and what it wrote to standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let result = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !result.status.success() {
        let words = String::from_utf8_lossy(&result.stderr).trim().to_owned();
        bail!("{command:?} failed ({}): {words}", result.status);
    }
    Ok(String::from_utf8_lossy(&result.stdout).into_owned())
}

/// A running child process and those it starts itself.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    kept: bool,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name} ({command:?})"))?;
        Ok(Self {
            name: name.into(),
            child,
            log: log.into(),
            kept: false,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to it and to those it started.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        killpg(self.group(), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Kills it, as `kill -9` does, and those it started.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_until(&format!("the end of {name}"), limit, || {
            Ok(self.child.try_wait()?)
        })
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Leaves it running when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    fn group(&self) -> Pid {
        // Process ids are below 2^22 (proc(5), pid_max), so the cast keeps them.
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Once the child has been waited for, its id may be another's: only a child not yet waited for is signalled.
        if self.kept || !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
