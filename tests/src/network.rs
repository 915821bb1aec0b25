//! A second interface for tests of single packets, which needs no network but must exist: a device map takes no other.

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// Index of the second interface.
pub const OTHER: u32 = 7;

/// Moves this thread to a network namespace of its own, in which there are `lo` and [`OTHER`]. It is gone with the last
/// thread in it.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let words = format!("link add eth1 index {OTHER} type veth peer name peer");
    let output = Command::new("ip")
        .args(words.split(' '))
        .output()
        .context("cannot run ip (apt-get install iproute2, or cargo xtask setup)")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
