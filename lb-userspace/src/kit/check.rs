//! Whether a host does what a service needs of it.
//!
//! **Invariant.** Pure: it judges [`Facts`] and changes nothing. Whatever is wrong comes with the command that mends it.

use super::{
    Need,
    facts::{Facts, Link},
    setup::{OUTSIDE_MTU, listener, segment, tunnel},
};
use crate::prefix::Prefix;
use lb_common::{
    backend::Mode,
    header::{PROTOCOL_TCP, PROTOCOL_UDP},
};
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is so.
    pub said: String,
    /// The command that mends it; absent when it is as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    fn good(said: impl Into<String>) -> Self {
        Self {
            said: said.into(),
            mend: None,
        }
    }

    fn wrong(said: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            said: said.into(),
            mend: Some(mend.into()),
        }
    }
}

/// The service's own socket: IP protocol number and port.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// [`PROTOCOL_TCP`] or [`PROTOCOL_UDP`].
    pub protocol: u8,
    /// The service's port.
    pub port: u16,
}

/// Everything that can be said of a host, in the order of a packet's way.
pub fn findings(need: &Need, service: Option<Listener>, facts: &Facts) -> Vec<Finding> {
    let mut found = vec![address(need, facts)];
    found.extend(room(need, facts));
    if need.mode != Mode::L2 {
        found.extend(decapsulation(need, facts));
    }
    found.push(vip(need, facts));
    if need.vip.is_ipv4() {
        found.push(at_least("arp_ignore", facts.arp_ignore, 1));
        found.push(at_least("arp_announce", facts.arp_announce, 2));
    }
    found.extend(service.map(|service| socket(need, service, facts)));
    found
}

fn holder<'a>(facts: &'a Facts, address: &IpAddr) -> Option<&'a Link> {
    facts
        .links
        .iter()
        .find(|link| link.addresses.contains(address))
}

fn address(need: &Need, facts: &Facts) -> Finding {
    let address = need.address;
    match holder(facts, &address) {
        Some(link) if link.up => {
            Finding::good(format!("{address} is on {}, which is up", link.name))
        }
        Some(link) => Finding::wrong(
            format!("{}, which has {address}, is down", link.name),
            format!("ip link set dev {} up", link.name),
        ),
        None => Finding::wrong(
            format!("no interface has {address}, where the balancer sends packets"),
            format!(
                "ip address add {address}/PREFIX dev INTERFACE, or correct the backend: lbctl backend set NAME --address ADDRESS"
            ),
        ),
    }
}

/// Whether the largest packets from outside fit with their outer headers.
fn room(need: &Need, facts: &Facts) -> Option<Finding> {
    let link = holder(facts, &need.address)?;
    let wanted = OUTSIDE_MTU + need.overhead();
    if link.mtu >= wanted {
        return Some(Finding::good(format!(
            "{} takes packets of {} bytes",
            link.name, link.mtu
        )));
    }
    let family = if need.vip.is_ipv4() { 4 } else { 6 };
    Some(Finding::wrong(
        format!(
            "{} takes packets of {} bytes: one of {OUTSIDE_MTU} from outside comes with up to {} more",
            link.name,
            link.mtu,
            need.overhead()
        ),
        format!(
            "ip link set dev {} mtu {wanted}, if the network takes that; else \
             ip -{family} route change $(ip -{family} route show default | head -n 1) advmss {}",
            link.name,
            segment(need)
        ),
    ))
}

/// Who takes the outer headers away: the backend kit's program, or the kernel's tunnels.
fn decapsulation(need: &Need, facts: &Facts) -> Vec<Finding> {
    if !facts.decapsulates.is_empty() {
        let where_ = facts.decapsulates.join(", ");
        let mut found = vec![Finding::good(format!(
            "the backend kit decapsulates on {where_}"
        ))];
        if let (true, Some(link)) = (need.vip.is_ipv4(), holder(facts, &need.address)) {
            found.push(reverse_path(facts, link));
        }
        return found;
    }
    let mut found = vec![];
    if need.mode == Mode::Gue {
        let port = need.gue_port;
        found.push(if facts.gue_ports.contains(&port) {
            Finding::good(format!("the kernel takes GUE on UDP port {port}"))
        } else {
            Finding::wrong(
                format!("nothing takes GUE on UDP port {port}"),
                listener(need),
            )
        });
    }
    let (Some(device), Some(commands)) = (need.device(), tunnel(need)) else {
        return found;
    };
    let mut of_kind = facts.links.iter().filter(|link| link.kind == device.kind);
    match of_kind.clone().find(|link| link.up).or(of_kind.next()) {
        Some(link) if link.up => {
            found.push(Finding::good(format!(
                "tunnel device {} ({}) is up",
                link.name, link.kind
            )));
            if need.vip.is_ipv4() {
                found.push(reverse_path(facts, link));
            }
        }
        Some(link) => found.push(Finding::wrong(
            format!("tunnel device {} ({}) is down", link.name, link.kind),
            format!("ip link set dev {} up", link.name),
        )),
        None => found.push(Finding::wrong(
            format!(
                "no tunnel device of type {} takes packets out of IP in IP",
                device.kind
            ),
            format!(
                "{}; without that module: lbctl backend-kit attach --interface INTERFACE",
                commands.join("; ")
            ),
        )),
    }
    found
}

