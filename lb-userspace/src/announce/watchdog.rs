//! `lbd watchdog`: a process beside `lbd` that withdraws what is announced when packets are not balanced any more and nobody
//! else sees to it. It announces nothing, and withdraws nothing only because `lbd` is gone.

use super::{balances, withdraw_all};
use crate::{
    config::NodeConfig,
    dataplane::{Attachment, InterfaceSetting, aya},
};
use anyhow::Result;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    time::{interval, timeout},
};
use tracing::{error, info, warn};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How long packets may not be balanced while `lbd` answers: it looks once a second, attaches the program again, and withdraws
/// by itself.
const GRACE: Duration = Duration::from_secs(3);
/// How long while it does not: two looks, so that a program that is just replaced does not count.
const ALONE: Duration = Duration::from_millis(300);
/// Longest wait for `lbd` to take a connection.
const ANSWER: Duration = Duration::from_millis(200);

/// What the looks so far mean.
#[derive(Debug, Default)]
struct Watch {
    /// Since when packets are not balanced.
    sick: Option<Instant>,
}

impl Watch {
    /// Whether what is announced is to be withdrawn.
    fn look(&mut self, well: bool, lbd_answers: bool, now: Instant) -> bool {
        if well {
            self.sick = None;
            return false;
        }
        let since = *self.sick.get_or_insert(now);
        now.duration_since(since) >= if lbd_answers { GRACE } else { ALONE }
    }
}

/// The node's configuration: the one in force, and what its file says by now.
#[derive(Debug)]
struct Source {
    file: PathBuf,
    /// What the file said at the last look, or why it could not be read.
    text: Result<String, String>,
    config: NodeConfig,
    /// A newer one. `lbd` may be told of it long after it was written, so it is in force once packets are balanced as it says.
    next: Option<NodeConfig>,
}

impl Source {
    fn new(file: &Path, config: NodeConfig) -> Self {
        Self {
            file: file.into(),
            text: Ok(String::new()),
            config,
            next: None,
        }
    }

    /// Reads the file again if it has changed. One that is of no use here changes nothing.
    fn refresh(&mut self) {
        let text =
            fs::read_to_string(&self.file).map_err(|error| format!("cannot be read: {error}"));
        if text == self.text {
            return;
        }
        self.text = text;
        match usable(&self.text) {
            Ok(config) => self.next = Some(config).filter(|config| *config != self.config),
            Err(problem) => {
                warn!(%problem, file = %self.file.display(), "the old configuration is in force");
            }
        }
    }

    /// Whether packets are balanced.
    ///
    /// # Errors
    /// When the interfaces cannot be looked at.
    fn balances(
        &mut self,
        observe: impl Fn(&[InterfaceSetting]) -> Result<Vec<Attachment>>,
    ) -> Result<Result<(), String>> {
        if let Some(next) = &self.next
            && balances(&observe(&next.interfaces)?).is_ok()
        {
            info!("the new configuration is in force");
            self.config = next.clone();
            self.next = None;
            return Ok(Ok(()));
        }
        Ok(balances(&observe(&self.config.interfaces)?))
    }
}

/// The configuration in a file's text.
fn usable(text: &Result<String, String>) -> Result<NodeConfig, String> {
    let config = NodeConfig::parse(text.as_ref()?).map_err(|problems| problems.to_string())?;
    if config.announce.is_none() {
        return Err("there is no `announce` section, so that there is nothing to withdraw".into());
    }
    Ok(config)
}

