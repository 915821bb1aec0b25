//! What a backend's host is like now, as its kernel and iproute2 tell.

use crate::{dataplane::decap, prefix::Prefix};
use anyhow::{Context, Result, bail, ensure};
use lb_common::header::{PROTOCOL_TCP, PROTOCOL_UDP};
use serde::Deserialize;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::Command,
};

/// Everything that a check looks at.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The interfaces.
    pub links: Vec<Link>,
    /// What is this host's own by its routes: prefixes of type `local`.
    pub local: Vec<Prefix>,
    /// UDP ports on which the kernel takes GUE.
    pub gue_ports: Vec<u16>,
    /// Sockets that wait for clients: IP protocol number and local address.
    pub listening: Vec<(u8, SocketAddr)>,
    /// `net.ipv4.conf.all.arp_ignore`.
    pub arp_ignore: u32,
    /// `net.ipv4.conf.all.arp_announce`.
    pub arp_announce: u32,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter: u32,
    /// Interfaces on which the backend kit decapsulates.
    pub decapsulates: Vec<String>,
}

/// An interface.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Type as `ip link` has it; empty for hardware.
    pub kind: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `net.ipv4.conf.NAME.rp_filter`.
    pub rp_filter: u32,
}

impl Facts {
    /// Asks the kernel. `pin_directory` is the backend kit's.
    ///
    /// # Errors
    /// When there is no iproute2, or its answer cannot be read.
    pub fn read(pin_directory: &Path) -> Result<Self> {
        let attached = decap::status(pin_directory).ok().flatten();
        Ok(Self {
            links: links(&ip(&["-json", "-details", "address", "show"])?)?,
            local: local_prefixes()?,
            // Without its module there is no such port.
            gue_ports: gue_ports(&ip(&["fou", "show"]).unwrap_or_default()),
            listening: listening()?,
            arp_ignore: setting("all", "arp_ignore"),
            arp_announce: setting("all", "arp_announce"),
            rp_filter: setting("all", "rp_filter"),
            decapsulates: attached.map_or_else(Vec::new, |status| status.interfaces),
        })
    }
}

fn ip(arguments: &[&str]) -> Result<String> {
    let ran = Command::new("ip").args(arguments).output();
    let ran = ran.context("cannot run ip; install iproute2")?;
    ensure!(
        ran.status.success(),
        "ip {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

#[derive(Deserialize)]
struct RawLink {
    ifname: String,
    flags: Vec<String>,
    mtu: u32,
    #[serde(default)]
    linkinfo: Option<RawInfo>,
    #[serde(default)]
    addr_info: Vec<RawAddress>,
}

#[derive(Deserialize)]
struct RawInfo {
    #[serde(default)]
    info_kind: String,
}

#[derive(Deserialize)]
struct RawAddress {
    local: Option<IpAddr>,
}

/// The interfaces in what `ip -json -details address show` prints.
fn links(json: &str) -> Result<Vec<Link>> {
    let raw: Vec<RawLink> =
        serde_json::from_str(json).context("cannot read what ip -json address show prints")?;
    let link = |raw: RawLink| Link {
        up: raw.flags.iter().any(|flag| flag == "UP"),
        loopback: raw.flags.iter().any(|flag| flag == "LOOPBACK"),
        kind: raw.linkinfo.map(|info| info.info_kind).unwrap_or_default(),
        mtu: raw.mtu,
        addresses: raw
            .addr_info
            .into_iter()
            .filter_map(|address| address.local)
            .collect(),
        rp_filter: setting(&raw.ifname, "rp_filter"),
        name: raw.ifname,
    };
    Ok(raw.into_iter().map(link).collect())
}

#[derive(Deserialize)]
struct RawRoute {
    dst: String,
}

fn local_prefixes() -> Result<Vec<Prefix>> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        let show = ["-json", family, "route", "show"];
        let which = ["table", "local", "type", "local"];
        // Without IPv6 there is no such table.
        let json = ip(&[show, which].concat()).unwrap_or_else(|_| "[]".into());
        all.extend(routes(&json)?);
    }
    Ok(all)
}

/// The destinations in what `ip -json route show` prints.
fn routes(json: &str) -> Result<Vec<Prefix>> {
    // Where there are none, some versions print nothing.
    let json = if json.trim().is_empty() { "[]" } else { json };
    let raw: Vec<RawRoute> =
        serde_json::from_str(json).context("cannot read what ip -json route show prints")?;
    Ok(raw.iter().filter_map(|raw| raw.dst.parse().ok()).collect())
}

