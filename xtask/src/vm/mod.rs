//! `cargo xtask vm`: the tests of the eBPF programs, and of backends with the kernel's own tunnels, on other kernels:
//! Debian's, in QEMU without hardware acceleration.
//!
//! **Invariants.** A guest sees this machine's files read-only and has no network: nothing that a test does in it
//! reaches the host. The same test programs run in all guests and on the host. Everything is kept in `target/vm`.

mod guest;
mod image;
mod kernel;

use crate::{apt, build, command, setup, stage, verifier::Work};
use anyhow::{Context, Result, bail};
use guest::Time;
use kernel::Kernel;
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::Mutex,
    thread,
    time::Instant,
};

/// The emulator and the Debian package it is in.
const EMULATOR: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");

/// The kernels to test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    /// Debian 12's own
    #[value(name = "6.1")]
    Old,
    /// Debian 12's newer one, which is also Debian 13's
    #[value(name = "6.12")]
    New,
    /// Both, at the same time
    All,
}

/// What to run; everything by default.
#[derive(clap::Args)]
pub struct Options {
    /// The kernel
    #[arg(value_enum, default_value_t = Which::All)]
    kernel: Which,
    /// Use what an earlier stage of `cargo xtask test` has set up and built
    #[arg(long, hide = true)]
    ready: bool,
    /// Run this program instead, where the time is that of instructions and packets can be generated and balanced
    #[arg(long, value_name = "PROGRAM", conflicts_with = "test", hide = true)]
    counted: Option<PathBuf>,
    /// Run only this test file of package lb-tests (may be given more than once)
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    /// Passed on to every test program, such as the name of a test
    #[arg(last = true, value_name = "TEST ARGS")]
    arguments: Vec<String>,
}

/// A test program and what it is called.
struct Test {
    name: String,
    program: PathBuf,
}

/// Sets up, builds, and runs the tests on every kernel asked for.
pub fn run(root: &Path, options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    if let Some(lack) = lack() {
        bail!("{lack}");
    }
    if !options.ready && options.counted.is_none() {
        let toolchain = setup::run(root)?;
        build::programs(root, &toolchain)?;
    }
    let kernels = prepare(root, options.kernel)?;
    let (tests, time) = match &options.counted {
        Some(program) => (vec![measuring(root, program)?], Time::Instructions),
        None => (build_tests(root, &options.test)?, Time::Host),
    };
    println!("prepared:      {:.1} s", start.elapsed().as_secs_f64());
    let work = Mutex::new(Work::default());
    let run = |kernel: &Kernel| guest::run(root, kernel, &tests, &options.arguments, time, &work);
    let failures: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = kernels
            .iter()
            .map(|kernel| (kernel, scope.spawn(move || run(kernel))))
            .collect();
        running
            .into_iter()
            .filter_map(|(kernel, guest)| match guest.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("Linux {}: {error:#}", kernel.version)),
                Err(_) => Some(format!("Linux {}: its thread panicked", kernel.version)),
            })
            .collect()
    });
    println!("guests:        {:.1} s", start.elapsed().as_secs_f64());
    let work = work
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a guest's thread panicked"))?;
    // As a stage of `cargo xtask test`, that prints it with the host's.
    for line in work.table().into_iter().filter(|_| !options.ready) {
        println!("{line}");
    }
    for failure in &failures {
        eprintln!("FAILED {failure}");
    }
    Ok(ExitCode::from(u8::from(!failures.is_empty())))
}

/// Installs the emulator and fetches the kernels, as part of `cargo xtask setup`. A system that cannot have them can do
/// everything else, so that is said and is no error.
pub fn set_up(root: &Path) {
    let prepared = match lack() {
        Some(lack) => Err(anyhow::Error::msg(lack)),
        None => prepare(root, Which::All),
    };
    match prepared {
        Ok(kernels) => println!(
            "other kernels: {}",
            kernels
                .iter()
                .map(|kernel| kernel.version)
                .collect::<Vec<_>>()
                .join(", ")
        ),
        Err(error) => println!("other kernels: none, `cargo xtask vm` cannot run: {error:#}"),
    }
}

