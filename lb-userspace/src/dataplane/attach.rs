//! The XDP program on the node's interfaces.
//!
//! **Invariants.** The kernel is the only memory of what is attached: every call looks, and does what is missing.
//! A program of somebody else is never touched. An attached program is replaced atomically; only a change of mode, which
//! the kernel cannot do in place, leaves the interface without a program for a moment.

use super::{
    exits,
    interfaces::{self, Interface, XdpMode},
    pins::PinDirectory,
    port::{Port, refusal},
    sys,
};
use anyhow::Result;
use aya::programs::Xdp;
use aya_obj::generated::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd as _, OwnedFd};

/// How to attach the program to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the driver if it can, else in the network stack, which is said.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the network stack.
    Generic,
}

/// An interface to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSetting {
    /// Its name.
    pub name: String,
    /// How to attach.
    pub attach: AttachMode,
}

/// What is on a configured interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Name of the interface.
    pub name: String,
    /// Its index; 0 when it does not exist.
    pub index: u32,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// How our program is attached; `None` when it is not.
    pub mode: Option<XdpMode>,
    /// Id of our program on it, which may be an earlier daemon's; 0 when there is none.
    pub program_id: u32,
    /// Why it is not attached, or attached in another way than hoped; empty when all is well.
    pub note: String,
}

/// The loaded program and the interfaces it belongs on.
#[derive(Debug)]
pub(super) struct Attacher {
    program: OwnedFd,
    program_id: u32,
    /// The program that takes its place for a while, and its id.
    stand_in: Option<(OwnedFd, u32)>,
    ports: Vec<Port>,
}

impl Attacher {
    /// An attacher for a loaded program. Attaches nothing yet.
    pub(super) fn new(program: &Xdp, interfaces: Vec<InterfaceSetting>) -> Result<Self> {
        Ok(Self {
            program: program.fd()?.as_fd().try_clone_to_owned()?,
            program_id: program.info()?.id(),
            stand_in: None,
            ports: interfaces.into_iter().map(Port::new).collect(),
        })
    }

    /// Attaches another program in place of its own from the next [`Attacher::activate`] on, or its own again.
    pub(super) fn stand_in(&mut self, program: Option<(OwnedFd, u32)>) {
        self.stand_in = program;
    }

    /// Configures other interfaces. What is known of those that stay as they were is kept.
    pub(super) fn set_interfaces(&mut self, interfaces: Vec<InterfaceSetting>) {
        let mut old = std::mem::take(&mut self.ports);
        let port = |setting| match old.iter().position(|port| port.setting == setting) {
            Some(position) => old.swap_remove(position),
            None => Port::new(setting),
        };
        self.ports = interfaces.into_iter().map(port).collect();
    }

    /// Brings the program onto every configured interface and takes it off all others.
    pub(super) fn activate(&mut self, pins: &PinDirectory) -> Result<()> {
        let present = interfaces::list()?;
        let Self {
            program,
            program_id,
            stand_in,
            ports,
        } = self;
        let (fd, id) = match stand_in {
            Some((fd, id)) => (&*fd, *id),
            None => (&*program, *program_id),
        };
        let program = Program { fd, id, pins };
        for port in ports.iter_mut() {
            let named = |interface: &&Interface| interface.name == port.setting.name;
            port.bring_up(&program, present.iter().find(named));
        }
        remove_others(pins, ports, &present)
    }

    /// What is on the configured interfaces now, and which of them packets can be redirected to. An error says nothing of
    /// them, least of all that they are gone.
    pub(super) fn look(&self, pins: &PinDirectory) -> Result<(Vec<Attachment>, exits::Wanted)> {
        let present = interfaces::list()?;
        let report = |port: &Port| port.report(pins, &present);
        let mut attachments: Vec<_> = self.ports.iter().map(report).collect();
        let exits = exits(&mut attachments, &present);
        Ok((attachments, exits))
    }
}

