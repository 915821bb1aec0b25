//! The XDP program on the node's interfaces.
//!
//! **Invariants.** The kernel is the only memory of what is attached: every call looks, and does what is missing.
//! A program of somebody else is never touched. An attached program is replaced atomically; only a change of mode, which
//! the kernel cannot do in place, leaves the interface without a program for a moment.

use super::{
    adopt,
    interfaces::{self, Interface, XdpMode},
    pins::PinDirectory,
    sys,
};
use anyhow::Result;
use aya::programs::Xdp;
use aya_obj::generated::{XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

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
    ports: Vec<Port>,
}

/// One configured interface.
#[derive(Debug)]
struct Port {
    setting: InterfaceSetting,
    /// Index of the interface that refused native mode, and its reason: it is not asked again and again.
    refused: Option<(u32, String)>,
    /// What went wrong in the last attempt; empty when nothing did.
    problem: String,
}

impl Attacher {
    /// An attacher for a loaded program. Attaches nothing yet.
    pub(super) fn new(program: &Xdp, interfaces: Vec<InterfaceSetting>) -> Result<Self> {
        Ok(Self {
            program: program.fd()?.as_fd().try_clone_to_owned()?,
            program_id: program.info()?.id(),
            ports: interfaces.into_iter().map(Port::new).collect(),
        })
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
            ports,
        } = self;
        let program = Program {
            fd: program,
            id: *program_id,
            pins,
        };
        for port in ports.iter_mut() {
            port.problem.clear();
            if let Some(interface) = present
                .iter()
                .find(|interface| interface.name == port.setting.name)
                && let Err(problem) = port.bring_up(&program, interface)
            {
                port.problem = problem;
            }
        }
        remove_others(pins, ports, &present)
    }

    /// What is on the configured interfaces now.
    pub(super) fn attachments(&self, pins: &PinDirectory) -> Vec<Attachment> {
        match interfaces::list() {
            Ok(present) => self
                .ports
                .iter()
                .map(|port| port.report(pins, &present))
                .collect(),
            Err(error) => self
                .ports
                .iter()
                .map(|port| port.unknown(format!("{error:#}")))
                .collect(),
        }
    }
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
struct Program<'a> {
    fd: &'a OwnedFd,
    id: u32,
    pins: &'a PinDirectory,
}

