//! Running other programs: on the terminal, or quietly into a log that is shown when they fail.

use anyhow::{Context, Result, bail};
use std::{
    env,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::toolchain;

/// The cargo that runs this program.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Runs a command on the terminal.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", line(command));
    }
    Ok(())
}

/// Runs a command with its output appended to `log`. Says every ten seconds how it gets on; kills it at `limit`; an
/// error shows the end of the log.
pub fn run_logged(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    let open = || File::options().create(true).append(true).open(log);
    let (stdout, stderr) = open()
        .and_then(|out| Ok((out, open()?)))
        .with_context(|| format!("{}", log.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let start = Instant::now();
    let mut told = Duration::ZERO;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let past = start.elapsed();
        if past > limit {
            child.kill()?;
            child.wait()?;
            bail!(
                "{} did not end within {} s; its output:\n{}",
                line(command),
                limit.as_secs(),
                tail(log, 15)
            );
        }
        if past >= told + Duration::from_secs(10) {
            told = past;
            println!("    {:>3} s  {}", past.as_secs(), tail(log, 1).trim());
        }
        thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!(
            "{} failed ({status}); the end of {}:\n{}",
            line(command),
            log.display(),
            tail(log, 15)
        );
    }
    Ok(())
}

/// Standard output of a command that succeeds; nothing otherwise.
pub fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let ran = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    ran.status
        .success()
        .then(|| String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Where a program is: PATH, then the folders for administrators, which a user's PATH may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let all = toolchain::path_directories()
        .into_iter()
        .chain(administrators);
    all.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A command as a person would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..]
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect()
}