/// The interfaces that packets can be redirected to. A driver takes frames from another if it has native XDP itself; to
/// one in generic mode they can come from generic mode only, and beside a native interface that is said in its note.
fn exits(attachments: &mut [Attachment], present: &[Interface]) -> exits::Wanted {
    let native = |attachment: &Attachment| attachment.mode == Some(XdpMode::Native);
    let any_native = attachments.iter().any(native);
    let mut exits = exits::Wanted::new();
    for attachment in attachments {
        let interface = present
            .iter()
            .find(|interface| interface.index == attachment.index);
        let (Some(_), Some(mac)) = (attachment.mode, interface.and_then(|found| found.mac)) else {
            continue;
        };
        if native(attachment) || !any_native {
            exits.insert(attachment.index, mac);
            continue;
        }
        if !attachment.note.is_empty() {
            attachment.note.push_str("; ");
        }
        attachment.note.push_str(
            "in generic mode beside native interfaces: what comes in on another interface for a backend behind this one \
             is dropped (drop_wrong_interface); attach all interfaces in the same mode",
        );
    }
    exits
}

/// Takes the program off interfaces that are not configured, and removes links whose interface is gone.
fn remove_others(pins: &PinDirectory, ports: &[Port], present: &[Interface]) -> Result<()> {
    for index in pins.links()? {
        let interface = present.iter().find(|interface| interface.index == index);
        match interface {
            Some(interface) if ports.iter().any(|port| port.setting.name == interface.name) => {
                continue;
            }
            Some(interface) => tracing::info!(
                interface = interface.name,
                "detached: it is no longer configured"
            ),
            None => tracing::info!(index, "the link of an interface that is gone is removed"),
        }
        pins.remove_link(index)?;
    }
    Ok(())
}

/// The program to attach, with the place where its links are pinned.
pub(super) struct Program<'a> {
    fd: &'a OwnedFd,
    id: u32,
    pub(super) pins: &'a PinDirectory,
}

impl Program<'_> {
    /// Attaches to an interface that has no program and pins the link.
    pub(super) fn attach(&self, interface: &Interface, mode: XdpMode) -> Result<(), String> {
        let flags = match mode {
            XdpMode::Native => XDP_FLAGS_DRV_MODE,
            XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        };
        let link = sys::link_create(self.fd.as_fd(), interface.index, flags)
            .map_err(|error| refusal(&interface.name, mode, &error))?;
        self.pins
            .pin_link(interface.index, link.as_fd())
            .map_err(|error| format!("{error:#}"))?;
        tracing::info!(interface = interface.name, %mode, program = self.id, "XDP program attached");
        Ok(())
    }

    /// Puts this program in the place of the one that the link has.
    pub(super) fn replace(
        &self,
        interface: &Interface,
        link: &OwnedFd,
        old: u32,
    ) -> Result<(), String> {
        if old == self.id {
            return Ok(());
        }
        sys::link_update(link.as_fd(), self.fd.as_fd()).map_err(|error| {
            format!(
                "XDP program {old} on {} cannot be replaced: {error}",
                interface.name
            )
        })?;
        tracing::info!(
            interface = interface.name,
            old,
            new = self.id,
            "XDP program replaced"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use XdpMode::{Generic, Native};

    #[test]
    fn packets_are_redirected_to_interfaces_that_take_them() {
        // Modes of three interfaces, the last of which has no MAC; which are exits, which have a note.
        type Case = ([Option<XdpMode>; 3], &'static [u32], &'static [u32]);
        let cases: [Case; 5] = [
            ([Some(Native), Some(Native), Some(Native)], &[1, 2], &[]),
            ([Some(Generic), Some(Generic), Some(Generic)], &[1, 2], &[]),
            ([Some(Native), Some(Generic), None], &[1], &[2]),
            ([Some(Generic), None, Some(Native)], &[], &[1]),
            ([None, None, None], &[], &[]),
        ];
        for (modes, expected, noted) in cases {
            let mut attachments: Vec<Attachment> = (1..)
                .zip(modes)
                .map(|(index, mode)| Attachment {
                    name: format!("eth{index}"),
                    index,
                    up: true,
                    mode,
                    program_id: 5,
                    note: String::new(),
                })
                .collect();
            let present: Vec<Interface> = (1..=3)
                .map(|index| Interface {
                    name: format!("eth{index}"),
                    index,
                    mtu: 1_500,
                    up: true,
                    mac: (index < 3).then_some([2, 0, 0, 0, 0, index as u8]),
                    xdp: None,
                })
                .collect();
            let exits = exits(&mut attachments, &present);
            assert!(exits.keys().eq(expected), "{modes:?}: {exits:?}");
            assert!(exits.iter().all(|(index, mac)| mac[5] == *index as u8));
            let with_note = attachments
                .iter()
                .filter(|attachment| !attachment.note.is_empty());
            assert!(
                with_note.map(|attachment| &attachment.index).eq(noted),
                "{modes:?}"
            );
        }
    }
}
