//! The driver `exec`: a command that says it to whatever speaks to routers. It is called with what to do (`announce`, `drain`
//! or `withdraw`) and the prefix as its last two arguments, and must be able to do twice what it has done once.
//!
//! What it has done is remembered in a file, so that the next daemon continues there. What that daemon has not said itself, it
//! says once more, and everything from time to time: what listens may have started anew.
//!
//! **Invariant.** What may be announced is in the file before the command is called for it. A command that fails may have
//! announced something all the same, and one that was called before a reboot too: it is withdrawn once it is not wanted.

use super::{
    Announced, Announcer, Outcome, Role, Wanted,
    kept::{self, Kept},
    setting::ExecSettings,
    worker::PERIOD,
};
use crate::prefix::Prefix;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    future::pending,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
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
/// After this long no further command is begun before there was a look at what is wanted by then.
const TURN: Duration = Duration::from_secs(1);

/// What the command is called for: a prefix, and how it is to be announced; none: it is withdrawn.
type Call = (Prefix, Option<Role>);

/// How a command can fail.
#[derive(Debug)]
enum Fault {
    /// It cannot be started, so that it has done nothing.
    Absent(String),
    /// It says so.
    Failed(String),
    /// It was killed.
    Slow(String),
}

impl Fault {
    fn into_words(self) -> String {
        match self {
            Self::Absent(words) | Self::Failed(words) | Self::Slow(words) => words,
        }
    }
}

/// A call that has failed, also the last time.
#[derive(Debug, Default)]
struct Failure {
    /// In a row.
    times: u32,
    words: String,
}

/// The driver.
#[derive(Debug)]
pub struct ExecDriver {
    settings: ExecSettings,
    file: PathBuf,
    boot: String,
    /// What may be announced; none: nobody knows how, and if at all.
    known: Wanted,
    /// What of it this driver has said since all was last due.
    said: Announced,
    /// When all is due again.
    again: Instant,
    failures: BTreeMap<Call, Failure>,
}

impl ExecDriver {
    /// A driver that remembers in this directory what it has done.
    pub fn new(settings: ExecSettings, directory: &Path) -> Self {
        Self {
            settings,
            file: directory.join(FILE),
            boot: String::new(),
            known: Wanted::new(),
            said: Announced::new(),
            again: Instant::now() + PERIOD,
            failures: BTreeMap::new(),
        }
    }

    async fn call(&self, verb: &str, prefix: Prefix) -> Result<(), Fault> {
        let Some((program, arguments)) = self.settings.command.split_first() else {
            return Err(Fault::Absent("announce.exec.command is empty".into()));
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
            Fault::Absent(format!(
                "{name} cannot be started: {error}; see announce.exec.command in the node config"
            ))
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
                Err(Fault::Failed(format!("{name} failed ({status}): {last}")))
            }
            Ok((Err(error), _)) => Err(Fault::Failed(format!("{name}: {error}"))),
            Err(_) => {
                if let Some(group) = group {
                    // It may have ended by now.
                    let _ = killpg(group, Signal::SIGKILL);
                }
                let limit = humantime::format_duration(self.settings.timeout);
                Err(Fault::Slow(format!(
                    "{name} was killed: it ran longer than {limit} (announce.exec.timeout)"
                )))
            }
        }
    }

    /// Calls the command for a prefix and remembers what is known then; whether that was written down.
    async fn say(&mut self, (prefix, role): Call) -> Result<bool, Fault> {
        let is_new = role.is_some() && !self.known.contains_key(&prefix);
        if is_new {
            self.known.insert(prefix, None);
            self.remember();
        }
        let verb = match role {
            Some(Role::Serving) => "announce",
            Some(Role::Draining) => "drain",
            None => "withdraw",
        };
        let called = self.call(verb, prefix).await;
        let differs = match (&called, role) {
            (Ok(()), Some(said)) => {
                self.said.insert(prefix, said);
                self.known.insert(prefix, role) != Some(role)
            }
            (Ok(()), None) => {
                self.said.remove(&prefix);
                self.known.remove(&prefix).is_some()
            }
            (Err(Fault::Absent(_)), _) if is_new => self.known.remove(&prefix).is_some(),
            (Err(Fault::Absent(_) | Fault::Failed(_) | Fault::Slow(_)), _) => false,
        };
        if differs {
            self.remember();
        }
        called.map(|()| differs)
    }

    /// Writes down what may be announced. Without it the next daemon only says once more what is known already.
    fn remember(&self) {
        let kept = Kept {
            boot: self.boot.clone(),
            routes: self.known.clone(),
        };
        if let Err(problem) = kept.write(&self.file) {
            warn!(%problem, file = %self.file.display(), "what is announced could not be written down");
        }
    }

    /// What is due, what has failed least often first, so that nothing waits for ever behind a command that hangs.
    fn due(&mut self, wanted: &Wanted) -> Vec<Call> {
        let mut due = calls(&self.known, &self.said, wanted);
        self.failures.retain(|call, _| due.contains(call));
        due.sort_by_key(|call| self.failures.get(call).map_or(0, |failure| failure.times));
        due
    }
}

