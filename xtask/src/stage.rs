//! The stages of `cargo xtask test`: what each runs, and what it needs that a machine can lack.

use crate::{command, vm};
use anyhow::{Context, Result};
use std::{fs, path::Path, process::Command};

/// A part of the tests, by what it needs and how long it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// Format, lints, documentation, unit files
    Lint,
    /// Tests that need no privilege
    Unit,
    /// The real eBPF programs on single packets (root)
    Program,
    /// Network namespaces with real traffic (root)
    Netns,
    /// Other kernels, in virtual machines (root, apt)
    Vm,
}

/// What a stage needs that a machine can lack.
#[derive(Clone, Copy)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// To be root.
    Root,
    /// What virtual machines need.
    Guests,
    /// A program that answers to `--version`, and how to get it.
    Program(&'static str, &'static str),
}

/// One command and its place in the tests.
pub struct Stage {
    /// What it belongs to.
    pub part: Part,
    /// What a person calls it.
    pub title: String,
    /// Without this it cannot run.
    pub need: Need,
    /// What it runs.
    pub command: Command,
}

/// The build that every other stage rests on.
pub fn build(root: &Path) -> Stage {
    let arguments = "build --workspace --all-targets";
    cargo(root, Part::Unit, "build", Need::Nothing, arguments)
}

/// All stages after the build, in the order in which they find mistakes soonest.
pub fn all(root: &Path) -> Result<Vec<Stage>> {
    let fmt = Need::Program("cargo fmt", "rustup component add rustfmt");
    let clippy = Need::Program("cargo clippy", "rustup component add clippy");
    let none = Need::Nothing;
    let lint = |title, need, arguments: &str| cargo(root, Part::Lint, title, need, arguments);
    let unit = |title, arguments: &str| cargo(root, Part::Unit, title, none, arguments);
    // lb-ebpf is a workspace of its own. It is linted and tested for the host; the build compiled it for the kernel.
    let ebpf = "--manifest-path lb-ebpf/Cargo.toml --target-dir target/ebpf-host";
    let strict = "-- -D warnings";
    let fmt_ebpf = "fmt --check --manifest-path lb-ebpf/Cargo.toml";
    let clippy_workspace = format!("clippy --workspace --all-targets {strict}");
    let clippy_ebpf = format!("clippy {ebpf} {strict}");
    let unit_workspace = "test --no-fail-fast --workspace --exclude lb-tests";
    let unit_ebpf = format!("test --no-fail-fast --lib {ebpf}");
    let unit_kit = "test --no-fail-fast --package lb-tests --lib --bins";
    let mut stages = vec![
        lint("format", fmt, "fmt --check --all"),
        lint("format of lb-ebpf", fmt, fmt_ebpf),
        lint("lints", clippy, &clippy_workspace),
        lint("lints of lb-ebpf", clippy, &clippy_ebpf),
        lint("documentation", none, "doc --no-deps --workspace"),
        unit_files(root),
        unit("unit tests", unit_workspace),
        unit("unit tests of lb-ebpf", &unit_ebpf),
        unit("unit tests of the test kit", unit_kit),
    ];
    for (part, name) in test_files(root)? {
        let arguments = format!("test --no-fail-fast --package lb-tests --test {name}");
        stages.push(cargo(root, part, &name, Need::Root, &arguments));
    }
    stages.push(guests(root));
    let counted = "run --quiet --package lb-tests --bin bench -- vm --quick";
    stages.push(cargo(
        root,
        Part::Vm,
        "packets beside IPVS",
        Need::Guests,
        counted,
    ));
    Ok(stages)
}

fn cargo(root: &Path, part: Part, title: &str, need: Need, arguments: &str) -> Stage {
    let mut command = command::cargo(root);
    command.args(arguments.split_whitespace());
    command.env("RUSTDOCFLAGS", "-D warnings");
    let title = title.into();
    Stage {
        part,
        title,
        need,
        command,
    }
}

