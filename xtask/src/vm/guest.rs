//! One guest: boots a kernel, which runs the tests and ends, and passes on what they print.

use super::{EMULATOR, Test, image, kernel::Kernel};
use crate::{command, verifier::Work};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
};

/// Seconds that a test file may take, on average: twice what the longest takes on a busy machine. A guest is stopped after that.
const LIMIT: usize = 600;
/// The same for all that a guest measures.
const MEASURING_LIMIT: usize = 2 * LIMIT;

/// What a guest's clock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The host's time.
    Host,
    /// Instructions that the guest has run, as nanoseconds; waiting takes no time at all.
    Instructions,
}

/// Runs the tests in a guest with this kernel. Each line is printed after `[VERSION]`.
pub fn run(
    root: &Path,
    kernel: &Kernel,
    tests: &[Test],
    arguments: &[String],
    time: Time,
    work: &Mutex<Work>,
) -> Result<()> {
    let initramfs = with_tests(root, kernel, tests, arguments, time)?;
    let mut child = boot(kernel, &initramfs, tests.len(), time)?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut left: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
    let mut failed = vec![];
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read what the guest prints")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        println!("[{}] {line}", kernel.version);
        if let Ok(mut work) = work.lock() {
            work.note(line);
        }
        if let Some((name, status)) = end(line) {
            left.retain(|test| *test != name);
            if status != "0" {
                failed.push(name.to_owned());
            }
        }
    }
    let status = child.wait().context("cannot wait for the emulator")?;
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if !left.is_empty() {
        bail!(
            "the guest ended ({status}) without the end of {}",
            left.join(", ")
        );
    }
    Ok(())
}

/// Starts the emulator.
fn boot(kernel: &Kernel, initramfs: &Path, tests: usize, time: Time) -> Result<Child> {
    let (emulator, _) = EMULATOR;
    let emulator = command::find(emulator).context("the emulator is gone")?;
    let limit = match time {
        Time::Host => LIMIT * tests,
        Time::Instructions => MEASURING_LIMIT,
    };
    let limit = limit.to_string();
    // It does not outlive this program, however that ends.
    let mut guest = Command::new("setpriv");
    guest.args(["--pdeathsig", "TERM", "timeout", "--kill-after=5", &limit]);
    guest.arg(emulator);
    guest
        .args(["-machine", "q35"])
        .args(["-smp", "1", "-m", "2048"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-nic", "none"])
        .args(["-virtfs", HOST_FILES])
        .args(["-append", COMMAND_LINE])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs);
    match time {
        Time::Host => guest.args(["-cpu", "max", "-accel", "tcg"]),
        Time::Instructions => guest
            .args(["-cpu", COUNTED_CPU])
            .args(["-accel", "tcg,thread=single"])
            .args(["-icount", "shift=0,sleep=off"])
            .args(CARDS),
    };
    guest
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the emulator")
}

/// Without the string instructions that a CPU does in large steps: the emulator does them by the byte and counts each, and a kernel
/// that has them clears every new page that way.
const COUNTED_CPU: &str = "max,-erms";

/// Two network cards that are joined. They are emulated where the guest's instructions are, and so after as many of them in every
/// run: what the guest writes to them is handled at once, and what it sends is passed on by a timer of the guest's clock.
/// Otherwise a thread would do it, whenever the host lets it run. The balancer's card waits less: with equal waits, figures were
/// further apart.
const CARDS: [&str; 8] = [
    "-netdev",
    "hubport,id=router,hubid=0",
    "-netdev",
    "hubport,id=balancer,hubid=0",
    "-device",
    "virtio-net-pci,netdev=router,ioeventfd=off,tx=timer,x-txtimer=150000",
    "-device",
    "virtio-net-pci,netdev=balancer,ioeventfd=off,tx=timer,x-txtimer=50000",
];

/// The whole host, read-only. The inodes of its file systems are renumbered, or two files could look like one.
const HOST_FILES: &str =
    "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=2 panic=-1 mitigations=off";

/// The kernel's first file system, the script that goes on in the host's files and the list of tests, in one file.
fn with_tests(
    root: &Path,
    kernel: &Kernel,
    tests: &[Test],
    arguments: &[String],
    time: Time,
) -> Result<PathBuf> {
    let folder = root.join("target/vm").join(kernel.version);
    let tree = folder.join("run");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("{}", tree.display()))?;
    }
    fs::create_dir_all(tree.join("tests"))?;
    let init = tree.join("init");
    fs::write(&init, include_str!("init.sh"))?;
    fs::set_permissions(&init, Permissions::from_mode(0o755))?;
    if time == Time::Instructions {
        fs::write(tree.join("tests/measuring"), "")?;
    }
    let package = root.join("tests");
    let mut list = String::new();
    for test in tests {
        list += &format!(
            "{} {} {}\n",
            test.name,
            package.display(),
            test.program.display()
        );
    }
    if list.lines().any(|line| line.split(' ').count() != 3) {
        bail!("a path with a space in it: {}", root.display());
    }
    let quoted = |argument: &String| format!("'{}'", argument.replace('\'', r"'\''"));
    let arguments: Vec<String> = arguments.iter().map(quoted).collect();
    fs::write(tree.join("tests/list"), list)?;
    fs::write(tree.join("tests/arguments"), arguments.join(" "))?;
    let (own, whole) = (folder.join("tests.cpio"), folder.join("whole"));
    image::archive(&tree, &kernel.busybox(), &own)?;
    let mut out = File::create(&whole).with_context(|| format!("{}", whole.display()))?;
    for part in [&kernel.initramfs, &own] {
        std::io::copy(&mut File::open(part)?, &mut out)?;
    }
    Ok(whole)
}

/// Name and exit status in the line that ends a test.
fn end(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("guest: end ")?.split_once(' ')
}
