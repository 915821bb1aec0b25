//! The programs that the tests and the demo run.

use crate::{apt, command};
use anyhow::{Context, Result};
use std::path::Path;

/// A program and the Debian package it is in.
const PROGRAMS: [(&str, &str); 19] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("jq", "jq"),
    ("nginx", "nginx"),
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("traceroute", "traceroute"),
    ("scapy", "python3-scapy"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("bird", "bird2"),
    ("vtysh", "frr"),
    ("exabgp", "exabgp"),
    ("gobgpd", "gobgpd"),
    ("gobgp", "gobgpd"),
    ("keepalived", "keepalived"),
    ("haproxy", "haproxy"),
    ("curl", "curl"),
    ("openssl", "openssl"),
];

/// Installs what is missing and says so.
pub fn ensure(root: &Path) -> Result<()> {
    let missing = |program: &str| command::find(program).is_none();
    let (mut programs, mut packages) = (vec![], vec![]);
    for (program, package) in PROGRAMS {
        if missing(program) {
            programs.push(program);
            packages.push(package);
        }
    }
    if programs.is_empty() {
        println!(
            "programs:      {}",
            PROGRAMS.map(|(program, _)| program).join(", ")
        );
        return Ok(());
    }
    println!("programs:      {} missing", programs.join(", "));
    packages.dedup();
    apt::install(root, &packages).context("tests and demo need these programs")
}