/// Watches until SIGTERM or SIGINT. `config`: what is in the file.
///
/// # Errors
/// What keeps it from starting. Once it runs, nothing does.
pub async fn run(file: &Path, config: NodeConfig) -> Result<()> {
    if config.announce.is_none() {
        anyhow::bail!(
            "the configuration has no `announce` section, so that there is nothing to withdraw"
        );
    }
    aya::check_privileges()?;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let mut tick = interval(LOOK);
    let (mut watch, mut said) = (Watch::default(), String::new());
    let (mut source, mut blind) = (Source::new(file, config), false);
    info!("watching the data plane");
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = tick.tick() => {}
        }
        source.refresh();
        let seen = match source.balances(aya::observe) {
            Ok(seen) => seen,
            // What cannot be seen is no reason to withdraw.
            Err(problem) => {
                if !blind {
                    warn!(problem = %format!("{problem:#}"), "the interfaces cannot be looked at");
                }
                blind = true;
                continue;
            }
        };
        blind = false;
        let config = &source.config;
        let answers = timeout(ANSWER, UnixStream::connect(&config.socket)).await;
        let lbd_answers = matches!(answers, Ok(Ok(_)));
        let why = seen.as_ref().err().cloned().unwrap_or_default();
        if !watch.look(seen.is_ok(), lbd_answers, Instant::now()) {
            said.clear();
            continue;
        }
        let Some(settings) = &config.announce else {
            continue;
        };
        match withdraw_all(settings, &config.state_directory).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => {
                warn!(%why, lbd_answers, withdrawn = ?gone, "the data plane is sick: VIPs are withdrawn")
            }
            Err(problem) if problem != said => {
                error!(%why, %problem, "the data plane is sick, and VIPs cannot be withdrawn");
                said = problem;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::XdpMode;

    fn write(file: &Path, interfaces: &str) {
        let text = format!("interfaces: {interfaces}\nannounce: {{ allow: [192.0.2.0/24] }}\n");
        fs::write(file, text).unwrap();
    }

    #[test]
    fn a_new_configuration_counts_once_packets_are_balanced_as_it_says() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lbd.yaml");
        write(&file, "[{ name: eth0 }, { name: eth1 }]");
        let mut source = Source::new(&file, NodeConfig::read(&file).unwrap());
        // Whether all is well when the program is on these interfaces.
        let mut well = |bound: &[&str]| {
            source.refresh();
            let look = |setting: &InterfaceSetting| Attachment {
                name: setting.name.clone(),
                index: 7,
                up: true,
                mode: bound
                    .contains(&setting.name.as_str())
                    .then_some(XdpMode::Native),
                program_id: 9,
                note: String::new(),
            };
            let seen = source.balances(|settings| Ok(settings.iter().map(look).collect()));
            seen.unwrap().is_ok()
        };
        assert!(well(&["eth0", "eth1"]));
        assert!(!well(&["eth0"]));
        // eth1 is removed, and lbd is told.
        write(&file, "[{ name: eth0 }]");
        assert!(well(&["eth0"]));
        // What cannot be used, and what is not there, changes nothing.
        for broken in ["[{ name: eth2 }", "[]"] {
            write(&file, broken);
            assert!(well(&["eth0"]) && !well(&[]));
        }
        fs::write(&file, "interfaces: [{ name: eth2 }]").unwrap();
        assert!(well(&["eth0"]) && !well(&["eth2"]));
        fs::remove_file(&file).unwrap();
        assert!(well(&["eth0"]) && !well(&[]));
        // eth2 is added, and lbd is told some time later.
        write(&file, "[{ name: eth0 }, { name: eth2 }]");
        assert!(well(&["eth0"]));
        assert!(well(&["eth0", "eth2"]));
        assert!(!well(&["eth0"]));
    }

    #[test]
    fn only_a_sick_data_plane_is_a_reason() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut watch = Watch::default();
        // Milliseconds, well, lbd answers, withdrawn.
        for (moment, well, answers, expected) in [
            (0, true, true, false),
            (200, true, false, false),
            (9_000, true, false, false),
            (9_200, false, false, false),
            (9_400, false, false, false),
            (9_600, false, false, true),
            (9_800, true, false, false),
            (10_000, false, true, false),
            (12_800, false, true, false),
            (13_000, false, true, true),
            (13_200, true, true, false),
        ] {
            assert_eq!(watch.look(well, answers, at(moment)), expected, "{moment}");
        }
    }
}