/// Strict reverse-path filtering (RFC 3704) drops what comes by another way than its answer goes.
fn reverse_path(facts: &Facts, link: &Link) -> Finding {
    let name = &link.name;
    if facts.rp_filter.max(link.rp_filter) != 1 {
        return Finding::good(format!("no strict reverse-path filter on {name}"));
    }
    Finding::wrong(
        format!("a strict reverse-path filter on {name} drops clients' packets"),
        format!("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{name}.rp_filter=0"),
    )
}

fn vip(need: &Need, facts: &Facts) -> Finding {
    let (vip, mend) = (need.vip, need.own_vip());
    if !vip.is_address() {
        return match facts.local.iter().find(|local| local.contains(vip)) {
            Some(local) => Finding::good(format!("all of {local} is this host's own")),
            None => Finding::wrong(
                format!("not all of the service's addresses, {vip}, are this host's own"),
                mend,
            ),
        };
    }
    match holder(facts, &vip.address()) {
        // Neither answers questions about an address.
        Some(link) if link.loopback || link.kind == "dummy" => {
            Finding::good(format!("{vip} is on {}", link.name))
        }
        Some(link) => Finding::wrong(
            format!(
                "{vip} is on {}, whose neighbours would take this host for the service",
                link.name
            ),
            format!("ip address del {vip} dev {}; {mend}", link.name),
        ),
        None if facts.local.iter().any(|local| local.contains(vip)) => {
            Finding::good(format!("{vip} is this host's own by a route"))
        }
        None => Finding::wrong(
            format!("no interface has the service's address {vip}"),
            mend,
        ),
    }
}

fn at_least(key: &str, value: u32, least: u32) -> Finding {
    let key = format!("net.ipv4.conf.all.{key}");
    if value >= least {
        return Finding::good(format!("{key} is {value}"));
    }
    Finding::wrong(
        format!("{key} is {value}: this host speaks of the service's address to its neighbours"),
        format!("sysctl -w {key}={least}"),
    )
}

fn socket(need: &Need, service: Listener, facts: &Facts) -> Finding {
    let Listener { protocol, port } = service;
    let name = if protocol == PROTOCOL_TCP {
        "tcp"
    } else {
        "udp"
    };
    let takes = |socket: &SocketAddr| {
        let any = socket.ip().is_unspecified() && (socket.is_ipv6() || need.vip.is_ipv4());
        socket.port() == port && (any || Prefix::from(socket.ip()) == need.vip)
    };
    let mut sockets = facts.listening.iter();
    match sockets.find(|(of, socket)| *of == protocol && takes(socket)) {
        Some((_, socket)) => Finding::good(format!("{socket} ({name}) is listened on")),
        None => Finding::wrong(
            format!(
                "nothing listens on {} ({name})",
                if need.vip.is_address() {
                    SocketAddr::new(need.vip.address(), port).to_string()
                } else {
                    format!("port {port} of all of {}", need.vip)
                }
            ),
            "start the service, and let it listen on that address or on all addresses",
        ),
    }
}

const _: () = assert!(PROTOCOL_TCP != PROTOCOL_UDP);

#[cfg(test)]
mod tests {
    use super::*;

    fn need(mode: Mode) -> Need {
        Need {
            vip: "192.0.2.1".parse().unwrap(),
            mode,
            address: "198.51.100.11".parse().unwrap(),
            gue_port: 6080,
        }
    }

    fn link(name: &str, kind: &str, mtu: u32, address: &str) -> Link {
        Link {
            name: name.into(),
            kind: kind.into(),
            up: true,
            loopback: name == "lo",
            mtu,
            addresses: address.parse().into_iter().collect(),
            rp_filter: 0,
        }
    }

