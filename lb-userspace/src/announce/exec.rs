//! The driver `exec`: a command that says it to whatever speaks to routers. It is called with what to do (`announce`, `drain`
//! or `withdraw`) and the prefix as its last two arguments, and must be able to do twice what it has done once.
//!
//! What it has done is remembered in a file, so that the next daemon continues there. What that daemon has not said itself, it
//! says once more, and everything when it is asked although nothing differs: what listens may have started anew.

use super::{Announced, Announcer, Outcome, Role, Wanted, setting::ExecSettings};
use crate::{desired, prefix::Prefix};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs,
    future::pending,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
};
use tokio::{
    io::{AsyncReadExt, copy, sink},
    process::Command,
    time::timeout,
};
use tracing::warn;

/// Name of the file in the state directory.
const FILE: &str = "announced.json";
/// As much of what the command says on standard error is kept, in bytes.
const WORDS: u64 = 4_096;

/// The driver.
#[derive(Debug)]
pub struct ExecDriver {
    settings: ExecSettings,
    file: PathBuf,
    announced: Announced,
    /// What of it this driver has said, since it was last asked without need.
    said: Announced,
}

impl ExecDriver {
    /// A driver that remembers in this directory what it has done.
    pub fn new(settings: ExecSettings, directory: &Path) -> Self {
        Self {
            settings,
            file: directory.join(FILE),
            announced: Announced::new(),
            said: Announced::new(),
        }
    }

    async fn call(&self, verb: &str, prefix: Prefix) -> Result<(), String> {
        let Some((program, arguments)) = self.settings.command.split_first() else {
            return Err("announce.exec.command is empty".into());
        };
        let name = format!("{program} {verb} {}", prefix.cidr());
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args([verb, &prefix.cidr()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            format!(
                "{name} cannot be started: {error}; see announce.exec.command in the node config"
            )
        })?;
        // Process ids are below 2^22 (proc(5), pid_max), so the cast keeps them.
        let group = child.id().map(|pid| Pid::from_raw(pid as i32));
        let errors = child.stderr.take();
        let end = async {
            let mut words = Vec::new();
            if let Some(mut errors) = errors {
                // What cannot be read is not said; what is too much must not keep the command waiting.
                let _ = (&mut errors).take(WORDS).read_to_end(&mut words).await;
                let _ = copy(&mut errors, &mut sink()).await;
            }
            (
                child.wait().await,
                String::from_utf8_lossy(&words).trim().to_owned(),
            )
        };
        match timeout(self.settings.timeout, end).await {
            Ok((Ok(status), _)) if status.success() => Ok(()),
            Ok((Ok(status), words)) => {
                let last = words
                    .lines()
                    .next_back()
                    .unwrap_or("it says nothing on standard error");
                Err(format!("{name} failed ({status}): {last}"))
            }
            Ok((Err(error), _)) => Err(format!("{name}: {error}")),
            Err(_) => {
                if let Some(group) = group {
                    // It may have ended by now.
                    let _ = killpg(group, Signal::SIGKILL);
                }
                let limit = humantime::format_duration(self.settings.timeout);
                Err(format!(
                    "{name} was killed: it ran longer than {limit} (announce.exec.timeout)"
                ))
            }
        }
    }

    /// Writes what is announced down. Without it the next daemon only says once more what is known already.
    fn remember(&self) {
        let known: BTreeMap<String, Role> = self
            .announced
            .iter()
            .map(|(prefix, role)| (prefix.to_string(), *role))
            .collect();
        let written = serde_json::to_vec(&known)
            .map_err(std::io::Error::from)
            .and_then(|text| desired::replace_file(&self.file, &text));
        if let Err(problem) = written {
            warn!(%problem, file = %self.file.display(), "what is announced could not be written down");
        }
    }
}

impl Announcer for ExecDriver {
    async fn adopt(&mut self) -> Result<Announced, String> {
        self.announced = match fs::read(&self.file) {
            Ok(text) => read(&text),
            Err(error) if error.kind() == ErrorKind::NotFound => Announced::new(),
            Err(error) => return Err(format!("{} cannot be read: {error}", self.file.display())),
        };
        Ok(self.announced.clone())
    }