/// Why guests cannot run here, if they cannot.
pub fn lack() -> Option<String> {
    let reasons = [
        (
            cfg!(target_arch = "x86_64"),
            "other kernels are known for x86_64 only",
        ),
        (
            command::is_root(),
            "other kernels need root: run it as root",
        ),
        (
            apt::exists(),
            "other kernels come from Debian's packages, and this system has no apt",
        ),
    ];
    let lacking = reasons.into_iter().find(|(met, _)| !met);
    lacking.map(|(_, reason)| reason.into())
}

fn prepare(root: &Path, which: Which) -> Result<Vec<Kernel>> {
    let (emulator, package) = EMULATOR;
    if command::find(emulator).is_none() {
        println!("emulator:      {emulator} missing");
        apt::install(root, &[package])?;
    }
    let versions: &[&str] = match which {
        Which::Old => &["6.1"],
        Which::New => &["6.12"],
        Which::All => &["6.1", "6.12"],
    };
    versions
        .iter()
        .map(|version| Kernel::ensure(root, version))
        .collect()
}

/// A program that measures, and what it needs beside what tests do.
fn measuring(root: &Path, program: &Path) -> Result<Test> {
    if command::find("ipvsadm").is_none() {
        println!("programs:      ipvsadm missing");
        apt::install(root, &["ipvsadm"])?;
    }
    let name = program.file_name().context("a program without a name")?;
    Ok(Test {
        name: name.to_string_lossy().into_owned(),
        program: program.to_owned(),
    })
}

/// Builds the test programs of these names, or of all that guests run. `cargo` says where each one is:
/// `Executable tests/NAME.rs (target/debug/deps/NAME-HASH)`.
fn build_tests(root: &Path, only: &[String]) -> Result<Vec<Test>> {
    let all = stage::guest_tests(root)?;
    if let Some(unknown) = only.iter().find(|name| !all.contains(name)) {
        bail!(
            "no test file that guests run is called {unknown}; there are {}",
            all.join(", ")
        );
    }
    let names: Vec<&String> = if only.is_empty() {
        all.iter().collect()
    } else {
        only.iter().collect()
    };
    // Tests with networks run these.
    command::run(command::cargo(root).args(["build", "--package", "lb-userspace", "--bins"]))?;
    let mut cargo = command::cargo(root);
    cargo.args(["test", "--no-run", "--package", "lb-tests"]);
    for name in &names {
        cargo.args(["--test", name.as_str()]);
    }
    let mut child = cargo
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command::line(&cargo)))?;
    let stderr = child.stderr.take().context("no standard error")?;
    let mut programs = vec![];
    for line in BufReader::new(stderr).lines() {
        let line = line.context("cannot read what cargo says")?;
        match executable(&line) {
            Some(program) => programs.push(root.join(program)),
            None => eprintln!("{line}"),
        }
    }
    if !child.wait()?.success() {
        bail!("{} failed", command::line(&cargo));
    }
    names
        .into_iter()
        .map(|name| {
            let of_name = |program: &&PathBuf| {
                let file = program.file_name().unwrap_or_default().to_string_lossy();
                file.rsplit_once('-').is_some_and(|(stem, _)| stem == name)
            };
            let program = programs.iter().find(of_name);
            let program = program.with_context(|| format!("cargo built no test {name}"))?;
            Ok(Test {
                name: name.clone(),
                program: program.clone(),
            })
        })
        .collect()
}

fn executable(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("Executable ")?;
    let (_, path) = rest.rsplit_once(" (")?;
    path.strip_suffix(')')
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn executables_are_found_in_what_cargo_says() {
        let line =
            "  Executable tests/dataplane_kernel/main.rs (target/debug/deps/dataplane_kernel-fc)";
        assert_eq!(
            executable(line),
            Some("target/debug/deps/dataplane_kernel-fc")
        );
        assert_eq!(executable("    Finished `test` profile (x)"), None);
    }
}