    /// A host that lacks nothing for mode `gue`.
    fn good() -> Facts {
        Facts {
            links: vec![
                link("lo", "", 65_536, "192.0.2.1"),
                link("eth0", "", 1_600, "198.51.100.11"),
                link("gw-ipip", "ipip", 1_480, ""),
            ],
            gue_ports: vec![6080],
            listening: vec![(PROTOCOL_TCP, "0.0.0.0:80".parse().unwrap())],
            arp_ignore: 1,
            arp_announce: 2,
            ..Facts::default()
        }
    }

    const WEB: Option<Listener> = Some(Listener {
        protocol: PROTOCOL_TCP,
        port: 80,
    });

    fn wrong(mode: Mode, facts: &Facts) -> Vec<Finding> {
        let found = findings(&need(mode), WEB, facts).into_iter();
        found.filter(|finding| finding.mend.is_some()).collect()
    }

    #[test]
    fn nothing_is_wrong_with_a_good_host() {
        for mode in [Mode::L2, Mode::Ipip, Mode::Gue] {
            assert_eq!(wrong(mode, &good()), []);
        }
    }

    #[test]
    fn each_defect_is_found_alone_and_with_what_mends_it() {
        type Break = fn(&mut Facts);
        let defects: [(Break, &str); 12] = [
            (
                |facts| facts.links[0].addresses.clear(),
                "ip address replace 192.0.2.1/32 dev lo",
            ),
            (
                |facts| facts.links.swap_remove(1).addresses.clear(),
                "ip address add 198.51.100.11",
            ),
            (|facts| facts.links[1].up = false, "ip link set dev eth0 up"),
            (|facts| facts.links[1].mtu = 1_500, "mtu 1540"),
            (
                |facts| facts.links[2].up = false,
                "ip link set dev gw-ipip up",
            ),
            (
                |facts| drop(facts.links.pop()),
                "ip link add gw-ipip type ipip local 198.51.100.11",
            ),
            (
                |facts| facts.links[2].rp_filter = 1,
                "net.ipv4.conf.gw-ipip.rp_filter=0",
            ),
            (|facts| facts.rp_filter = 1, "net.ipv4.conf.all.rp_filter=0"),
            (|facts| facts.gue_ports.clear(), "ip fou add port 6080 gue"),
            (
                |facts| facts.arp_ignore = 0,
                "sysctl -w net.ipv4.conf.all.arp_ignore=1",
            ),
            (
                |facts| facts.arp_announce = 0,
                "sysctl -w net.ipv4.conf.all.arp_announce=2",
            ),
            (
                |facts| facts.listening[0].1.set_ip([127, 0, 0, 1].into()),
                "start the service",
            ),
        ];
        for (break_it, mend) in defects {
            let mut facts = good();
            break_it(&mut facts);
            let found = wrong(Mode::Gue, &facts);
            let [finding] = &found[..] else {
                panic!("{mend}: {found:?}");
            };
            assert!(
                finding.mend.as_deref().unwrap().contains(mend),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn a_whole_prefix_must_be_local() {
        let need = Need {
            vip: "192.0.2.0/24".parse().unwrap(),
            ..need(Mode::L2)
        };
        let mut facts = good();
        let missing = |facts: &Facts| {
            let found = findings(&need, WEB, facts).into_iter();
            let mend = found.filter_map(|finding| finding.mend);
            mend.collect::<Vec<_>>()
        };
        let mend = "ip -4 route replace local 192.0.2.0/24 dev lo";
        assert_eq!(missing(&facts), [mend]);
        facts.local = vec!["192.0.2.0/25".parse().unwrap()];
        assert_eq!(missing(&facts), [mend]);
        facts.local.push("192.0.2.0/23".parse().unwrap());
        assert_eq!(missing(&facts), [""; 0]);
    }

    #[test]
    fn the_service_s_address_must_not_be_where_neighbours_ask() {
        let mut facts = good();
        facts.links[0].addresses.clear();
        facts.links[1].addresses.push(need(Mode::L2).vip.address());
        assert!(wrong(Mode::L2, &facts)[0].said.contains("on eth0"));
    }

    #[test]
    fn the_kit_s_program_takes_the_place_of_devices() {
        let mut facts = good();
        facts.links.truncate(2);
        facts.gue_ports.clear();
        facts.decapsulates = vec!["eth0: native XDP".into()];
        assert_eq!(wrong(Mode::Gue, &facts), []);
        facts.links[1].rp_filter = 1;
        assert_eq!(wrong(Mode::Gue, &facts).len(), 1);
    }
}
