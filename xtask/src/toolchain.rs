//! Finds what compiles the eBPF programs: a Rust compiler whose sysroot holds the library sources (rust-src), and a
//! bpf-linker whose LLVM can read what that compiler writes. Used by xtask and, through `#[path]`, by
//! `lb-userspace/build.rs`: hence std only.
//!
//! **Invariants.** A search changes nothing and downloads nothing. What a variable names is used or refused, never
//! replaced by something else. Whatever is refused is kept with its reason, for the error.

use std::{
    env, fmt,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Command,
};

/// Names a cargo, with its rustc beside it, to be used instead of searching.
pub const CARGO_VARIABLE: &str = "GUIDEWAY_BPF_CARGO";
/// Names a bpf-linker to be used instead of searching.
pub const LINKER_VARIABLE: &str = "BPF_LINKER";
/// The oldest rustc that compiles `lb-ebpf` (major, minor): `rust-version` of the workspace.
pub const OLDEST_RUSTC: (u32, u32) = (1, 89);

/// A Rust compiler that can build its own `core` for the BPF target.
#[derive(Clone)]
pub struct Compiler {
    /// Its cargo.
    pub cargo: PathBuf,
    /// Its rustc.
    pub rustc: PathBuf,
    /// Major version of the LLVM that wrote its bitcode.
    pub llvm: u32,
    sysroot: PathBuf,
    release: String,
}

/// A bpf-linker that starts.
#[derive(Clone)]
pub struct Linker {
    /// The executable.
    pub path: PathBuf,
    /// Major version of its LLVM, if the executable tells.
    pub llvm: Option<u32>,
}

/// A compiler and a linker that fit together.
pub struct Toolchain {
    /// Compiles.
    pub compiler: Compiler,
    /// Links.
    pub linker: Linker,
}

/// Everything that was looked at, in order of preference.
pub struct Search {
    /// Compilers that are usable.
    pub compilers: Vec<Compiler>,
    /// Linkers that start.
    pub linkers: Vec<Linker>,
    /// What was refused, a line each with the reason.
    pub refused: Vec<String>,
}

impl Search {
    /// Looks at every candidate. `root` is the workspace, where setup puts its linker.
    pub fn run(root: &Path) -> Self {
        let mut search = Self {
            compilers: vec![],
            linkers: vec![],
            refused: vec![],
        };
        for cargo in cargo_candidates() {
            match Compiler::inspect(&cargo) {
                Ok(new)
                    if search
                        .compilers
                        .iter()
                        .any(|old| old.sysroot == new.sysroot) => {}
                Ok(new) => search.compilers.push(new),
                Err(reason) => search
                    .refused
                    .push(format!("compiler {}: {reason}", cargo.display())),
            }
        }
        for path in linker_candidates(root) {
            match Linker::inspect(&path) {
                Ok(linker) => search.linkers.push(linker),
                Err(reason) => search
                    .refused
                    .push(format!("linker {}: {reason}", path.display())),
            }
        }
        search
    }

    /// The first compiler for which there is a linker, with the first such linker; else an error that says what was
    /// tried and what to do.
    pub fn best(&self) -> Result<Toolchain, String> {
        for compiler in &self.compilers {
            if let Some(linker) = self
                .linkers
                .iter()
                .find(|linker| linker.reads(compiler.llvm))
            {
                return Ok(Toolchain {
                    compiler: compiler.clone(),
                    linker: linker.clone(),
                });
            }
        }
        Err(self.explain())
    }

    fn explain(&self) -> String {
        let (major, minor) = OLDEST_RUSTC;
        let mut text = format!(
            "cannot compile the eBPF programs: no rustc from {major}.{minor} on with rust-src, and a bpf-linker \
             with at least its LLVM, was found.\n"
        );
        for compiler in &self.compilers {
            text += &format!("  good:    compiler {compiler}\n");
        }
        for linker in &self.linkers {
            text += &format!("  good:    linker {linker}\n");
        }
        for line in &self.refused {
            text += &format!("  refused: {line}\n");
        }
        if !self.compilers.is_empty() && !self.linkers.is_empty() {
            text +=
                "Each is good by itself, but the compilers have a newer LLVM than the linkers.\n";
        }
        text += "To get them by hand, as a compiler one of\n";
        text += "  rustup toolchain install nightly --component rust-src\n";
        text += "  apt-get install --no-install-recommends rustc-web cargo-web rust-web-src   (Debian, as root)\n";
        text += "and as a linker, N being the LLVM of that compiler (rustc -vV), with\n";
        text += "  apt-get install --no-install-recommends llvm-N-dev libclang-N-dev          (Debian, as root)\n";
        text += "  LLVM_PREFIX=/usr/lib/llvm-N cargo install bpf-linker@0.13.0 --no-default-features --features llvm-N\n";
        text += &format!(
            "{CARGO_VARIABLE} (a cargo) and {LINKER_VARIABLE} (a bpf-linker) choose others."
        );
        text
    }
}

