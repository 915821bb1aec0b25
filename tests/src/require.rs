//! What a test needs of the machine. Where CI runs (`CI` is set) a missing thing fails the test; elsewhere the test
//! is skipped, and says so on the real standard error, past libtest's capture.

use nix::{
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};
use std::{io::Write, path::Path};

/// Where the BPF file system is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// What is missing to load BPF programs: root and a BPF file system. Empty when nothing is.
pub fn missing_for_bpf() -> Vec<String> {
    let mut missing = Vec::new();
    if !geteuid().is_root() {
        missing.push("root (run it with sudo)".into());
    }
    if !statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        missing.push(format!("a BPF file system (mount -t bpf bpf {BPFFS})"));
    }
    missing
}

/// What is missing to build networks of namespaces with web servers in them. Empty when nothing is.
pub fn missing_for_network() -> Vec<String> {
    let mut missing = missing_for_bpf();
    for (command, package) in [
        ("ip", "iproute2"),
        ("ethtool", "ethtool"),
        ("nginx", "nginx"),
    ] {
        if !in_path(command) {
            missing.push(format!(
                "the command {command} in PATH (apt-get install {package}, or cargo xtask setup)"
            ));
        }
    }
    missing
}

/// Whether a command of this name is in `PATH`.
pub fn in_path(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(command).is_file())
}

/// Whether a test that loads BPF programs can run here.
///
/// # Panics
/// When it cannot and `CI` is set.
pub fn bpf() -> bool {
    met(&missing_for_bpf())
}

/// Whether a test in network namespaces can run here.
///
/// # Panics
/// When it cannot and `CI` is set.
pub fn network() -> bool {
    met(&missing_for_network())
}

/// Whether a test that runs `command`, of this Debian package, can run here.
///
/// # Panics
/// When it cannot and `CI` is set.
pub fn command(command: &str, package: &str) -> bool {
    let lack = || format!("{command} in PATH (apt-get install {package}, or cargo xtask setup)");
    let missing = (!in_path(command)).then(lack);
    met(missing.as_slice())
}

fn met(missing: &[String]) -> bool {
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let missing = missing.join(", ");
    assert!(std::env::var_os("CI").is_none(), "{test} needs {missing}");
    // Not eprintln!, which libtest keeps to itself when a test passes. Standard error being closed is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test} needs {missing}");
    false
}

/// The path of a program that cargo built: beside this one, or one directory up from a test in `deps`.
///
/// # Errors
/// When it has not been built.
pub fn built(program: &str) -> anyhow::Result<std::path::PathBuf> {
    let here = std::env::current_exe()?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|directory: &Path| directory.join(program))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            anyhow::anyhow!(
                "{program} has not been built beside {}: run cargo build -p lb-userspace --bins",
                here.display()
            )
        })
}
