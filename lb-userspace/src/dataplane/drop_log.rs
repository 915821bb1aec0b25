//! The program's own log of what it drops: one line a packet, for looking closely at a fault. Off unless the daemon's
//! log filter asks for it (`--log info,lb_ebpf=debug`) when it starts; then the verifier deletes the code for it.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, log_enabled};

/// Where the records say they come from: the program's crate.
const TARGET: &str = "lb_ebpf";

/// The reading end of the program's log.
pub(super) struct DropLog(Option<EbpfLogger<&'static dyn Log>>);

impl DropLog {
    /// The level to load the program with, in aya-log's numbers: 0 is off.
    pub(super) fn level() -> u8 {
        if log_enabled!(target: TARGET, Level::Debug) {
            Level::Debug as u8
        } else {
            0
        }
    }

    /// Opens the log of a program loaded with that level.
    pub(super) fn open(ebpf: &mut Ebpf, level: u8) -> Result<Self> {
        let open = || EbpfLogger::init(ebpf).context("cannot read the XDP program's log");
        Ok(Self((level != 0).then(open).transpose()?))
    }

    /// Writes what has come to the daemon's log.
    pub(super) fn flush(&mut self) {
        if let Some(log) = &mut self.0 {
            log.flush();
        }
    }
}
