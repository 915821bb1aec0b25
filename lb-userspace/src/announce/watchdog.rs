//! `lbd watchdog`: a process beside `lbd` that withdraws what is announced when packets are not balanced any more and nobody
//! else sees to it. It announces nothing, and withdraws nothing only because `lbd` is gone.

use super::{balances, withdraw_all};
use crate::{config::NodeConfig, dataplane::aya};
use anyhow::Result;
use std::time::{Duration, Instant};
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

/// Watches until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting. Once it runs, nothing does.
pub async fn run(config: &NodeConfig) -> Result<()> {
    let Some(settings) = &config.announce else {
        anyhow::bail!(
            "the configuration has no `announce` section, so that there is nothing to withdraw"
        );
    };
    aya::check_privileges()?;
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let mut tick = interval(LOOK);
    let (mut watch, mut said) = (Watch::default(), String::new());
    info!("watching the data plane");
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = tick.tick() => {}
        }
        let seen = match aya::observe(&config.interfaces) {
            Ok(attachments) => balances(&attachments),
            // What cannot be seen is no reason to withdraw.
            Err(problem) => {
                warn!(problem = %format!("{problem:#}"), "the interfaces cannot be looked at");
                continue;
            }
        };
        let answers = timeout(ANSWER, UnixStream::connect(&config.socket)).await;
        let lbd_answers = matches!(answers, Ok(Ok(_)));
        let why = seen.as_ref().err().cloned().unwrap_or_default();
        if !watch.look(seen.is_ok(), lbd_answers, Instant::now()) {
            said.clear();
            continue;
        }
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
