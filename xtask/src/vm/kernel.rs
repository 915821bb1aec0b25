//! Kernels of Debian's packages, unpacked and not installed: an image, and the modules that a guest loads.

use super::image;
use crate::{apt, command};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A kernel that can be booted.
pub struct Kernel {
    /// Major and minor version, such as `6.1`.
    pub version: &'static str,
    /// Its image.
    pub image: PathBuf,
    /// The first file system: modules and a shell, without the tests to run.
    pub initramfs: PathBuf,
}

impl Kernel {
    /// The kernel of this version, out of `target/vm`, or out of the newest package that apt has of it.
    pub fn ensure(root: &Path, version: &'static str) -> Result<Self> {
        let folder = root.join("target/vm").join(version);
        let kernel = Self {
            version,
            image: folder.join("vmlinuz"),
            initramfs: folder.join("initramfs"),
        };
        // Written last.
        let contents = folder.join("contents");
        if fs::read_to_string(&contents).is_ok_and(|made_of| made_of == image::contents()) {
            return Ok(kernel);
        }
        let unpacked = root.join(format!("target/vm/unpacked-{version}"));
        // What a run that was cut off has left.
        for leftover in [&folder, &unpacked] {
            if leftover.exists() {
                fs::remove_dir_all(leftover).with_context(|| format!("{}", leftover.display()))?;
            }
        }
        for new in [&folder, &unpacked] {
            fs::create_dir_all(new).with_context(|| format!("{}", new.display()))?;
        }
        let package = newest(root, version)?;
        println!("kernel {version:<7} fetching {package}, about 100 MB");
        let log = folder.join("log");
        unpack(&package, &unpacked, &log)?;
        unpack("busybox-static", &unpacked, &log)?;
        let release = package
            .strip_prefix("linux-image-")
            .context("no kernel's package")?;
        fs::copy(unpacked.join("bin/busybox"), kernel.busybox()).context("no busybox")?;
        let boot = unpacked.join("boot").join(format!("vmlinuz-{release}"));
        fs::copy(&boot, &kernel.image).with_context(|| format!("no {}", boot.display()))?;
        image::build(&unpacked, release, &kernel.initramfs)?;
        fs::remove_dir_all(&unpacked).with_context(|| format!("{}", unpacked.display()))?;
        fs::write(&contents, image::contents())?;
        Ok(kernel)
    }

    /// A shell with everything that makes an initramfs.
    pub fn busybox(&self) -> PathBuf {
        self.image.with_file_name("busybox")
    }
}

/// The newest package with a kernel of this version.
fn newest(root: &Path, version: &str) -> Result<String> {
    let prefix = format!("linux-image-{version}.");
    let search = || {
        let found = command::output("apt-cache", &["pkgnames", &prefix])?;
        let usable = found.lines().filter(|name| is_plain(name));
        usable.max_by_key(|name| numbers(name)).map(str::to_owned)
    };
    if let Some(package) = search() {
        return Ok(package);
    }
    apt::refresh(root)?;
    search().with_context(|| {
        format!("apt has no package {prefix}*-amd64: its sources are not those of Debian 12")
    })
}

/// Whether a package is a kernel for every PC: not one for clouds (they lack 9p), not a real-time one, no debug symbols.
fn is_plain(package: &str) -> bool {
    let Some(release) = package.strip_suffix("-amd64") else {
        return false;
    };
    !release.ends_with("-cloud") && !release.ends_with("-rt")
}

/// The numbers in a name, for comparison: `6.1.0-9` is older than `6.1.0-56`.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Downloads a package and unpacks it into `folder`.
fn unpack(package: &str, folder: &Path, log: &Path) -> Result<()> {
    let mut download = Command::new("apt-get");
    download
        .args(["-q", "-o", "Acquire::Retries=1", "download", package])
        .current_dir(folder);
    command::run_logged(&mut download, log, Duration::from_secs(600))
        .with_context(|| format!("cannot fetch {package}; try: apt-get update"))?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|end| end == "deb");
    let mut entries = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let Some(file) = entries.find(is_package) else {
        bail!("apt-get download left no package in {}", folder.display());
    };
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").arg(&file).arg(folder);
    command::run_logged(&mut extract, log, Duration::from_secs(600))?;
    fs::remove_file(&file).with_context(|| format!("{}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::{is_plain, numbers};

    #[test]
    fn the_newest_plain_kernel_is_found() {
        let names = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-58-rt-amd64",
            "linux-image-6.1.0-59-amd64-dbg",
            "linux-image-6.1.0-60-amd64-unsigned",
        ];
        let plain = names.into_iter().filter(|name| is_plain(name));
        assert_eq!(
            plain.max_by_key(|name| numbers(name)),
            Some("linux-image-6.1.0-56-amd64")
        );
    }
}