impl Compiler {
    fn inspect(cargo: &Path) -> Result<Self, String> {
        if !cargo.is_file() {
            return Err("no such file".into());
        }
        let rustc = cargo.with_file_name("rustc");
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let field = |name: &str| {
            let line = version.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim)
                .ok_or_else(|| format!("rustc -vV does not print \"{name}\""))
        };
        let (release, llvm) = (field("release:")?, numbers(field("LLVM version:")?).0);
        let sysroot =
            PathBuf::from(output(Command::new(&rustc).args(["--print", "sysroot"]))?.trim());
        if numbers(release) < OLDEST_RUSTC {
            let (major, minor) = OLDEST_RUSTC;
            return Err(format!("rustc {release} is older than {major}.{minor}"));
        }
        if !sysroot
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
        {
            return Err(format!(
                "rustc {release} in {} has no rust-src",
                sysroot.display()
            ));
        }
        Ok(Self {
            cargo: cargo.into(),
            rustc,
            llvm,
            sysroot,
            release: release.into(),
        })
    }
}

impl Linker {
    fn inspect(path: &Path) -> Result<Self, String> {
        if !path.is_file() {
            return Err("no such file".into());
        }
        output(Command::new(path).arg("--version"))?;
        Ok(Self {
            path: path.into(),
            llvm: llvm_of_executable(path),
        })
    }

    /// LLVM reads the bitcode of its own and of older versions. A linker that does not tell is given a chance.
    pub fn reads(&self, llvm: u32) -> bool {
        self.llvm.is_none_or(|own| own >= llvm)
    }
}

impl Toolchain {
    /// The command that builds all programs of `lb-ebpf` for the BPF target, optimised, into `target_dir`.
    /// `arch` and `big_endian` are those of the machine that will run them. It inherits the terminal.
    pub fn build(&self, root: &Path, target_dir: &Path, arch: &str, big_endian: bool) -> Command {
        let flags = [
            format!("-Clinker={}", self.linker.path.display()),
            // Both make the BTF that the kernel wants for the maps.
            "-Clink-arg=--btf".into(),
            "-Cdebuginfo=2".into(),
            // Comparisons both ways: all kernels have them since Linux 4.14.
            "-Ctarget-cpu=v2".into(),
            format!("--cfg=bpf_target_arch=\"{arch}\""),
        ];
        let mut command = Command::new(&self.compiler.cargo);
        // A cargo that runs this one has set variables for its own compiler and flags.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            let cargos = text.starts_with("CARGO_")
                && !["CARGO_HOME", "CARGO_NET_OFFLINE"].contains(&&*text);
            if cargos
                || text.starts_with("RUSTC")
                || ["RUSTFLAGS", "RUSTDOC", "RUSTUP_TOOLCHAIN"].contains(&&*text)
            {
                command.env_remove(&name);
            }
        }
        command
            .args([
                "build",
                "--release",
                "--locked",
                "--bins",
                "-Zbuild-std=core",
            ])
            .args(["--target", target(big_endian), "--target-dir"])
            .arg(target_dir)
            .current_dir(root.join("lb-ebpf"))
            .env("RUSTC", &self.compiler.rustc)
            .env("RUSTC_BOOTSTRAP", "1") // -Z on a stable compiler
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command
    }

    /// What to add to a failed build.
    pub fn hint(&self) -> String {
        format!(
            "the eBPF programs did not build with\n  compiler {}\n  linker {}\n\
             The reason stands above. If it is about bitcode that cannot be read, the linker's LLVM is too old: \
             remove that linker and run `cargo xtask setup`, or name another in {LINKER_VARIABLE}.",
            self.compiler, self.linker
        )
    }
}

