//! keepalived beside `lbd`, with the files of `deploy/`: only the values that they tell an operator to change are changed.

use crate::{
    netns::Namespace,
    node::Node,
    process::{Process, output},
    topology::{VIP_V4, VIP_V6},
    wait::wait_until,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// The shipped configuration.
pub const CONFIGURATION: &str = include_str!("../../deploy/keepalived.conf");
/// The command that the driver `exec` calls.
pub const TRACK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/keepalived-track");

/// Where it is told to write the ids of its processes: options and files.
const PID_FILES: [(&str, &str); 3] = [
    ("--pid", "pid"),
    ("--vrrp_pid", "vrrp.pid"),
    ("--checkers_pid", "checkers.pid"),
];

/// keepalived on one node, whether it runs or not.
#[derive(Debug)]
pub struct Keepalived {
    directory: PathBuf,
    process: Option<Process>,
}

impl Keepalived {
    /// Writes its configuration for [`VIP_V4`] and [`VIP_V6`] on `eth0` into a directory of its own.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn new(directory: PathBuf) -> Result<Self> {
        let track = directory.join("track");
        let etc = directory.join("etc");
        fs::create_dir_all(&track)?;
        fs::create_dir_all(&etc)?;
        let values = [
            ("VIP_V4", VIP_V4.to_string()),
            ("VIP_V6", VIP_V6.to_string()),
            ("TRACK", track.display().to_string()),
        ];
        fs::write(
            etc.join("keepalived.conf"),
            with_values(CONFIGURATION, &values)?,
        )?;
        Ok(Self {
            directory,
            process: None,
        })
    }

    /// The section `announce` of the configuration of `lbd` beside it, with short waits.
    pub fn announce(&self) -> String {
        let directory = self.directory.display();
        format!(
            "announce:
  allow: [10.0.0.0/24, \"fd00::/64\"]
  hold_down: 1s
  drain: {{ converge: 1s, linger: 1s }}
  driver: exec
  exec: {{ command: [{TRACK}, --directory, {directory}/track, --config, {directory}/etc, --pid-file, {directory}/pid] }}
"
        )
    }

    /// Where the tracked files are.
    pub fn track(&self) -> PathBuf {
        self.directory.join("track")
    }

    /// Starts it and waits until it has read its configuration.
    ///
    /// # Errors
    /// When it does not start; the error has what it says.
    pub fn start(&mut self, namespace: &Namespace) -> Result<()> {
        let mut command = namespace.command("keepalived");
        command
            .args(["--dont-fork", "--log-console", "--log-detail"])
            .arg("--use-file")
            .arg(self.directory.join("etc/keepalived.conf"));
        for (option, file) in PID_FILES {
            command.arg(option).arg(self.directory.join(file));
        }
        let log = self.directory.join("keepalived.log");
        let _ = fs::remove_file(&log);
        let mut process = Process::start("keepalived", command, &log)?;
        wait_until("keepalived to start", Duration::from_secs(10), || {
            if let Some(status) = process.ended()? {
                bail!("keepalived ended ({status}): {}", process.log());
            }
            Ok(process.log().contains("Startup complete").then_some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it, as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let process = self.process.take();
        process.context("keepalived does not run")?.kill()?;
        // Its children died with it. But until init has waited for them, the next keepalived believes that they run.
        for file in PID_FILES.map(|(_, file)| self.directory.join(file)) {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", file.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What it has logged since its start.
    pub fn log(&self) -> String {
        self.process.as_ref().map_or_else(String::new, Process::log)
    }
}

/// Whether a node has an address.
///
/// # Errors
/// When `ip` fails.
pub fn holds(namespace: &Namespace, address: IpAddr) -> Result<bool> {
    let mut ip = namespace.command("ip");
    let text = output(ip.args(["-oneline", "address", "show", "dev", "eth0"]))?;
    let cidr = match address {
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    };
    Ok(text.split_whitespace().any(|word| word == cidr))
}

/// Writes the configuration of `lbd` that goes with it.
///
/// # Errors
/// When that cannot be written.
pub fn configure(node: &Node, keepalived: &Keepalived) -> Result<()> {
    let text = node.configuration("auto") + &keepalived.announce();
    fs::write(node.config(), text)
        .with_context(|| format!("cannot write {}", node.config().display()))
}

/// A file with other values of its `$NAME=` lines.
fn with_values(shipped: &str, values: &[(&str, String)]) -> Result<String> {
    let mut lines: Vec<String> = shipped.lines().map(str::to_owned).collect();
    for (name, value) in values {
        let start = format!("${name}=");
        let line = lines.iter_mut().find(|line| line.starts_with(&start));
        *line.with_context(|| format!("the shipped file has no ${name}"))? =
            format!("{start}{value}");
    }
    Ok(lines.join("\n") + "\n")
}

/// Reads the number in a tracked file; none: there is no such file.
pub fn tracked(directory: &Path, address: IpAddr) -> Option<i32> {
    let text = fs::read_to_string(directory.join(format!("vip-{address}"))).ok()?;
    text.trim().parse().ok()
}
