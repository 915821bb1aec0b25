//! Ctrl-C, SIGTERM and SIGHUP: clean up and end.

use crate::session::Session;
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::{io, process, thread};

/// Makes these signals take the demo down and end the process. Call it before any other thread is started.
///
/// # Errors
/// When signals cannot be blocked.
pub(super) fn clean_up_on_signals(session: fn() -> Session) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Threads inherit this. Children do not: std starts them with no signal blocked.
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        // Whoever holds these stops the demo at the next thing it says.
        let (_out, _err) = (io::stdout().lock(), io::stderr().lock());
        super::screen::say(&format!("\n{signal}: cleaning up"));
        // A session removes everything when it is dropped. The demo may be making something at this moment: look again.
        while session().exists() {}
        process::exit(128 + signal as i32);
    });
    Ok(())
}
