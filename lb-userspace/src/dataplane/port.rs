//! One configured interface: what is wanted on it, what is on it, and the way from one to the other.
//!
//! **Invariant.** An interface that forwards is interrupted only for a change of mode that was configured, and for the
//! same one only once.

use super::{
    adopt,
    attach::{AttachMode, Attachment, InterfaceSetting, Program},
    interfaces::{Attached, Interface, XdpMode},
    pins::PinDirectory,
    sys,
};
use anyhow::Result;
use lb_common::maps;
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

/// One configured interface.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) setting: InterfaceSetting,
    /// Index of the interface that refused native mode, and its reason: it is not asked again and again.
    refused: Option<(u32, String)>,
    /// What went wrong in the last attempt; empty when nothing did.
    problem: String,
}

impl Port {
    /// A port of which nothing is known yet.
    pub(super) fn new(setting: InterfaceSetting) -> Self {
        Self {
            setting,
            refused: None,
            problem: String::new(),
        }
    }

    /// Brings the program onto the interface, as it is now, and keeps what went wrong for the report.
    pub(super) fn bring_up(&mut self, program: &Program<'_>, interface: Option<&Interface>) {
        self.problem = match interface.map(|interface| self.attempt(program, interface)) {
            Some(Err(problem)) => problem,
            Some(Ok(())) | None => String::new(),
        };
    }

    fn attempt(&mut self, program: &Program<'_>, interface: &Interface) -> Result<(), String> {
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
            (None, Some(xdp)) => Err(foreign(&interface.name, xdp)),
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

    /// What is on the interface now.
    pub(super) fn report(&self, pins: &PinDirectory, present: &[Interface]) -> Attachment {
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
        let (index, up) = (interface.index, interface.up);
        match (own_link(pins, interface), interface.xdp) {
            (Err(error), _) => Attachment {
                index,
                up,
                ..self.unknown(format!("{error:#}"))
            },
            (Ok(Some(_)), Some(xdp)) => Attachment {
                name: name.clone(),
                index,
                up,
                mode: Some(xdp.mode),
                program_id: xdp.program,
                note: self.note(interface, xdp.mode),
            },
            (Ok(None), Some(xdp)) => Attachment {
                index,
                up,
                ..self.unknown(foreign(name, xdp))
            },
            (Ok(_), None) if self.problem.is_empty() => Attachment {
                index,
                up,
                ..self.unknown("not attached yet".into())
            },
            (Ok(_), None) => Attachment {
                index,
                up,
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
            up: false,
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

/// Who has the interface, and how it is got back.
fn foreign(interface: &str, xdp: Attached) -> String {
    let program = xdp.program;
    let name = adopt::program(program)
        .and_then(|info| info.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    let hint = way_out(interface, &name, xdp.mode, adopt::has_link(program));
    format!("another XDP program is on {interface}: id {program}, name {name:?}; {hint}")
}

/// How to take off a program that is not ours. One that a link holds goes with its link only.
fn way_out(interface: &str, program: &str, mode: XdpMode, has_link: bool) -> String {
    let keyword = match mode {
        XdpMode::Native => "xdpdrv",
        XdpMode::Generic => "xdpgeneric",
    };
    match (program, has_link) {
        (maps::PROGRAM | maps::FRAGS_PROGRAM, true) => {
            "another Guideway with another pin_directory has it: lbd detach --config ITS-CONFIG"
                .into()
        }
        (_, true) => format!(
            "a BPF link holds it, so stop what attached it (bpftool link shows the link and its process, \
             bpftool net what is on {interface})"
        ),
        (_, false) => format!(
            "take it off with ip link set dev {interface} {keyword} off, or stop what attached it"
        ),
    }
}

/// Why the kernel would not attach, and what to do.
pub(super) fn refusal(interface: &str, mode: XdpMode, error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "its driver does not offer it",
        Some(libc::ERANGE) => {
            "its MTU, or its peer's, is too large for XDP; lower it with ip link set mtu, or, if it has grown since lbd \
             was started, restart lbd, which loads another program for jumbo frames"
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
            mtu: 1_500,
            up: true,
            mac: None,
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
    fn the_way_out_is_one_that_works() {
        let hint = |program, mode, has_link| way_out("eth0", program, mode, has_link);
        assert!(hint(maps::PROGRAM, XdpMode::Native, true).contains("lbd detach --config"));
        assert!(hint("other", XdpMode::Native, true).contains("bpftool link"));
        for program in [maps::PROGRAM, "other"] {
            let native = hint(program, XdpMode::Native, false);
            assert!(
                native.contains("ip link set dev eth0 xdpdrv off"),
                "{native}"
            );
            let generic = hint(program, XdpMode::Generic, false);
            assert!(
                generic.contains("ip link set dev eth0 xdpgeneric off"),
                "{generic}"
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