/// The ports in what `ip fou show` prints, lines such as `port 6080 gue`.
fn gue_ports(text: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut words = line.split_whitespace();
        words.clone().find(|word| *word == "gue")?;
        words.find(|word| *word == "port")?;
        words.next()?.parse().ok()
    };
    text.lines().filter_map(port).collect()
}

/// A setting of an interface in this network namespace; 0 if there is none.
fn setting(interface: &str, key: &str) -> u32 {
    let path = Path::new("/proc/sys/net/ipv4/conf")
        .join(interface)
        .join(key);
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn listening() -> Result<Vec<(u8, SocketAddr)>> {
    // State of a listening TCP socket and of an unconnected UDP one (include/net/tcp_states.h).
    let tables = [
        ("tcp", PROTOCOL_TCP, "0A"),
        ("tcp6", PROTOCOL_TCP, "0A"),
        ("udp", PROTOCOL_UDP, "07"),
        ("udp6", PROTOCOL_UDP, "07"),
    ];
    let mut found = Vec::new();
    for (table, protocol, state) in tables {
        // Without IPv6 there are two only.
        let text = fs::read_to_string(format!("/proc/self/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, found_state) = (fields.next(), fields.nth(1));
            if found_state == Some(state) {
                let local = local.context("a socket without an address")?;
                found.push((protocol, socket_address(local)?));
            }
        }
    }
    Ok(found)
}

/// An address as /proc/net/tcp writes it (proc(5)): words of 32 bits in the machine's byte order, a colon, the port.
fn socket_address(text: &str) -> Result<SocketAddr> {
    let (address, port) = text.split_once(':').context("no port")?;
    let port = u16::from_str_radix(port, 16)?;
    let mut words = Vec::new();
    for chunk in address.as_bytes().chunks(8) {
        words.push(u32::from_str_radix(std::str::from_utf8(chunk)?, 16)?);
    }
    let address = match words[..] {
        [word] => IpAddr::from(Ipv4Addr::from(word.to_ne_bytes())),
        [a, b, c, d] => {
            let words = [a, b, c, d].map(|word| u32::from_be_bytes(word.to_ne_bytes()));
            let joined = words
                .iter()
                .fold(0_u128, |sum, word| sum << 32 | u128::from(*word));
            Ipv6Addr::from(joined).into()
        }
        _ => bail!("{text} is no socket's address"),
    };
    Ok(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read() {
        let read = |text: &str| socket_address(text).unwrap().to_string();
        assert_eq!(read("0100007F:0050"), "127.0.0.1:80");
        assert_eq!(
            read("B80D0120000000000000000001000000:01BB"),
            "[2001:db8::1]:443"
        );
        assert!(socket_address("01:02").is_ok());
        assert!(socket_address("0100007F").is_err());
    }

    #[test]
    fn interfaces_are_read() {
        let json = r#"[{"ifname":"lo","flags":["LOOPBACK","UP"],"mtu":65536,"addr_info":[{"local":"192.0.2.1"}]},
            {"ifname":"gw-ipip","flags":["NOARP"],"mtu":1480,"linkinfo":{"info_kind":"ipip"},"addr_info":[{}]}]"#;
        let links = links(json).unwrap();
        assert!(links[0].up && links[0].loopback && links[0].addresses.len() == 1);
        assert_eq!((links[1].kind.as_str(), links[1].up), ("ipip", false));
    }

    #[test]
    fn local_prefixes_are_read() {
        let json = r#"[{"type":"local","dst":"127.0.0.0/8","dev":"lo","protocol":"kernel","scope":"host","flags":[]},
            {"type":"local","dst":"192.0.2.7","dev":"lo","flags":[]},{"type":"local","dst":"default","flags":[]}]"#;
        let read: Vec<String> = routes(json)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(read, ["127.0.0.0/8", "192.0.2.7"]);
        assert_eq!(routes("").unwrap(), []);
    }

    #[test]
    fn ports_of_gue_are_told_from_others() {
        assert_eq!(
            gue_ports("port 6080 gue\nport 5555 ipproto 4\nport 6081 gue -6\n"),
            [6080, 6081]
        );
    }
}
