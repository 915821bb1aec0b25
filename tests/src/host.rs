//! Hosts as a person meets them: a network namespace of the test with its own `/etc`, `/run`, `/usr/local`, `/var/lib` and BPF
//! file system, so that what is installed on one is there alone, and gone with it. What is below `/etc` of the machine shows
//! through.
//!
//! There is no systemd in one: `systemctl` starts what units say (see `host/systemctl`). `apt-get install` is content when the
//! packages are on the machine.

use crate::{
    effort,
    netns::Namespace,
    process::{Process, output},
    require,
    wait::wait_until,
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Commands that a host has of its own.
const COMMANDS: [(&str, &str); 3] = [
    ("systemctl", include_str!("host/systemctl")),
    ("apt-get", include_str!("host/apt-get")),
    ("journalctl", include_str!("host/journalctl")),
];

/// Makes the directories its own, says so, and stays until it is killed: others enter the mounts that it holds.
const HOLD: &str = r#"set -e
mount -t tmpfs none "$1"
for at in etc usr/local var/lib; do
    mkdir -p "$1/upper/$at" "$1/work/$at"
    mount -t overlay none -o "lowerdir=/$at,upperdir=$1/upper/$at,workdir=$1/work/$at" "/$at"
done
mount -t tmpfs none /run
mount -t bpf none /sys/fs/bpf
echo ready
exec sleep infinity
"#;

/// One host.
#[derive(Debug)]
pub struct Host {
    name: String,
    holder: Process,
    netns: PathBuf,
    directory: PathBuf,
}

impl Host {
    /// Makes the host of a namespace. Its files are in a directory `NAME` of this one, in which it runs commands as in a clone of
    /// this repository that has been built.
    ///
    /// # Errors
    /// When a mount is refused.
    pub fn new(namespace: &Namespace, name: &str, directory: &Path) -> Result<Self> {
        let directory = directory.join(name);
        let (disk, clone) = (directory.join("disk"), directory.join("clone"));
        for path in [&disk, &clone.join("target/release"), &directory.join("bin")] {
            fs::create_dir_all(path)?;
        }
        for program in ["lbd", "lbctl"] {
            symlink(
                require::built(program)?,
                clone.join("target/release").join(program),
            )?;
        }
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        symlink(Path::new(root).join("deploy"), clone.join("deploy"))?;
        for (name, text) in COMMANDS {
            let path = directory.join("bin").join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let mut command = namespace.command("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                HOLD,
                "sh",
            ])
            .arg(&disk);
        let log = directory.join("holder.log");
        let mut holder = Process::start(&format!("the host {name}"), command, &log)?;
        wait_until("the host's mounts", Duration::from_secs(10), || {
            if let Some(status) = holder.ended()? {
                bail!("the host {name} ended ({status}): {}", holder.log());
            }
            Ok(holder.log().contains("ready").then_some(()))
        })?;
        Ok(Self {
            name: name.into(),
            holder,
            netns: Path::new("/run/netns").join(namespace.name()),
            directory,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory in which it runs commands.
    pub fn work_directory(&self) -> PathBuf {
        self.directory.join("clone")
    }

    /// A command on this host.
    pub fn command(&self, program: &str) -> Command {
        // Opened before the mounts are entered, whose /run is the host's own.
        let mut command = Command::new("nsenter");
        let holder = self.holder.pid();
        command
            .arg(format!("--mount=/proc/{holder}/ns/mnt"))
            // Whoever enters mounts is at their root, which is another's if the tests run in a chroot.
            .arg(format!("--root=/proc/{holder}/root"))
            .arg(format!("--net={}", self.netns.display()))
            .arg(format!("--wd={}", self.work_directory().display()))
            .arg(program);
        let path = std::env::var("PATH").unwrap_or_default();
        let own = self.directory.join("bin");
        command.env(
            "PATH",
            format!("{}:/usr/local/bin:/usr/local/sbin:{path}", own.display()),
        );
        command
    }

    /// Runs commands in a shell on this host; what they write to standard output.
    ///
    /// # Errors
    /// When one fails, or they do not end within `limit`: then they are killed.
    pub fn run(&self, commands: &str, limit: Duration) -> Result<String> {
        let (said, errors) = (self.directory.join("said"), self.directory.join("errors"));
        let mut shell = self.command("sh");
        shell
            .args(["-euc", commands])
            .stdin(Stdio::null())
            .stdout(fs::File::create(&said)?)
            .stderr(fs::File::create(&errors)?);
        let mut child = shell.spawn().context("cannot run nsenter")?;
        let deadline = Instant::now() + effort::limit(limit);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!(
                    "on {}, after {limit:?}, this still runs:\n{commands}",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = fs::read_to_string(said)?;
        ensure!(
            status.success(),
            "on {} ({status}):\n{commands}{said}{}",
            self.name,
            fs::read_to_string(errors)?
        );
        Ok(said)
    }

    /// Runs `lbctl` with these words; what it writes to standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn lbctl(&self, words: &str) -> Result<String> {
        output(self.command("lbctl").args(words.split_whitespace()))
            .with_context(|| format!("on {}", self.name))
    }

    /// What a unit has logged.
    pub fn log(&self, unit: &str) -> String {
        output(self.command("journalctl").args(["-u", unit])).unwrap_or_default()
    }
}