    async fn reconcile(&mut self, wanted: &Wanted) -> Outcome {
        let mut failed = BTreeMap::new();
        let mut due = calls(&self.announced, &self.said, wanted);
        if due.is_empty() {
            self.said.clear();
            due = calls(&self.announced, &self.said, wanted);
        }
        for (prefix, role) in due {
            let verb = match role {
                Some(Role::Serving) => "announce",
                Some(Role::Draining) => "drain",
                None => "withdraw",
            };
            match self.call(verb, prefix).await {
                Ok(()) => {
                    let before = match role {
                        Some(role) => {
                            self.said.insert(prefix, role);
                            self.announced.insert(prefix, role)
                        }
                        None => {
                            self.said.remove(&prefix);
                            self.announced.remove(&prefix)
                        }
                    };
                    if before != role {
                        self.remember();
                    }
                }
                Err(problem) => drop(failed.insert(prefix, problem)),
            }
        }
        Outcome {
            announced: self.announced.clone(),
            failed,
            problem: None,
        }
    }

    async fn disturbed(&mut self) {
        pending().await
    }
}

/// What the command is to be called for: what attracts packets that cannot be served comes first.
fn calls(announced: &Announced, said: &Announced, wanted: &Wanted) -> Vec<(Prefix, Option<Role>)> {
    let gone = announced
        .keys()
        .filter(|prefix| !matches!(wanted.get(prefix), Some(Some(_))));
    let mut calls: Vec<_> = gone.map(|prefix| (*prefix, None)).collect();
    let new = wanted
        .iter()
        .filter_map(|(prefix, role)| Some((*prefix, (*role)?)));
    let differs = new.filter(|(prefix, role)| said.get(prefix) != Some(role));
    calls.extend(differs.map(|(prefix, role)| (prefix, Some(role))));
    calls
}

/// What was written down; what cannot be read is said once more.
fn read(text: &[u8]) -> Announced {
    let known: BTreeMap<String, Role> = serde_json::from_slice(text).unwrap_or_default();
    known
        .into_iter()
        .filter_map(|(prefix, role)| Some((prefix.parse().ok()?, role)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// `seconds`: the command's time limit; long, but where it is what the test is about: machines may be slow.
    fn driver(directory: &Path, script: &str, seconds: u64) -> ExecDriver {
        let command = ["/bin/sh", "-c", script, "sh"].map(String::from).to_vec();
        ExecDriver::new(
            ExecSettings {
                command,
                timeout: Duration::from_secs(seconds),
            },
            directory,
        )
    }

    #[tokio::test]
    async fn it_is_told_what_differs_and_remembers_it() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!("echo \"$@\" >> {}", log.display());
        let (a, b): (Prefix, Prefix) = (
            "192.0.2.1".parse().unwrap(),
            "2001:db8::/64".parse().unwrap(),
        );
        let mut first = driver(directory.path(), &script, 60);
        assert_eq!(first.adopt().await, Ok(Announced::new()));
        let wanted = Wanted::from([(a, Some(Role::Serving)), (b, Some(Role::Serving))]);
        let told = |expected: &str| {
            assert_eq!(fs::read_to_string(&log).unwrap(), expected);
            fs::remove_file(&log).unwrap();
        };
        assert!(first.reconcile(&wanted).await.is_complete());
        told("announce 192.0.2.1/32\nannounce 2001:db8::/64\n");
        let a_drains = Wanted::from([(a, Some(Role::Draining)), (b, Some(Role::Serving))]);
        assert!(first.reconcile(&a_drains).await.is_complete());
        told("drain 192.0.2.1/32\n");
        assert!(first.reconcile(&a_drains).await.is_complete());
        told("drain 192.0.2.1/32\nannounce 2001:db8::/64\n");

        let mut second = driver(directory.path(), &script, 60);
        assert_eq!(second.adopt().await.unwrap().len(), 2);
        let outcome = second
            .reconcile(&Wanted::from([(a, Some(Role::Draining))]))
            .await;
        assert_eq!(outcome.announced, [(a, Role::Draining)].into());
        told("withdraw 2001:db8::/64\ndrain 192.0.2.1/32\n");
    }

    #[tokio::test]
    async fn a_command_that_fails_or_hangs_is_named_and_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let vip: Prefix = "192.0.2.1".parse().unwrap();
        let wanted = Wanted::from([(vip, Some(Role::Serving))]);
        let began = Instant::now();
        for (script, seconds, words) in [
            (
                "echo no session >&2; exit 3",
                60,
                "failed (exit status: 3): no session",
            ),
            ("sleep 600 & wait", 1, "was killed: it ran longer than 1s"),
            (
                "head -c 10000000 /dev/zero >&2; exit 1",
                60,
                "failed (exit status: 1)",
            ),
        ] {
            let outcome = driver(directory.path(), script, seconds)
                .reconcile(&wanted)
                .await;
            assert!(
                outcome.announced.is_empty() && outcome.failed[&vip].contains(words),
                "{outcome:?}"
            );
        }
        assert!(began.elapsed() < Duration::from_secs(120));
    }
}
