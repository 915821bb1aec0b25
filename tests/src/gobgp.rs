//! GoBGP in a namespace, with the file of `deploy/`: only the values that it tells an operator to change are changed. Its API
//! listens on the namespace's loopback address, where [`SETTINGS`] have a node look for it.

use crate::{
    exabgp::with_values,
    netns::Namespace,
    process::{Process, output},
    wait::wait_until,
};
use anyhow::{Context, Result, bail};
use std::{fs, path::Path, process::Command, time::Duration};

/// The file for a balancer.
pub const BALANCER: &str = include_str!("../../deploy/gobgpd.toml");
/// Lines of the section `announce` that have a node use it.
pub const SETTINGS: &str = "  driver: gobgp\n";

/// The options that the file has Debian's unit give it.
fn options() -> Result<impl Iterator<Item = &'static str>> {
    let options = BALANCER.split_once("GOBGPD_OPTIONS=");
    let options = options.and_then(|(_, rest)| rest.split_once('"'));
    let (options, _) = options.context("the shipped file names no options")?;
    Ok(options.split_whitespace())
}

/// A running gobgpd.
#[derive(Debug)]
pub struct Gobgp {
    process: Process,
}

impl Gobgp {
    /// Starts it in a namespace with the shipped file in which these values are replaced by others (see [`with_values`]), and
    /// waits until its API answers. Its files are in `directory`, under `name`.
    ///
    /// # Errors
    /// When it does not start; the error has what it says.
    pub fn start(
        namespace: &Namespace,
        directory: &Path,
        name: &str,
        values: &[(&str, &str)],
    ) -> Result<Self> {
        let file = directory.join(format!("{name}.toml"));
        fs::write(&file, with_values(BALANCER, values)?)?;
        let mut command = namespace.command("gobgpd");
        command.arg("-f").arg(&file).args(options()?);
        let process = Process::start(name, command, &directory.join(format!("{name}.log")))?;
        let mut gobgp = Self { process };
        wait_until("gobgpd to answer", Duration::from_secs(20), || {
            if let Some(status) = gobgp.process.ended()? {
                bail!("gobgpd ended ({status}): {}", gobgp.process.log());
            }
            Ok(ask(namespace, "global").is_ok().then_some(()))
        })?;
        Ok(gobgp)
    }

    /// Its process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }
}

/// What the gobgpd of a namespace answers to a command of `gobgp`.
///
/// # Errors
/// When it does not answer, or refuses.
pub fn ask(namespace: &Namespace, command: &str) -> Result<String> {
    let mut gobgp: Command = namespace.command("gobgp");
    gobgp.args(command.split_whitespace());
    output(&mut gobgp)
}
