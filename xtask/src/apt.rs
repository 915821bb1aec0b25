//! Debian's and Ubuntu's packages.
//!
//! **Invariants.** The package lists are fetched once a run, and only when something has to be installed. No
//! service is started. Output goes to `target/setup/apt.log`.

use crate::command;
use anyhow::{Context, Result, bail};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

/// Whether this system has apt.
pub fn exists() -> bool {
    command::find("apt-get").is_some() && command::find("dpkg-query").is_some()
}

/// Version that apt would install of a package, by the lists it has.
pub fn candidate(package: &str) -> Option<String> {
    let policy = command::output("apt-cache", &["policy", package])?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?
        .trim();
    (version != "(none)").then(|| version.into())
}

/// Installs packages; those that are installed already are not touched.
pub fn install(root: &Path, packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!(
        "apt-get update && apt-get install --no-install-recommends {}",
        missing.join(" ")
    );
    if !exists() {
        bail!(
            "this system has no apt: install the equivalents of {} with its own tools",
            missing.join(" ")
        );
    }
    if !command::is_root() {
        bail!("packages are missing and this is not root; run as root:\n  {by_hand}");
    }
    refresh(root).with_context(|| {
        format!("cannot fetch apt's package lists; when that works again: {by_hand}")
    })?;
    println!("  installing {}", missing.join(" "));
    let mut install = apt_get(root)?;
    install
        .args(["install", "-y", "--no-install-recommends"])
        .args(&missing);
    command::run_logged(&mut install, &log(root)?, Duration::from_secs(1800))
        .with_context(|| format!("cannot install packages; by hand, as root: {by_hand}"))
}

fn installed(package: &str) -> bool {
    let status = command::output("dpkg-query", &["-W", "-f", "${db:Status-Status}", package]);
    status.is_some_and(|status| status == "installed")
}

/// Fetches the package lists, once a run; the first failure stands.
pub fn refresh(root: &Path) -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let fetch = || {
        if !command::is_root() {
            bail!("only root can use apt: run `cargo xtask setup` as root");
        }
        println!("  fetching apt's package lists");
        let mut update = apt_get(root)?;
        update.args(["--error-on=any", "update"]);
        command::run_logged(&mut update, &log(root)?, Duration::from_secs(300))
    };
    let done = DONE.get_or_init(|| fetch().map_err(|error| format!("{error:#}")));
    done.clone().map_err(anyhow::Error::msg)
}

fn apt_get(root: &Path) -> Result<Command> {
    let mut command = Command::new("apt-get");
    let path = format!(
        "DPkg::Path={}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
        no_services(root)?.display()
    );
    command
        .args([
            "-q",
            "-o",
            "Acquire::Retries=1",
            "-o",
            "Acquire::http::Timeout=20",
            "-o",
            "DPkg::Lock::Timeout=120",
        ])
        .args(["-o", &path])
        .env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

/// A folder of commands that stand before the real ones while packages install, and start no service. A policy-rc.d
/// would do the same, but would stay behind if this process were killed.
fn no_services(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/setup/no-services");
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    for name in ["invoke-rc.d", "deb-systemd-invoke"] {
        let script = folder.join(name);
        fs::write(&script, "#!/bin/sh\nexit 0\n")
            .with_context(|| format!("{}", script.display()))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    Ok(folder)
}

fn log(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/setup");
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    Ok(folder.join("apt.log"))
}