impl Announcer for ExecDriver {
    async fn adopt(&mut self) -> Result<Announced, String> {
        self.boot = kept::boot()?;
        self.known = match Kept::<Wanted>::read(&self.file) {
            Ok(Some(kept)) if kept.boot == self.boot => kept.routes,
            // Nobody knows yet whether the node balances.
            Ok(Some(kept)) => kept
                .routes
                .into_keys()
                .map(|prefix| (prefix, None))
                .collect(),
            Ok(None) => Wanted::new(),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                ) =>
            {
                warn!(problem = %error, file = %self.file.display(), "what was announced before is not known");
                Wanted::new()
            }
            Err(error) => return Err(format!("{} cannot be read: {error}", self.file.display())),
        };
        Ok(announced(&self.known))
    }

    async fn reconcile(&mut self, wanted: &Wanted) -> Outcome {
        let began = Instant::now();
        if began >= self.again {
            self.said.clear();
            self.again = began + PERIOD;
        }
        let mut due = self.due(wanted).into_iter();
        let (mut advances, mut is_written) = (false, true);
        for call in due.by_ref() {
            let mut hangs = false;
            match self.say(call).await {
                Ok(written) => {
                    self.failures.remove(&call);
                    (advances, is_written) = (true, written);
                }
                Err(fault) => {
                    hangs = matches!(fault, Fault::Slow(_));
                    let failure = self.failures.entry(call).or_default();
                    failure.times += 1;
                    failure.words = fault.into_words();
                }
            }
            if hangs || began.elapsed() >= TURN {
                break;
            }
        }
        if !is_written {
            // Another process, the watchdog for one, may have written what was so before these calls.
            self.remember();
        }
        let failures = self.failures.iter();
        Outcome {
            announced: announced(&self.known),
            failed: failures
                .map(|((prefix, _), failure)| (*prefix, failure.words.clone()))
                .collect(),
            problem: None,
            more: due.any(|call| advances || !self.failures.contains_key(&call)),
        }
    }

    async fn disturbed(&mut self) {
        pending().await
    }
}