/// The unit files, as systemd reads them, and the drop-ins for units of others (`NAME-guideway.conf`). What they start need not be
/// installed for that: copies name a program that is. systemd warns of what it does not know and goes on; here that is an error.
fn unit_files(root: &Path) -> Stage {
    let check = r#"set -e; copy=$(mktemp -d); trap 'rm -r "$copy"' EXIT
        for unit in deploy/*.service; do
            sed 's|/usr/local/bin/lbd|/bin/true|' "$unit" >"$copy/${unit##*/}"
        done
        for file in deploy/*-guideway.conf; do
            name=$(basename "$file" -guideway.conf).service
            [ -e "$copy/$name" ] || printf '[Service]\nExecStart=/bin/true\n' >"$copy/$name"
            mkdir "$copy/$name.d"; cp "$file" "$copy/$name.d/guideway.conf"
        done
        systemd-analyze verify --man=no "$copy"/*.service 2>"$copy/said" || { cat "$copy/said"; exit 1; }
        ! grep "$copy" "$copy/said""#;
    let mut command = Command::new("sh");
    command.args(["-c", check]).current_dir(root);
    let need = Need::Program("systemd-analyze", "it is part of systemd");
    Stage {
        part: Part::Lint,
        title: "unit files".into(),
        need,
        command,
    }
}

/// `cargo xtask vm`, for the tests on other kernels. By way of cargo: the file of this program may have been built anew since.
fn guests(root: &Path) -> Stage {
    let mut command = command::cargo(root);
    command.args("run --quiet --package xtask -- vm all --ready".split(' '));
    for name in SHORT {
        command.args(["--test", name]);
    }
    Stage {
        part: Part::Vm,
        title: "other kernels".into(),
        need: Need::Guests,
        command,
    }
}

/// What `cargo xtask test` runs on other kernels. Guests are some thirty times slower than the host: these are what depends on
/// the kernel most. `cargo xtask vm` runs all.
const SHORT: [&str; 4] = [
    "program_budget",
    "program_decap",
    "program_forward",
    "vm_backends",
];

/// The test files that can run on other kernels: all on single packets, what the data plane asks of a kernel, and `vm_*`,
/// which need modules that hosts may lack and run there alone.
pub fn guest_tests(root: &Path) -> Result<Vec<String>> {
    let names = test_names(root)?.into_iter();
    let runs = |name: &String| {
        let wanted = name.starts_with("program_") || name.starts_with("vm_");
        wanted || name == "dataplane_kernel"
    };
    Ok(names.filter(runs).collect())
}

/// The tests of `lb-tests` that need root: `program_*` on single packets, all others with networks.
fn test_files(root: &Path) -> Result<Vec<(Part, String)>> {
    let part = |name: &String| {
        if name.starts_with("program_") {
            Part::Program
        } else {
            Part::Netns
        }
    };
    let names = test_names(root)?.into_iter();
    let mut files: Vec<_> = names
        .filter(|name| !name.starts_with("vm_"))
        .map(|name| (part(&name), name))
        .collect();
    files.sort();
    Ok(files)
}

/// The names of the test files of `lb-tests`.
fn test_names(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("tests/tests");
    let mut files = vec![];
    for entry in fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        // As cargo finds them: a file, or a folder with a `main.rs`.
        let is_file = path.extension().is_some_and(|extension| extension == "rs");
        if is_file || path.join("main.rs").is_file() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            files.push(name.into_owned());
        }
    }
    files.sort();
    Ok(files)
}

impl Need {
    /// What is lacking here, if anything.
    pub fn lack(self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Root => {
                let hint = "needs root: run `cargo xtask test` as root";
                (!command::is_root()).then(|| hint.into())
            }
            Self::Guests => vm::lack(),
            Self::Program(words, hint) => {
                let mut arguments = words.split(' ').chain(["--version"]);
                let program = arguments.next().unwrap_or_default();
                let answers = command::output(program, &arguments.collect::<Vec<_>>());
                let lacks = answers.is_none();
                lacks.then(|| format!("{words} is not installed ({hint})"))
            }
        }
    }
}
