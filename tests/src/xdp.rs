//! XDP programs on the hosts around the balancer.

use crate::{netns::Namespace, process::output};
use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{Xdp, loaded_links},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The decapsulator, loaded and pinned while this value lives: backends run it in place of a kernel's tunnel device.
/// It passes all that is not encapsulated, so it also serves as the native XDP program that a veth needs to take
/// frames that its peer sent with XDP_TX.
#[derive(Debug)]
pub struct Decapsulator {
    pin: PathBuf,
}

impl Decapsulator {
    /// Loads the program and pins it in the BPF file system as `pin`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn load(pin: &Path) -> Result<Self> {
        let mut object = Ebpf::load(lb_userspace::dataplane::object::DECAP)
            .context("cannot load the decapsulator")?;
        let program: &mut Xdp = object
            .program_mut("decap")
            .context("no program decap in its object")?
            .try_into()?;
        program
            .load()
            .context("the kernel refuses the decapsulator")?;
        program
            .pin(pin)
            .with_context(|| format!("cannot pin the decapsulator as {}", pin.display()))?;
        Ok(Self { pin: pin.into() })
    }

    /// Attaches it natively. It stays for as long as the interface exists: iproute2 attaches without a link that
    /// a process would have to hold.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn attach(&self, namespace: &Namespace, interface: &str) -> Result<()> {
        let mut command = namespace.command("ip");
        command
            .args(["link", "set", "dev", interface, "xdpdrv", "pinned"])
            .arg(&self.pin);
        output(&mut command).map(drop)
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        // Interfaces hold the program, not the pin.
        let _ = fs::remove_file(&self.pin);
    }
}

/// Id of the link that holds the XDP program on an interface; `None` when there is no program.
///
/// # Errors
/// When the interface does not exist, or its program was attached without a link.
pub fn link_on(namespace: &Namespace, interface: &str) -> Result<Option<u32>> {
    let text = output(
        namespace
            .command("ip")
            .args(["-json", "link", "show", "dev", interface]),
    )?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let Some(program) = links
        .pointer("/0/xdp/prog/id")
        .and_then(serde_json::Value::as_u64)
    else {
        return Ok(None);
    };
    // Links of other tests come and go meanwhile: those that can no longer be asked are not ours.
    let link = loaded_links()
        .flatten()
        .find(|link| u64::from(link.program_id()) == program);
    let link = link.with_context(|| format!("program {program} on {interface} has no link"))?;
    Ok(Some(link.id()))
}
