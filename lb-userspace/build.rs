//! Builds the eBPF programs of `lb-ebpf` with whatever toolchain can, and leaves them in `OUT_DIR` for
//! `src/dataplane/object.rs`. Packagers name a directory of ready-made objects in `GUIDEWAY_BPF_OBJECT_DIR` instead.
//! Also tells the crate its commit, as `GUIDEWAY_COMMIT`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

// xtask uses more of it than this script.
#[allow(dead_code)]
#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

const OBJECT_DIR_VARIABLE: &str = "GUIDEWAY_BPF_OBJECT_DIR";
const PROGRAMS: [&str; 4] = ["lb-ebpf", "decap", "bench", "live"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    for variable in [
        OBJECT_DIR_VARIABLE,
        toolchain::CARGO_VARIABLE,
        toolchain::LINKER_VARIABLE,
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let root = variable("CARGO_MANIFEST_DIR")?.join("..");
    let out = variable("OUT_DIR")?;
    tell_commit(&root);
    let objects = match env::var_os(OBJECT_DIR_VARIABLE) {
        Some(ready_made) => {
            println!("cargo::rerun-if-changed={}", ready_made.display());
            PathBuf::from(ready_made)
        }
        None => build(&root, &out)?,
    };
    for program in PROGRAMS {
        let object = objects.join(program);
        fs::copy(&object, out.join(program)).map_err(|error| {
            let object = object.display();
            format!("cannot copy {object}: {error} ({OBJECT_DIR_VARIABLE}, if set, names a folder with {PROGRAMS:?})")
        })?;
    }
    Ok(())
}

/// Builds the programs and returns the directory they are in.
fn build(root: &Path, out: &Path) -> Result<PathBuf, String> {
    for input in [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "lb-ebpf/Cargo.lock",
        "lb-common/src",
        "lb-common/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    // Debug and release builds need the same programs: both use the `ebpf` folder beside `debug` and `release`, out of
    // `target/debug/build/lb-userspace-HASH/out`.
    let target_dir = out.ancestors().nth(4).unwrap_or(out).join("ebpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")
        .map_err(|error| format!("CARGO_CFG_TARGET_ARCH: {error}"))?;
    let big_endian = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");

    let toolchain = toolchain::Search::run(root)
        .best()
        .map_err(|error| format!("{error}\nOr let this do it all: cargo xtask setup"))?;
    let mut command = toolchain.build(root, &target_dir, &arch, big_endian);
    let status = command
        .status()
        .map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))?;
    if !status.success() {
        return Err(toolchain.hint());
    }
    Ok(target_dir
        .join(toolchain::target(big_endian))
        .join("release"))
}

/// Sets `GUIDEWAY_COMMIT` to git's short hash, or to `unknown` outside a repository.
fn tell_commit(root: &Path) {
    let git = |args: &[&str]| {
        let ran = Command::new("git")
            .arg("-C")
            .arg(root)
            .args(args)
            .output()
            .ok()?;
        ran.status
            .success()
            .then(|| String::from_utf8_lossy(&ran.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    println!(
        "cargo::rustc-env=GUIDEWAY_COMMIT={}",
        commit.as_deref().unwrap_or("unknown")
    );
    // Git appends to this file whenever HEAD moves.
    let log = git(&[
        "rev-parse",
        "--path-format=absolute",
        "--git-path",
        "logs/HEAD",
    ]);
    if let Some(log) = log.filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set: this runs under cargo only"))
}
