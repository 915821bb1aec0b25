//! What has to be known when another process takes over: a file that says in which boot of the kernel it was written.

use crate::desired;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

/// What the kernel calls this boot.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The file's content.
#[derive(Serialize, Deserialize)]
pub struct Kept<T> {
    /// The kernel's boot (proc(5), random/boot_id).
    pub boot: String,
    /// What was announced, and how.
    pub routes: T,
}

/// The kernel's boot.
///
/// # Errors
/// When it cannot be read.
pub fn boot() -> Result<String, String> {
    let boot = fs::read_to_string(BOOT).map_err(|error| format!("cannot read {BOOT}: {error}"))?;
    Ok(boot.trim().into())
}

impl<T: Serialize + DeserializeOwned> Kept<T> {
    /// Reads the file; none: there is none.
    ///
    /// # Errors
    /// When the disk refuses, or it is not what was written.
    pub fn read(file: &Path) -> io::Result<Option<Self>> {
        match fs::read(file) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        desired::replace_file(file, &serde_json::to_vec(self)?)
    }
}
