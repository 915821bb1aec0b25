//! A guest's first file system: a shell, and kernel modules in the order in which they load.

use anyhow::{Context, Result, bail};
use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What guests load, apart from what these modules depend on: the way to the host's files, virtual networks, the kernel's
/// own tunnels, traffic control with BPF. What is built into a kernel has no file and is left out.
const MODULES: [&str; 15] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "veth",
    "bridge",
    "bonding",
    "8021q",
    "ipip",
    "sit",
    "ip6_tunnel",
    "fou",
    "fou6",
    "sch_ingress",
    "cls_bpf",
    "tcp_diag",
];

/// What a guest that measures loads as well, with parameters. Connection tracking, which IPVS is linked with, asks for a checksum
/// without naming it.
const MEASURING: [&str; 5] = [
    "pktgen",
    "virtio_net",
    "crc32c_generic",
    "ip_vs conn_tab_bits=18",
    "ip_vs_mh",
];

/// What an initramfs is made of: one that was made of something else has to be made anew.
pub fn contents() -> String {
    format!("{}\n\n{}\n", MODULES.join("\n"), MEASURING.join("\n"))
}

/// Writes an initramfs with the modules of kernel `release` out of an unpacked package.
pub fn build(unpacked: &Path, release: &str, initramfs: &Path) -> Result<()> {
    let tree = unpacked.join("initramfs");
    for folder in ["bin", "modules", "proc", "sys", "dev", "host"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let busybox = tree.join("bin/busybox");
    fs::copy(unpacked.join("bin/busybox"), &busybox).context("no busybox")?;
    let modules = Modules::find(&unpacked.join("lib/modules").join(release))?;
    let folder = tree.join("modules");
    let mut order = vec![];
    for name in MODULES {
        modules.add(name, &busybox, &folder, &mut order)?;
    }
    fs::write(folder.join("order"), order.join("\n") + "\n")?;
    let always = order.len();
    for line in MEASURING {
        let (name, parameters) = line.split_once(' ').unwrap_or((line, ""));
        modules.add(name, &busybox, &folder, &mut order)?;
        if let Some(last) = order.last_mut().filter(|_| !parameters.is_empty()) {
            *last = format!("{last} {parameters}");
        }
    }
    let measuring = order.get(always..).unwrap_or_default();
    fs::write(folder.join("measuring"), measuring.join("\n") + "\n")?;
    archive(&tree, &busybox, initramfs)
}

/// Writes the files below `tree` as an archive that a kernel takes for its first file system. Several of them in a
/// row are one to the kernel.
pub fn archive(tree: &Path, busybox: &Path, archive: &Path) -> Result<()> {
    // Complete or not there.
    let partial = archive.with_extension("partial");
    let out = File::create(&partial).with_context(|| format!("{}", partial.display()))?;
    let status = Command::new("sh")
        .args(["-c", r#"find . | "$0" cpio -o -H newc"#])
        .arg(busybox)
        .current_dir(tree)
        .stdout(out)
        .stderr(Stdio::null())
        .status()
        .context("cannot run busybox")?;
    if !status.success() {
        bail!("busybox cpio failed ({status})");
    }
    fs::rename(&partial, archive).with_context(|| format!("{}", archive.display()))
}

/// The module files of a kernel, by the module's name.
struct Modules(HashMap<String, PathBuf>);

impl Modules {
    fn find(folder: &Path) -> Result<Self> {
        let mut files = HashMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder);
            for entry in entries.with_context(|| format!("no {}", folder.display()))? {
                let path = entry?.path();
                let file = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some((name, "ko" | "ko.xz")) = file.split_once('.') {
                    files.insert(name.replace('-', "_"), path);
                }
            }
        }
        Ok(Self(files))
    }

    /// Copies a module, after those that it depends on, unless it is there or built in.
    fn add(&self, name: &str, busybox: &Path, to: &Path, order: &mut Vec<String>) -> Result<()> {
        let Some(file) = self.0.get(&name.replace('-', "_")) else {
            return Ok(());
        };
        let target = format!("{name}.ko");
        // Its parameters may follow.
        let is_there = |line: &String| line.split(' ').next() == Some(target.as_str());
        if order.iter().any(is_there) {
            return Ok(());
        }
        let compressed = file.extension().is_some_and(|end| end == "xz");
        let bytes = if compressed {
            let unpacked = Command::new(busybox)
                .args(["unxz", "-c"])
                .arg(file)
                .output();
            let unpacked = unpacked.context("cannot run busybox")?;
            if !unpacked.status.success() {
                bail!("busybox unxz cannot read {}", file.display());
            }
            unpacked.stdout
        } else {
            fs::read(file).with_context(|| format!("{}", file.display()))?
        };
        for dependency in dependencies(&bytes) {
            self.add(&dependency, busybox, to, order)?;
        }
        fs::write(to.join(&target), bytes)?;
        order.push(target);
        Ok(())
    }
}

/// The modules that a module names in its section `.modinfo`, as `depends=a,b`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return vec![];
    };
    let value = module.iter().skip(start + KEY.len());
    let value: Vec<u8> = value.copied().take_while(|byte| *byte != 0).collect();
    let value = String::from_utf8_lossy(&value);
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::dependencies;

    #[test]
    fn dependencies_are_read_from_a_module() {
        let module = b"\x7fELF\0license=GPL\0depends=tunnel4,ip_tunnel\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["tunnel4", "ip_tunnel"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"no module").is_empty());
    }
}
