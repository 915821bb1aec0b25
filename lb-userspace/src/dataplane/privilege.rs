//! Whether this process may do what a data plane needs.

use anyhow::{Context as _, Result, ensure};
use std::fs;

/// Numbers of capabilities (capabilities(7), `linux/capability.h`) with what they are needed for.
const NEEDED: [(u32, &str, &str); 2] = [
    (
        21,
        "CAP_SYS_ADMIN",
        "to load the XDP program and to find its maps again by id",
    ),
    (12, "CAP_NET_ADMIN", "to attach it to interfaces"),
];

/// Checks that the process is root or has the capabilities that loading and attaching the XDP program take.
///
/// # Errors
/// Names what is missing and what to do.
pub fn check_privileges() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status")
        .context("cannot read this process's capabilities")?;
    let missing = missing(&status).context("/proc/self/status has no readable CapEff line")?;
    ensure!(
        missing.is_empty(),
        "lbd needs root, or {}; run it as root, with sudo, or from the systemd unit",
        missing.join(" and ")
    );
    Ok(())
}

/// The needed capabilities that are not in the effective set, or `None` when there is no such set.
fn missing(status: &str) -> Option<Vec<String>> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let lacks = |number: u32| effective >> number & 1 == 0;
    let missing = NEEDED.iter().filter(|(number, ..)| lacks(*number));
    Some(
        missing
            .map(|(_, name, purpose)| format!("{name} ({purpose})"))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let names = |mask: &str| {
            missing(&format!("Name:\tlbd\nCapEff:\t{mask}\n")).map(|names| names.join(" "))
        };
        assert_eq!(names("000001ffffffffff").as_deref(), Some(""));
        assert!(
            names("0000000000001000")
                .is_some_and(|n| n.contains("CAP_SYS_ADMIN") && !n.contains("NET"))
        );
        assert!(
            names("0000000000000000")
                .is_some_and(|n| n.contains("CAP_SYS_ADMIN") && n.contains("CAP_NET_ADMIN"))
        );
        assert_eq!(names("no number"), None);
        assert_eq!(missing("Name:\tlbd\n"), None);
    }
}
