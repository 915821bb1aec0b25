//! Ctrl-C, SIGTERM and SIGHUP: clean up and end.

use crate::session::Session;
use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::{
    io::{self, Write},
    process, thread,
};

/// Makes these signals remove what carries the names of a session and end the process. Call it before any other thread
/// is started. `session` gives another value of that session each time.
///
/// # Errors
/// When signals cannot be blocked.
pub fn clean_up_on_signals(session: impl Fn() -> Session + Send + 'static) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Threads inherit this, and so do children: `Namespace::command` takes it back.
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        // Whoever holds these stops the program at the next thing it says.
        let (mut out, _err) = (io::stdout().lock(), io::stderr().lock());
        // A closed output is no reason to leave everything in place.
        let _ = writeln!(out, "\n{signal}: cleaning up");
        // A session removes everything when it is dropped. Something may be in the making at this moment: look again.
        while session().exists() {}
        process::exit(128 + signal as i32);
    });
    Ok(())
}
