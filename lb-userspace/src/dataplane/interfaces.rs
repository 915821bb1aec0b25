//! The interfaces of this network namespace and the XDP programs on them, as the kernel tells them (rtnetlink(7)).

use anyhow::{Context as _, Result, bail};
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use std::{fmt, io};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// Largest IP packet in bytes.
    pub(super) mtu: u32,
    /// Whether it is up and has a carrier.
    pub(super) up: bool,
    /// Its own MAC, if it has one of that length.
    pub(super) mac: Option<[u8; 6]>,
    /// The XDP program on it, whoever attached it.
    pub(super) xdp: Option<Attached>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) mode: XdpMode,
    pub(super) program: u32,
}

/// How an XDP program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel has allocated anything for the packet.
    Native,
    /// In the network stack: works with every driver, at a fraction of the speed.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// How often a listing is asked for when interfaces come and go meanwhile.
const ATTEMPTS: u32 = 5;

/// All interfaces, in order of index.
pub(super) fn list() -> Result<Vec<Interface>> {
    for _ in 0..ATTEMPTS {
        if let Some(interfaces) = dump().context("cannot list the network interfaces (netlink)")? {
            return Ok(interfaces);
        }
    }
    bail!(
        "cannot list the network interfaces: they changed {ATTEMPTS} times while they were listed"
    );
}

/// One listing; `None` when the kernel says that it is not consistent. An interface missing from one could look
/// like an interface that is gone, and lose its program.
fn dump() -> Result<Option<Vec<Interface>>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;

    let mut interfaces = Vec::new();
    let mut consistent = true;
    loop {
        let datagram = match socket.recv_from_full() {
            Ok((datagram, _)) => datagram,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)?;
            consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    interfaces.push(interface(link))
                }
                NetlinkPayload::Done(_) => return Ok(consistent.then_some(interfaces)),
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                _ => {}
            }
            // Messages are aligned to four bytes; a deserialised one is at least a header long.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request() -> Vec<u8> {
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    buffer
}

fn interface(link: LinkMessage) -> Interface {
    let mut interface = Interface {
        name: String::new(),
        index: link.header.index,
        mtu: 0,
        up: link
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
        mac: None,
        xdp: None,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Address(bytes) => interface.mac = bytes.try_into().ok(),
            LinkAttribute::Xdp(xdp) => interface.xdp = xdp.iter().find_map(attached),
            _ => {}
        }
    }
    interface
}

/// The kernel names the program under its mode. A program on the card itself counts as native: it is not ours.
fn attached(xdp: &LinkXdp) -> Option<Attached> {
    match *xdp {
        LinkXdp::DrvProgId(program) | LinkXdp::HwProgId(program) => Some(Attached {
            mode: XdpMode::Native,
            program,
        }),
        LinkXdp::SkbProgId(program) => Some(Attached {
            mode: XdpMode::Generic,
            program,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_always_listed() {
        let interfaces = list().unwrap();
        assert!(
            interfaces
                .iter()
                .any(|interface| interface.name == "lo" && interface.index == 1),
            "{interfaces:?}"
        );
    }
}
