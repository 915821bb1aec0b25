//! XDP programs on the hosts around the balancer.

use crate::{netns::Namespace, process::output};
use anyhow::{Context, Result};
use aya::{
    Ebpf,
    programs::{Xdp, loaded_links},
};
use lb_userspace::dataplane::object::DECAP;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A program of the backends' object, loaded and pinned while this value lives.
#[derive(Debug)]
pub struct HostProgram {
    pin: PathBuf,
}

impl HostProgram {
    /// The decapsulator: backends run it in place of a kernel's tunnel device.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn decapsulator(pins: &Path) -> Result<Self> {
        Self::load("decap", pins)
    }

    /// A program that passes every frame: a veth takes the frames that its peer sends by XDP_TX only if it has a native
    /// program itself.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn pass(pins: &Path) -> Result<Self> {
        Self::load("pass", pins)
    }

    fn load(name: &str, pins: &Path) -> Result<Self> {
        let mut object = Ebpf::load(DECAP).context("cannot load the backends' object")?;
        let program = object.program_mut(name);
        let program: &mut Xdp = program
            .with_context(|| format!("no program {name} in the object"))?
            .try_into()?;
        program
            .load()
            .with_context(|| format!("the kernel refuses the program {name}"))?;
        Self::pinned(program, pins.join(name))
    }

    /// A program that is loaded, pinned as this file.
    ///
    /// # Errors
    /// When it cannot be pinned.
    pub fn pinned(program: &mut Xdp, pin: PathBuf) -> Result<Self> {
        program
            .pin(&pin)
            .with_context(|| format!("cannot pin a program as {}", pin.display()))?;
        Ok(Self { pin })
    }

    /// Attaches it natively. It stays for as long as the interface exists: iproute2 attaches without a link that
    /// a process would have to hold.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn attach(&self, namespace: &Namespace, interface: &str) -> Result<()> {
        self.attach_as("xdpdrv", namespace, interface)
    }

    /// As [`HostProgram::attach`], but in the network stack, where the MTU does not matter.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn attach_generic(&self, namespace: &Namespace, interface: &str) -> Result<()> {
        self.attach_as("xdpgeneric", namespace, interface)
    }

    fn attach_as(&self, mode: &str, namespace: &Namespace, interface: &str) -> Result<()> {
        let mut command = namespace.command("ip");
        command
            .args(["link", "set", "dev", interface, mode, "pinned"])
            .arg(&self.pin);
        output(&mut command).map(drop)
    }
}

impl Drop for HostProgram {
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
