//! FRR in a namespace: zebra, bfdd and bgpd with a file of `deploy/`, read by vtysh as on a host.

use crate::{
    exabgp::with_values,
    netns::Namespace,
    process::{Process, output},
    wait::wait_until,
};
use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::Signal,
    unistd::{User, chown},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The file for a balancer.
pub const BALANCER: &str = include_str!("../../deploy/frr-lb.conf");
/// The file for a router.
pub const ROUTER: &str = include_str!("../../deploy/frr-router.conf");

/// Where Debian has the daemons.
const PROGRAMS: &str = "/usr/lib/frr";
/// The daemons, in the order in which FRR starts them: the others look for zebra once, and then every ten seconds.
const DAEMONS: [&str; 3] = ["zebra", "bfdd", "bgpd"];
/// Whom the daemons run as: their sockets take no other.
const USER: &str = "frr";
/// Longest wait for a daemon.
const LIMIT: Duration = Duration::from_secs(20);

/// A running FRR.
#[derive(Debug)]
pub struct Frr {
    /// As [`DAEMONS`].
    daemons: Vec<Process>,
    sockets: PathBuf,
}

impl Frr {
    /// Starts it in a namespace with a shipped file in which these values are replaced by others (see [`with_values`]). Its files
    /// are in `directory`, under `name`.
    ///
    /// # Errors
    /// When a daemon does not start or vtysh refuses the file; the error has what it says.
    pub fn start(
        namespace: &Namespace,
        directory: &Path,
        name: &str,
        shipped: &str,
        values: &[(&str, &str)],
    ) -> Result<Self> {
        let file = directory.join(format!("{name}.conf"));
        fs::write(&file, with_values(shipped, values)?)?;
        output(Command::new("vtysh").args(["-C", "-f"]).arg(&file))?;
        let sockets = directory.join(name);
        // Sockets that were left there would look like those of a daemon that is ready.
        if sockets.exists() {
            fs::remove_dir_all(&sockets)?;
        }
        fs::create_dir_all(&sockets)?;
        let user = User::from_name(USER)?.with_context(|| format!("there is no user {USER}"))?;
        chown(&sockets, Some(user.uid), Some(user.gid))?;
        // What an earlier zebra that was killed has left: see deploy/frr-lb.conf.
        namespace.ip("route flush proto zebra")?;
        let mut frr = Self {
            daemons: vec![],
            sockets,
        };
        for daemon in DAEMONS {
            let log = directory.join(format!("{name}-{daemon}.log"));
            let process = frr.start_daemon(namespace, daemon, &log)?;
            frr.daemons.push(process);
        }
        frr.vtysh(&["-f".as_ref(), file.as_os_str()])?;
        Ok(frr)
    }

    fn start_daemon(&self, namespace: &Namespace, daemon: &str, log: &Path) -> Result<Process> {
        let in_sockets = |name: &str| self.sockets.join(name);
        let mut command = namespace.command(Path::new(PROGRAMS).join(daemon));
        command
            .args(["-u", USER, "-g", USER, "-P", "0", "--log", "stdout"])
            .args(["-f", "/dev/null", "-i"])
            .arg(in_sockets(&format!("{daemon}.pid")))
            .arg("--vty_socket")
            .arg(&self.sockets)
            .arg("-z")
            .arg(in_sockets("zserv.api"));
        if daemon == "bfdd" {
            command.arg("--bfdctl").arg(in_sockets("bfdd.sock"));
        }
        let mut process = Process::start(daemon, command, log)?;
        let socket = in_sockets(&format!("{daemon}.vty"));
        wait_until(&format!("{daemon} to listen"), LIMIT, || {
            if let Some(status) = process.ended()? {
                bail!("{daemon} ended ({status}): {}", process.log());
            }
            Ok(socket.exists().then_some(()))
        })?;
        Ok(process)
    }

    fn vtysh(&self, arguments: &[&std::ffi::OsStr]) -> Result<String> {
        let mut vtysh = Command::new("vtysh");
        vtysh.arg("--vty_socket").arg(&self.sockets).args(arguments);
        output(&mut vtysh)
    }

    /// What it answers to a command of `vtysh`.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, command: &str) -> Result<String> {
        self.vtysh(&["-c".as_ref(), command.as_ref()])
    }

    /// Sends a signal to all daemons.
    ///
    /// # Errors
    /// When one of them has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.daemons
            .iter()
            .try_for_each(|daemon| daemon.signal(signal))
    }

    /// Kills all daemons, as `kill -9` does.
    ///
    /// # Errors
    /// When one of them had ended before.
    pub fn kill(self) -> Result<()> {
        self.daemons.into_iter().rev().try_for_each(Process::kill)
    }
}