/// What the command is to be called for: what attracts packets that cannot be served comes first.
fn calls(known: &Wanted, said: &Announced, wanted: &Wanted) -> Vec<Call> {
    let gone = known
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

/// What is announced for sure.
fn announced(known: &Wanted) -> Announced {
    let sure = known
        .iter()
        .filter_map(|(prefix, role)| Some((*prefix, (*role)?)));
    sure.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
        assert!(!log.exists(), "nothing is due");
        first.again = Instant::now();
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

    fn wanted(vips: &[&str], role: Option<Role>) -> Wanted {
        let vips = vips.iter().map(|vip| (vip.parse().unwrap(), role));
        vips.collect()
    }

    const SERVING: Option<Role> = Some(Role::Serving);

    #[tokio::test]
    async fn what_another_process_wrote_is_put_right_when_all_is_said_once_more() {
        let directory = tempfile::tempdir().unwrap();
        let wanted = wanted(&["192.0.2.1"], SERVING);
        let mut daemon = driver(directory.path(), "true", 60);
        daemon.adopt().await.unwrap();
        daemon.reconcile(&wanted).await;
        let mut watchdog = driver(directory.path(), "true", 60);
        assert_eq!(watchdog.adopt().await.unwrap().len(), 1);
        watchdog.reconcile(&Wanted::new()).await;
        let known = async || driver(directory.path(), "true", 60).adopt().await.unwrap();
        assert_eq!(known().await, Announced::new());
        daemon.again = Instant::now();
        daemon.reconcile(&wanted).await;
        assert_eq!(known().await.len(), 1);
    }

    #[tokio::test]
    async fn what_may_have_been_announced_is_withdrawn() {
        let vips = ["192.0.2.1"];
        let vip: Prefix = vips[0].parse().unwrap();
        // It fails when it has done its work, and is cut off then.
        for end in ["false", "exec sleep 600"] {
            let directory = tempfile::tempdir().unwrap();
            let log = directory.path().join("log");
            let script = format!("echo $1 >> {}; test $1 = withdraw || {end}", log.display());
            let mut first = driver(directory.path(), &script, 60);
            first.adopt().await.unwrap();
            let serving = wanted(&vips, SERVING);
            let said = timeout(Duration::from_secs(2), first.reconcile(&serving)).await;
            if let Ok(outcome) = said {
                assert_eq!(outcome.announced, Announced::new());
                assert!(outcome.failed.contains_key(&vip), "{outcome:?}");
            }
            drop(first);
            let mut second = driver(directory.path(), &script, 60);
            assert_eq!(second.adopt().await, Ok(Announced::new()));
            let outcome = second.reconcile(&wanted(&vips, None)).await;
            assert!(outcome.is_complete(), "{outcome:?}");
            assert_eq!(fs::read_to_string(&log).unwrap(), "announce\nwithdraw\n");
            let mut third = driver(directory.path(), "false", 60);
            third.adopt().await.unwrap();
            assert!(third.reconcile(&wanted(&vips, None)).await.is_complete());
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_has_announced_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut driver = driver(directory.path(), "true", 60);
        driver.settings.command = vec!["/nonexistent".into()];
        driver.adopt().await.unwrap();
        let outcome = driver.reconcile(&wanted(&["192.0.2.1"], SERVING)).await;
        assert!(!outcome.is_complete());
        let outcome = driver.reconcile(&wanted(&["192.0.2.1"], None)).await;
        assert_eq!(outcome, Outcome::default());
    }

    #[tokio::test]
    async fn one_that_always_fails_keeps_no_other_from_being_said_once_more() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!("echo $2 >> {}; test $2 != 192.0.2.1/32", log.display());
        let mut driver = driver(directory.path(), &script, 60);
        driver.adopt().await.unwrap();
        let wanted = wanted(&["192.0.2.1", "192.0.2.2"], SERVING);
        for round in [1, 1, 2] {
            if round == 2 {
                driver.again = Instant::now();
            }
            assert!(!driver.reconcile(&wanted).await.is_complete());
            let said = fs::read_to_string(&log).unwrap();
            assert_eq!(said.matches("192.0.2.2").count(), round);
        }
    }

    #[tokio::test]
    async fn no_order_waits_for_more_than_one_that_hangs() {
        let directory = tempfile::tempdir().unwrap();
        let script = "case $2 in *.[12]/32) sleep 600;; esac";
        let mut driver = driver(directory.path(), script, 2);
        driver.adopt().await.unwrap();
        let wanted = wanted(&["192.0.2.1", "192.0.2.2", "192.0.2.3"], SERVING);
        let limit = Duration::from_secs(4);
        let mut outcome = Outcome::default();
        // The second hangs as well; the third is said before either hangs once more.
        for (number, more) in [(1, true), (2, true), (3, true), (4, false)] {
            let began = Instant::now();
            outcome = driver.reconcile(&wanted).await;
            assert!(began.elapsed() < limit, "{:?}", began.elapsed());
            assert_eq!(outcome.more, more, "{number}: {outcome:?}");
        }
        assert_eq!(outcome.announced.len(), 1, "{outcome:?}");
        assert_eq!(outcome.failed.len(), 2, "{outcome:?}");
    }

    #[tokio::test]
    async fn a_turn_ends_after_a_second_and_is_followed_by_another() {
        let directory = tempfile::tempdir().unwrap();
        let mut driver = driver(directory.path(), "sleep 0.6", 60);
        driver.adopt().await.unwrap();
        let wanted = wanted(&["192.0.2.1", "192.0.2.2", "192.0.2.3"], SERVING);
        let outcome = driver.reconcile(&wanted).await;
        assert!(outcome.more && outcome.announced.len() < 3, "{outcome:?}");
        // Who takes all back does not leave it at one turn.
        super::super::withdraw(driver).await.unwrap();
        let mut next = self::driver(directory.path(), "false", 60);
        assert_eq!(next.adopt().await, Ok(Announced::new()));
    }

    #[tokio::test]
    async fn after_a_reboot_nothing_is_announced_and_all_is_withdrawn_that_is_not_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let script = format!("echo $1 >> {}", log.display());
        let mut first = driver(directory.path(), &script, 60);
        first.adopt().await.unwrap();
        first.reconcile(&wanted(&["192.0.2.1"], SERVING)).await;
        first.boot = "another".into();
        first.remember();
        let mut second = driver(directory.path(), &script, 60);
        assert_eq!(second.adopt().await, Ok(Announced::new()));
        second.reconcile(&wanted(&["192.0.2.1"], None)).await;
        assert_eq!(fs::read_to_string(&log).unwrap(), "announce\nwithdraw\n");
    }
}
