//! `cargo xtask setup`: finds what is there, installs what is missing, says both. A second run finds everything and
//! changes nothing.
//!
//! **Invariants.** Nothing is installed that a variable was meant to choose. The distribution's compiler comes first:
//! it is from where the machine's other packages are from, and leaves the user's rustup as it is.

use crate::{
    apt, command, packages,
    toolchain::{CARGO_VARIABLE, LINKER_VARIABLE, OLDEST_RUSTC, Search, Toolchain},
};
use anyhow::{Context, Error, Result, bail};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// The bpf-linker that setup installs, and the LLVM versions it can be built with.
const BPF_LINKER: &str = "bpf-linker@0.13.0";
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// Sets up everything that tests and demo need.
pub fn run(root: &Path) -> Result<Toolchain> {
    let start = Instant::now();
    let toolchain = toolchain(root)?;
    packages::ensure(root)?;
    println!(
        "setup:         complete ({:.1} s)",
        start.elapsed().as_secs_f64()
    );
    Ok(toolchain)
}

/// Sets up what a build needs.
pub fn toolchain(root: &Path) -> Result<Toolchain> {
    let toolchain = find_or_install(root)?;
    println!("eBPF compiler: {}", toolchain.compiler);
    println!("eBPF linker:   {}", toolchain.linker);
    Ok(toolchain)
}

fn find_or_install(root: &Path) -> Result<Toolchain> {
    type Way = fn(&Path) -> Result<()>;
    let ways: [Way; 2] = [install_compiler_with_apt, add_sources_with_rustup];
    let mut ways = ways.into_iter();
    loop {
        let search = Search::run(root);
        let explanation = match search.best() {
            Ok(toolchain) => return Ok(toolchain),
            Err(explanation) => explanation,
        };
        for variable in [CARGO_VARIABLE, LINKER_VARIABLE] {
            if env::var_os(variable).is_some() {
                bail!("{variable} is set, so nothing is installed in its place; {explanation}");
            }
        }
        // What a linker's LLVM can be depends on the compiler, so it comes second.
        for compiler in &search.compilers {
            if let Some((llvm, prefix)) = llvm_for(root, compiler.llvm)? {
                install_linker(root, llvm, prefix)?;
                return Search::run(root).best().map_err(Error::msg);
            }
        }
        let Some(way) = ways.next() else {
            bail!("{explanation}")
        };
        if let Err(error) = way(root) {
            println!("  that did not work: {error:#}");
        }
    }
}

/// Adds rust-src to the toolchain of rustup that runs this.
fn add_sources_with_rustup(root: &Path) -> Result<()> {
    if command::find("rustup").is_none() {
        bail!("there is no rustup to add rust-src with");
    }
    println!("eBPF compiler: none has rust-src; adding it with rustup");
    let mut add = Command::new("rustup");
    // Where there is no network this ends at once, and the next way is tried.
    add.args(["component", "add", "rust-src"])
        .envs([("RUSTUP_MAX_RETRIES", "0"), ("RUST_BACKTRACE", "0")])
        .current_dir(root);
    let log = log(root, "rustup.log")?;
    command::run_logged(&mut add, &log, Duration::from_secs(60))
}

/// Installs the distribution's own Rust, which has its sources in a package.
fn install_compiler_with_apt(root: &Path) -> Result<()> {
    if !apt::exists() {
        bail!("there is no apt to install the distribution's Rust with");
    }
    println!("eBPF compiler: looking for the distribution's Rust");
    apt::refresh(root)?;
    // Debian calls the newer of its two Rusts, which it keeps for browsers, so.
    for packages in [
        ["rustc-web", "cargo-web", "rust-web-src"],
        ["rustc", "cargo", "rust-src"],
    ] {
        if apt::candidate(packages[0]).is_some_and(|version| new_enough(&version)) {
            return apt::install(root, &packages);
        }
    }
    let (major, minor) = OLDEST_RUSTC;
    bail!("apt has no Rust from {major}.{minor} on")
}

/// Whether a Debian version such as `1.96.0+dfsg1-1` is that of a rustc that will do.
fn new_enough(version: &str) -> bool {
    let mut parts = version
        .split(['.', '+', '~', '-'])
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= OLDEST_RUSTC
}

/// An LLVM that reads the bitcode of version `oldest` and that the linker can be built with: its version, and its
/// prefix if it is installed already.
fn llvm_for(root: &Path, oldest: u32) -> Result<Option<(u32, Option<PathBuf>)>> {
    let mut versions = LINKER_LLVMS.filter(|version| *version >= oldest);
    for version in versions.clone() {
        if let Some(prefix) = installed_llvm(version) {
            return Ok(Some((version, Some(prefix))));
        }
    }
    if !apt::exists() {
        return Ok(None);
    }
    apt::refresh(root)
        .context("a bpf-linker has to be built, and LLVM to build it with installed")?;
    let offered = |version: &u32| apt::candidate(&format!("llvm-{version}-dev")).is_some();
    Ok(versions.find(offered).map(|version| (version, None)))
}

/// Prefix of an LLVM with its headers.
fn installed_llvm(version: u32) -> Option<PathBuf> {
    let of_debian = PathBuf::from(format!("/usr/lib/llvm-{version}"));
    let of_path = || {
        let found = command::output("llvm-config", &["--version"])?;
        found.starts_with(&format!("{version}.")).then_some(())?;
        Some(PathBuf::from(
            command::output("llvm-config", &["--prefix"])?.trim(),
        ))
    };
    let complete = |prefix: &PathBuf| prefix.join("include/llvm-c/Core.h").exists();
    Some(of_debian)
        .filter(complete)
        .or_else(|| of_path().filter(complete))
}

fn install_linker(root: &Path, llvm: u32, prefix: Option<PathBuf>) -> Result<()> {
    println!("eBPF linker:   none fits; building {BPF_LINKER} with LLVM {llvm} (about a minute)");
    let prefix = match prefix {
        Some(prefix) => prefix,
        None => {
            let (llvm_dev, libclang_dev) =
                (format!("llvm-{llvm}-dev"), format!("libclang-{llvm}-dev"));
            apt::install(root, &[&llvm_dev, &libclang_dev, "g++"])?;
            installed_llvm(llvm)
                .with_context(|| format!("{llvm_dev} is installed but has no headers"))?
        }
    };
    let tools = root.join("target/tools");
    let build = tools.join("build");
    let mut install = command::cargo(root);
    install
        .args([
            "install",
            BPF_LINKER,
            "--locked",
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{llvm}"))
        .arg("--root")
        .arg(&tools)
        .arg("--target-dir")
        .arg(&build)
        .env("LLVM_PREFIX", prefix);
    command::run(&mut install).context("cannot build bpf-linker")?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

fn log(root: &Path, name: &str) -> Result<PathBuf> {
    let folder = root.join("target/setup");
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    Ok(folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::new_enough;

    #[test]
    fn debian_versions_are_compared_by_number() {
        assert!(new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(new_enough("1.89.0"));
        assert!(!new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!new_enough("1.9.0"));
        assert!(!new_enough("none"));
    }
}