impl Program<'_> {
    /// Attaches to an interface that has no program and pins the link.
    fn attach(&self, interface: &Interface, mode: XdpMode) -> Result<(), String> {
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
    fn replace(&self, interface: &Interface, link: &OwnedFd, old: u32) -> Result<(), String> {
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

impl Port {
    fn new(setting: InterfaceSetting) -> Self {
        Self {
            setting,
            refused: None,
            problem: String::new(),
        }
    }

    fn bring_up(&mut self, program: &Program<'_>, interface: &Interface) -> Result<(), String> {
        let pins = program.pins;
        let link = own_link(pins, interface).map_err(|error| format!("{error:#}"))?;
        match (link, interface.xdp) {
            (Some(link), Some(xdp)) if self.accepts(interface, xdp.mode) => {
                program.replace(interface, &link, xdp.program)
            }
            (Some(_), Some(xdp)) => {
                let wanted = self.wanted_mode(interface);
                tracing::warn!(interface = interface.name, from = %xdp.mode, to = %wanted, "XDP changes its mode");
                pins.remove_link(interface.index)
                    .map_err(|error| format!("{error:#}"))?;
                self.attach(program, interface).or_else(|problem| {
                    program.attach(interface, xdp.mode)?;
                    Err(format!("stays in {} mode: {problem}", xdp.mode))
                })
            }
            (None, Some(xdp)) => Err(foreign(&interface.name, xdp.program)),
            (_, None) => {
                let leftover = pins
                    .link(interface.index)
                    .map_err(|error| format!("{error:#}"))?;
                if leftover.is_some() {
                    pins.remove_link(interface.index)
                        .map_err(|error| format!("{error:#}"))?;
                }
                self.attach(program, interface)
            }
        }
    }

    /// Attaches to an interface that has no program, as the setting says.
    fn attach(&mut self, program: &Program<'_>, interface: &Interface) -> Result<(), String> {
        let wanted = self.wanted_mode(interface);
        let Err(problem) = program.attach(interface, wanted) else {
            return Ok(());
        };
        if wanted == XdpMode::Generic {
            return Err(problem);
        }
        self.refused = Some((interface.index, problem.clone()));
        match self.setting.attach {
            AttachMode::Auto => {
                tracing::warn!(
                    interface = interface.name,
                    "generic XDP instead of native, which is slower: {problem}"
                );
                program.attach(interface, XdpMode::Generic)
            }
            AttachMode::Native | AttachMode::Generic => Err(problem),
        }
    }

    /// The mode to attempt first.
    fn wanted_mode(&self, interface: &Interface) -> XdpMode {
        match self.setting.attach {
            AttachMode::Auto if self.refusal(interface).is_some() => XdpMode::Generic,
            AttachMode::Auto | AttachMode::Native => XdpMode::Native,
            AttachMode::Generic => XdpMode::Generic,
        }
    }

    /// Whether a program that runs in this mode can stay. An interface that once refused native mode is left in
    /// generic mode: asking again would interrupt its traffic each time.
    fn accepts(&self, interface: &Interface, mode: XdpMode) -> bool {
        match self.setting.attach {
            AttachMode::Auto => true,
            AttachMode::Native => mode == XdpMode::Native || self.refusal(interface).is_some(),
            AttachMode::Generic => mode == XdpMode::Generic,
        }
    }

    /// Why the interface refused native mode, if it did.
    fn refusal(&self, interface: &Interface) -> Option<&str> {
        self.refused
            .as_ref()
            .filter(|(index, _)| *index == interface.index)
            .map(|(_, reason)| reason.as_str())
    }

    fn report(&self, pins: &PinDirectory, present: &[Interface]) -> Attachment {
        let name = &self.setting.name;
        let Some(interface) = present.iter().find(|interface| interface.name == *name) else {
            let names: Vec<_> = present
                .iter()
                .map(|interface| interface.name.as_str())
                .collect();
            return self.unknown(format!(
                "no interface {name}; interfaces here: {}",
                names.join(", ")
            ));
        };
        let index = interface.index;
        match (own_link(pins, interface), interface.xdp) {
            (Err(error), _) => Attachment {
                index,
                ..self.unknown(format!("{error:#}"))
            },
            (Ok(Some(_)), Some(xdp)) => Attachment {
                name: name.clone(),
                index,
                mode: Some(xdp.mode),
                program_id: xdp.program,
                note: self.note(interface, xdp.mode),
            },
            (Ok(None), Some(xdp)) => Attachment {
                index,
                ..self.unknown(foreign(name, xdp.program))
            },
            (Ok(_), None) if self.problem.is_empty() => Attachment {
                index,
                ..self.unknown("not attached yet".into())
            },
            (Ok(_), None) => Attachment {
                index,
                ..self.unknown(self.problem.clone())
            },
        }
    }

    /// What there is to say of an interface that our program is attached to.
    fn note(&self, interface: &Interface, mode: XdpMode) -> String {
        match (self.setting.attach, self.refusal(interface)) {
            _ if !self.problem.is_empty() => self.problem.clone(),
            (AttachMode::Auto | AttachMode::Native, Some(reason)) if mode == XdpMode::Generic => {
                reason.into()
            }
            (AttachMode::Auto, None) if mode == XdpMode::Generic => {
                "generic mode is kept from an earlier lbd; configure native to try that again"
                    .into()
            }
            _ => String::new(),
        }
    }

    /// An attachment without a program.
    fn unknown(&self, note: String) -> Attachment {
        Attachment {
            name: self.setting.name.clone(),
            index: 0,
            mode: None,
            program_id: 0,
            note,
        }
    }
}

/// Our link on an interface. A link pinned for an earlier interface of the same index has another program than the
/// interface, or none.
fn own_link(pins: &PinDirectory, interface: &Interface) -> Result<Option<OwnedFd>> {
    let Some(xdp) = interface.xdp else {
        return Ok(None);
    };
    let Some(link) = pins.link(interface.index)? else {
        return Ok(None);
    };
    Ok((sys::link_program(link.as_fd())? == xdp.program).then_some(link))
}

fn foreign(interface: &str, program: u32) -> String {
    let name = adopt::program(program)
        .and_then(|info| info.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    format!(
        "another XDP program is on {interface}: id {program}, name {name:?}; \
         take it off (ip link set dev {interface} xdp off, or stop what attached it)"
    )
}

/// Why the kernel would not attach, and what to do.
fn refusal(interface: &str, mode: XdpMode, error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "its driver does not offer it",
        Some(libc::ERANGE) => {
            "its MTU, or its peer's, is too large for XDP; lower it with ip link set mtu"
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is being attached to it at this moment"
        }
        Some(libc::ENOMEM | libc::ENOSPC) => "its driver lacks queues or memory; see ethtool -l",
        Some(libc::EINVAL) => {
            "its driver does not accept its present set-up (large receive offload, MTU); see dmesg"
        }
        Some(libc::EPERM) => "this process lacks CAP_NET_ADMIN",
        _ => "the kernel refused",
    };
    format!("no {mode} XDP on {interface}: {hint} ({error})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(attach: AttachMode, refused: Option<u32>) -> Port {
        let setting = InterfaceSetting {
            name: "eth0".into(),
            attach,
        };
        Port {
            setting,
            refused: refused.map(|index| (index, "no".into())),
            problem: String::new(),
        }
    }

    #[test]
    fn modes_are_wanted_and_accepted_as_configured() {
        use {AttachMode::*, XdpMode as Xdp};
        let eth0 = Interface {
            name: "eth0".into(),
            index: 7,
            xdp: None,
        };
        // Setting, index of the interface that refused native mode; wanted mode, native accepted, generic accepted.
        for (attach, refused, wanted, native, generic) in [
            (Auto, None, Xdp::Native, true, true),
            (Auto, Some(7), Xdp::Generic, true, true),
            (Auto, Some(6), Xdp::Native, true, true),
            (Native, None, Xdp::Native, true, false),
            (Native, Some(7), Xdp::Native, true, true),
            (Native, Some(6), Xdp::Native, true, false),
            (Generic, None, Xdp::Generic, false, true),
            (Generic, Some(7), Xdp::Generic, false, true),
        ] {
            let port = port(attach, refused);
            assert_eq!(port.wanted_mode(&eth0), wanted, "{attach:?} {refused:?}");
            assert_eq!(
                port.accepts(&eth0, Xdp::Native),
                native,
                "{attach:?} {refused:?}"
            );
            assert_eq!(
                port.accepts(&eth0, Xdp::Generic),
                generic,
                "{attach:?} {refused:?}"
            );
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let text = |errno| {
            refusal(
                "eth0",
                XdpMode::Native,
                &io::Error::from_raw_os_error(errno),
            )
        };
        assert!(text(libc::ERANGE).contains("ip link set mtu"));
        assert!(text(libc::EOPNOTSUPP).starts_with("no native XDP on eth0: its driver"));
    }
}