/// Name of the BPF target.
pub fn target(big_endian: bool) -> &'static str {
    if big_endian {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

/// Directories of PATH.
pub fn path_directories() -> Vec<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect()
}

fn cargo_candidates() -> Vec<PathBuf> {
    if let Some(cargo) = env::var_os(CARGO_VARIABLE) {
        return vec![cargo.into()];
    }
    let installed = path_directories()
        .into_iter()
        .chain(["/usr/bin".into()])
        .map(|dir| dir.join("cargo"));
    // rustup's own `cargo` is a proxy for its active toolchain, which comes before these by its real path.
    let proxy = |path: &Path| {
        path.canonicalize()
            .is_ok_and(|real| real.ends_with("rustup"))
    };
    let mut all = rustup_cargos();
    for cargo in installed.filter(|path| path.is_file() && !proxy(path)) {
        // /bin is often a link to /usr/bin.
        let same = |other: &PathBuf| other.canonicalize().ok() == cargo.canonicalize().ok();
        if !all.iter().any(same) {
            all.push(cargo);
        }
    }
    all
}

/// The cargos of rustup's toolchains: nightlies, the active one, the others.
fn rustup_cargos() -> Vec<PathBuf> {
    // Asking about a toolchain must not install it.
    let rustup = |args: &[&str]| {
        output(
            Command::new("rustup")
                .args(args)
                .env("RUSTUP_AUTO_INSTALL", "0"),
        )
    };
    let Ok(list) = rustup(&["toolchain", "list"]) else {
        return vec![];
    };
    let mut lines: Vec<&str> = list.lines().collect();
    lines.sort_by_key(|line| (!line.starts_with("nightly"), !line.contains("(active")));
    let names = lines
        .iter()
        .filter_map(|line| line.split_whitespace().next());
    let cargos = names.filter_map(|name| rustup(&["which", "--toolchain", name, "cargo"]).ok());
    cargos.map(|path| PathBuf::from(path.trim())).collect()
}

fn linker_candidates(root: &Path) -> Vec<PathBuf> {
    if let Some(linker) = env::var_os(LINKER_VARIABLE) {
        return vec![linker.into()];
    }
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let installed = path_directories()
        .into_iter()
        .chain(home.map(|home| home.join("bin")));
    let own = root.join("target/tools/bin");
    [own]
        .into_iter()
        .chain(installed)
        .map(|dir| dir.join("bpf-linker"))
        .filter(|path| path.is_file())
        .collect()
}

/// The major version of the LLVM an executable is linked with: it names the library (`libLLVM.so.22.1`,
/// `libLLVM-22.so`) or, when LLVM is inside, holds the name with which LLVM signs bitcode (`LLVM22.1.2`).
fn llvm_of_executable(path: &Path) -> Option<u32> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).ok()?);
    let (mut piece, mut after_l) = (vec![], false);
    while reader.read_until(b'L', &mut piece).ok()? > 0 {
        if let Some(rest) = piece.strip_prefix(b"VM").filter(|_| after_l) {
            let rest = rest
                .strip_prefix(b".so.")
                .or(rest.strip_prefix(b"-"))
                .unwrap_or(rest);
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let version = str::from_utf8(&rest[..digits]).ok()?.parse().ok();
            // Anything below is a name from LLVM's past.
            if let Some(version) = version.filter(|version| (18..100).contains(version)) {
                return Some(version);
            }
        }
        after_l = piece == b"L";
        piece.clear();
    }
    None
}

/// Standard output of a command that succeeds.
fn output(command: &mut Command) -> Result<String, String> {
    // A toolchain's own rustc must not be asked for another one.
    let ran = command.env_remove("RUSTUP_TOOLCHAIN").output();
    let ran = ran.map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))?;
    if !ran.status.success() {
        let why = String::from_utf8_lossy(&ran.stderr);
        return Err(format!(
            "{:?} failed: {}",
            command.get_program(),
            why.lines().next().unwrap_or("no message")
        ));
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// The first two numbers of a version such as `1.97.0-nightly`; 0 for what is missing.
fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (rustc {}, LLVM {})",
            self.cargo.display(),
            self.release,
            self.llvm
        )
    }
}

impl fmt::Display for Linker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.llvm {
            Some(llvm) => write!(f, "{} (LLVM {llvm})", self.path.display()),
            None => write!(f, "{} (LLVM unknown)", self.path.display()),
        }
    }
}
