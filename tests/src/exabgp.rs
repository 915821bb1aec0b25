//! ExaBGP in a namespace, with the file of `deploy/`: only the values that it tells an operator to change are changed.
//!
//! It runs `lbd exabgp`, which a node reaches with [`settings`] in its configuration.

use crate::{netns::Namespace, process::Process, require, wait::wait_until};
use anyhow::{Result, bail, ensure};
use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// The file for a balancer.
pub const BALANCER: &str = include_str!("../../deploy/exabgp.conf");

/// A running ExaBGP.
#[derive(Debug)]
pub struct Exabgp {
    process: Process,
}

impl Exabgp {
    /// Starts it in a namespace with the shipped file in which these values are replaced by others (see [`with_values`]), and
    /// waits until `lbd exabgp` listens. Its files are in `directory`, under `name`.
    ///
    /// # Errors
    /// When it does not start; the error has what it says.
    pub fn start(
        namespace: &Namespace,
        directory: &Path,
        name: &str,
        values: &[(&str, &str)],
    ) -> Result<Self> {
        let socket = socket(directory, name);
        let (lbd, listens) = (require::built("lbd")?, socket.display().to_string());
        let program = lbd.display().to_string();
        let mut all = vec![
            ("/usr/local/bin/lbd", program.as_str()),
            ("/var/lib/guideway-exabgp/lbd.sock", listens.as_str()),
        ];
        all.extend(values);
        let file = directory.join(format!("{name}.conf"));
        fs::write(&file, with_values(BALANCER, &all)?)?;
        let mut command = namespace.command("exabgp");
        command
            .arg(&file)
            .env("exabgp_daemon_user", "root")
            .env("exabgp_log_level", "ERR")
            .env("exabgp_api_cli", "false");
        let mut process = Process::start(name, command, &directory.join(format!("{name}.log")))?;
        wait_until("`lbd exabgp` to listen", Duration::from_secs(20), || {
            if let Some(status) = process.ended()? {
                bail!("exabgp ended ({status}): {}", process.log());
            }
            Ok(UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        Ok(Self { process })
    }

    /// What it and `lbd exabgp` have written so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it, as `kill -9` does. `lbd exabgp` ends by itself then.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }
}

/// Where `lbd exabgp` listens that an ExaBGP of this name runs.
pub fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Lines of the section `announce` that have a node use the ExaBGP of this name.
pub fn settings(directory: &Path, name: &str) -> String {
    let socket = socket(directory, name);
    format!(
        "  driver: exabgp\n  exabgp: {{ socket: {} }}\n",
        socket.display()
    )
}

/// A file in which words, as spaces, quotes and semicolons set them apart, are replaced by others wherever they stand.
///
/// # Errors
/// When the file does not have one of them.
pub fn with_values(shipped: &str, values: &[(&str, &str)]) -> Result<String> {
    for (value, _) in values {
        ensure!(
            words(shipped).any(|word| word == *value),
            "the shipped file has no {value}"
        );
    }
    let other = |word| {
        values
            .iter()
            .find(|(value, _)| *value == word)
            .map_or(word, |(_, other)| *other)
    };
    Ok(words(shipped).map(other).collect())
}

/// Words and what is between them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive([' ', '\n', '"', ';'])
        .flat_map(|piece| {
            let end = piece.trim_end_matches([' ', '\n', '"', ';']).len();
            let (word, between) = piece.split_at(end);
            [word, between]
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_replaced() {
        let text = "a 192.0.2.1;\n  b \"192.0.2.11\" c 192.0.2.1\n";
        let seen = with_values(
            text,
            &[("192.0.2.1", "10.0.0.1"), ("192.0.2.11", "10.0.0.2")],
        );
        assert_eq!(seen.unwrap(), "a 10.0.0.1;\n  b \"10.0.0.2\" c 10.0.0.1\n");
        assert!(with_values(text, &[("192.0.2", "10.0.0")]).is_err());
    }
}
