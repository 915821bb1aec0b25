//! A balancer node: the real `lbd` with a configuration of its own, and the real `lbctl` talking to it.

use crate::{
    effort, netns::Namespace, process::Process, require, session::Session, wait::wait_until,
};
use anyhow::{Context, Result, bail, ensure};
use lb_userspace::api::protocol::{BackendView, ServiceView, Stats, Status};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Longest wait for `lbd` to answer after its start, and for any program to end.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the metrics are, in the node's namespace.
pub const METRICS: &str = "127.0.0.1:9469";

/// What a program that has ended left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Configuration, socket, pins and process of one `lbd`.
#[derive(Debug)]
pub struct Node {
    directory: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
}

impl Node {
    /// Writes the configuration: interface `eth0`, attached as `attach` says.
    ///
    /// # Errors
    /// When the session's directory cannot be written.
    pub fn new(session: &Session, attach: &str) -> Result<Self> {
        Self::named(session, "lbd", attach)
    }

    /// As [`Node::new`], with its files in the directory `name` of the session and its pins likewise: for several nodes.
    ///
    /// # Errors
    /// When the session's directory cannot be written.
    pub fn named(session: &Session, name: &str, attach: &str) -> Result<Self> {
        let directory = session.directory().join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let node = Self {
            directory,
            pins: session.pins().join(name),
            process: None,
        };
        fs::write(node.config(), node.configuration(attach))?;
        Ok(node)
    }

    /// The text of the configuration file.
    pub fn configuration(&self, attach: &str) -> String {
        format!(
            "interfaces:
  - {{ name: eth0, attach: {attach} }}
state_directory: {state}
pin_directory: {pins}
api: {{ socket: {socket} }}
metrics: {{ address: \"{METRICS}\" }}
hash_seed: 7
limits: {{ services: 64, backends: 1024 }}
",
            state = self.state_directory().display(),
            pins = self.pins.display(),
            socket = self.socket().display(),
        )
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("lbd.yaml")
    }

    /// Where the desired state is kept.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("lbd.sock")
    }

    /// Where links and maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Everything that `lbd` has logged, over restarts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("lbd.log")).unwrap_or_default()
    }

    /// Process id of the running `lbd`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("lbd does not run")?.pid())
    }

    /// Starts `lbd` and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer in time; the error has its log.
    pub fn start(&mut self, namespace: &Namespace) -> Result<()> {
        let mut command = namespace.command(require::built("lbd")?);
        command.arg("--config").arg(self.config());
        let mut process = Process::start("lbd", command, &self.directory.join("lbd.log"))?;
        wait_until("lbd to answer", effort::limit(LIMIT), || {
            if let Some(status) = process.ended()? {
                bail!("lbd ended ({status}): {}", process.log());
            }
            Ok((self.lbctl("status")?.code == 0).then_some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills `lbd` as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("lbd does not run")?.kill()
    }

    /// Stops `lbd` with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it does not run, or does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("lbd does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.wait(effort::limit(LIMIT))
    }

    /// Sends a signal to `lbd`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process
            .as_ref()
            .context("lbd does not run")?
            .signal(signal)
    }

    /// Runs `lbd` with other arguments to its end, such as `detach` or `check-config`, with this node's configuration.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub fn lbd(&self, namespace: &Namespace, arguments: &str) -> Result<Finished> {
        let mut command = namespace.command(require::built("lbd")?);
        command
            .args(arguments.split_whitespace())
            .arg("--config")
            .arg(self.config());
        finish(command)
    }

    /// Runs `lbctl` with the words of `arguments`.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub fn lbctl(&self, arguments: &str) -> Result<Finished> {
        let mut command = Command::new(require::built("lbctl")?);
        command
            .arg("--socket")
            .arg(self.socket())
            .args(arguments.split_whitespace());
        finish(command)
    }

    /// Runs `lbctl` and expects it to succeed; its standard output.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn ok(&self, arguments: &str) -> Result<String> {
        let Finished {
            code,
            stdout,
            stderr,
        } = self.lbctl(arguments)?;
        ensure!(
            code == 0,
            "lbctl {arguments}: exit code {code}: {}",
            stderr.trim()
        );
        Ok(stdout)
    }

    /// `lbctl status`.
    ///
    /// # Errors
    /// As [`Node::ok`].
    pub fn status(&self) -> Result<Status> {
        Ok(serde_json::from_str(&self.ok("--output json status")?)?)
    }

    /// `lbctl service list`.
    ///
    /// # Errors
    /// As [`Node::ok`].
    pub fn services(&self) -> Result<Vec<ServiceView>> {
        Ok(serde_json::from_str(
            &self.ok("--output json service list")?,
        )?)
    }

    /// `lbctl backend list`.
    ///
    /// # Errors
    /// As [`Node::ok`].
    pub fn backends(&self) -> Result<Vec<BackendView>> {
        Ok(serde_json::from_str(
            &self.ok("--output json backend list")?,
        )?)
    }

    /// The backend `name` in `lbctl backend list`.
    ///
    /// # Errors
    /// As [`Node::ok`], and when there is none of that name.
    pub fn backend(&self, name: &str) -> Result<BackendView> {
        let found = self
            .backends()?
            .into_iter()
            .find(|backend| backend.name == name);
        found.with_context(|| format!("no backend {name} in lbctl backend list"))
    }

    /// `lbctl stats`.
    ///
    /// # Errors
    /// As [`Node::ok`].
    pub fn stats(&self) -> Result<Stats> {
        Ok(serde_json::from_str(&self.ok("--output json stats")?)?)
    }

    /// No packet has been dropped.
    ///
    /// # Errors
    /// When some have, with the verdicts; and as [`Node::ok`].
    pub fn nothing_dropped(&self) -> Result<()> {
        let stats = self.stats()?;
        let mut dropped = stats.verdicts;
        dropped.retain(|verdict| verdict.action == "drop" && verdict.packets > 0);
        ensure!(dropped.is_empty(), "{dropped:?}");
        Ok(())
    }

    /// Waits until exactly the backends in `names` get traffic.
    ///
    /// # Errors
    /// When that does not happen in time; the error has the list of backends.
    pub fn wait_active(&self, names: &[&str]) -> Result<()> {
        let active = || -> Result<Option<()>> {
            let backends = self.backends()?;
            let active = backends
                .iter()
                .filter(|backend| backend.active)
                .map(|backend| backend.name.as_str());
            Ok(active.eq(names.iter().copied()).then_some(()))
        };
        wait_until(
            &format!("traffic to {names:?}"),
            effort::limit(LIMIT),
            active,
        )
        .with_context(|| {
            self.ok("backend list")
                .unwrap_or_else(|error| error.to_string())
        })
    }

    /// Leaves `lbd` running when this value is dropped.
    pub fn keep(&mut self) {
        if let Some(process) = &mut self.process {
            process.keep();
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started, or still runs after ten seconds: then it is killed.
pub fn finish(mut command: Command) -> Result<Finished> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    // Process ids are below 2^22 (proc(5), pid_max), so the cast keeps them.
    let pid = Pid::from_raw(child.id() as i32);
    let (sender, end) = mpsc::channel();
    // The receiver is gone only if the command was killed: nobody asks then.
    thread::spawn(move || drop(sender.send(child.wait_with_output())));
    let Ok(output) = end.recv_timeout(effort::limit(LIMIT)) else {
        kill(pid, Signal::SIGKILL)?;
        bail!("{command:?} still runs after {LIMIT:?}");
    };
    let output = output?;
    Ok(Finished {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
