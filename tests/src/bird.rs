//! BIRD in a namespace, with the files of `deploy/`: only the values that they tell an operator to change are changed.

use crate::{
    netns::Namespace,
    process::{Process, output},
    wait::wait_until,
};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The file for a balancer.
pub const BALANCER: &str = include_str!("../../deploy/bird-lb.conf");
/// The file for a router.
pub const ROUTER: &str = include_str!("../../deploy/bird-router.conf");

/// A running BIRD.
#[derive(Debug)]
pub struct Bird {
    process: Process,
    control: PathBuf,
}

impl Bird {
    /// Starts it in a namespace with a shipped file in which these `define`s have other values. Its files are in `directory`,
    /// under `name`.
    ///
    /// # Errors
    /// When it does not start; the error has what it says.
    pub fn start(
        namespace: &Namespace,
        directory: &Path,
        name: &str,
        shipped: &str,
        values: &[(&str, &str)],
    ) -> Result<Self> {
        let file = directory.join(format!("{name}.conf"));
        fs::write(&file, with_values(shipped, values)?)?;
        let control = directory.join(format!("{name}.ctl"));
        let mut command = namespace.command("bird");
        command
            .arg("-f")
            .arg("-c")
            .arg(&file)
            .arg("-s")
            .arg(&control)
            .arg("-P")
            .arg(directory.join(format!("{name}.pid")));
        let process = Process::start(name, command, &directory.join(format!("{name}.log")))?;
        let mut bird = Self { process, control };
        wait_until("bird to answer", Duration::from_secs(10), || {
            if let Some(status) = bird.process.ended()? {
                bail!("bird ended ({status}): {}", bird.process.log());
            }
            Ok(bird.ask("show status").is_ok().then_some(()))
        })?;
        Ok(bird)
    }

    /// What it answers to a command of `birdc`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut birdc = std::process::Command::new("birdc");
        birdc
            .arg("-s")
            .arg(&self.control)
            .args(command.split_whitespace());
        output(&mut birdc)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }
}

/// A file with other values of its `define`s.
fn with_values(shipped: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut lines: Vec<String> = shipped.lines().map(str::to_owned).collect();
    for (name, value) in values {
        let start = format!("define {name} =");
        let line = lines.iter_mut().find(|line| line.starts_with(&start));
        *line.with_context(|| format!("the shipped file defines no {name}"))? =
            format!("{start} {value};");
    }
    ensure!(!lines.is_empty(), "the shipped file is empty");
    Ok(lines.join("\n") + "\n")
}
