//! What netlink says, in types of our own: links, neighbour entries, routes, and events. Attributes that we do not
//! need, messages of other kinds and messages that lack what we need are left aside; nothing here panics.

use super::Unresolved;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub name: String,
    pub mtu: u32,
    /// Up, and the link below it too.
    pub running: bool,
    pub ethernet: bool,
}

/// A next hop: an address on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Hop {
    pub interface: u32,
    pub address: IpAddr,
}

/// What the kernel's neighbour table has for a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub state: NeighbourState,
    pub mac: Option<[u8; 6]>,
    /// Whether someone else keeps the entry: static, or learned by a control plane (`extern_learn`).
    pub foreign: bool,
}

/// The way of the kernel's route to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub interface: u32,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    /// The route's own MTU.
    pub mtu: Option<u32>,
}

/// The kernel's route to an address, or why there is none.
pub(super) type Route = Result<Path, Unresolved>;

/// The addresses that a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    address: IpAddr,
    length: u8,
}

/// One thing that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A link is there, or is gone.
    Link(u32, Option<Link>),
    /// A neighbour entry is there, or is gone.
    Neighbour(Hop, Option<Neighbour>),
    /// A route was added, changed or removed.
    Route(Prefix),
    /// An address of this host or a routing rule changed: any route may be another now.
    AnyRoute,
}

/// What a message from a multicast group means to us.
pub(super) fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(m) => {
            link(m).map(|(index, link)| Event::Link(index, Some(link)))
        }
        RouteNetlinkMessage::DelLink(m) => link(m).map(|(index, _)| Event::Link(index, None)),
        RouteNetlinkMessage::NewNeighbour(m) => {
            neighbour(m).map(|(hop, entry)| Event::Neighbour(hop, Some(entry)))
        }
        RouteNetlinkMessage::DelNeighbour(m) => {
            neighbour(m).map(|(hop, _)| Event::Neighbour(hop, None))
        }
        RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => {
            prefix(m).map(Event::Route)
        }
        RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_) => Some(Event::AnyRoute),
        _ => None,
    }
}

/// A link message. Those of family `AF_BRIDGE` tell of a port leaving or joining its bridge, not of the link.
pub(super) fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut name = None;
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    let flags = message.header.flags;
    let link = Link {
        name: name?,
        mtu,
        running: flags.contains(LinkFlags::Up | LinkFlags::Running),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
    };
    Some((message.header.index, link))
}

/// A neighbour message of IPv4 or IPv6; bridge and proxy entries are not next hops.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(Hop, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok()
            }
            _ => {}
        }
    }
    let state = message.header.state;
    let foreign = state == NeighbourState::Permanent
        || message.header.flags.contains(NeighbourFlags::ExtLearned);
    let hop = Hop {
        interface: message.header.ifindex,
        address: address?,
    };
    Some((
        hop,
        Neighbour {
            state,
            mac,
            foreign,
        },
    ))
}

/// The answer to a route look-up.
pub(super) fn route(message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Err(Unresolved::Local),
        RouteType::Unreachable => return Err(Unresolved::Unreachable),
        RouteType::Prohibit => return Err(Unresolved::Prohibited),
        RouteType::BlackHole => return Err(Unresolved::Blackhole),
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Err(Unresolved::NotUnicast);
        }
        other => {
            return Err(Unresolved::LookUpFailed {
                reason: format!("a route of type {other:?}"),
            });
        }
    }
    let mut interface = None;
    let mut path = Path {
        interface: 0,
        gateway: None,
        source: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => path.gateway = ip(address),
            // An IPv4 route through an IPv6 gateway (RFC 8950).
            RouteAttribute::Via(RouteVia::Inet(v4)) => path.gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => path.gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::PrefSource(address) => path.source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                path.mtu = metrics.iter().find_map(|m| {
                    if let RouteMetric::Mtu(mtu) = m {
                        Some(*mtu)
                    } else {
                        None
                    }
                });
            }
            _ => {}
        }
    }
    path.interface = interface.ok_or_else(|| Unresolved::LookUpFailed {
        reason: "a route without interface".into(),
    })?;
    Ok(path)
}

/// What a refused route look-up means; `errno` is positive.
pub(super) fn refusal(errno: i32) -> Unresolved {
    match errno {
        libc::ENETUNREACH => Unresolved::NoRoute,
        libc::EHOSTUNREACH => Unresolved::Unreachable,
        libc::EACCES => Unresolved::Prohibited,
        libc::EINVAL => Unresolved::Blackhole,
        other => Unresolved::LookUpFailed {
            reason: std::io::Error::from_raw_os_error(other).to_string(),
        },
    }
}

fn prefix(message: &RouteMessage) -> Option<Prefix> {
    let destination = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    Some(Prefix {
        address: destination.unwrap_or(any),
        length: message.header.destination_prefix_length,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

impl Prefix {
    /// Whether the prefix holds `address`.
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let length = u32::from(self.length);
        match (self.address, address) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let shift = 32_u32.saturating_sub(length);
                (mine.to_bits() ^ other.to_bits())
                    .checked_shr(shift)
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let shift = 128_u32.saturating_sub(length);
                (mine.to_bits() ^ other.to_bits())
                    .checked_shr(shift)
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_contains_its_addresses_and_no_others() {
        let cases = [
            ("10.1.0.0", 16, "10.1.255.255", true),
            ("10.1.0.0", 16, "10.2.0.0", false),
            ("0.0.0.0", 0, "203.0.113.9", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("10.1.2.3", 32, "10.1.2.3", true),
            ("10.1.2.3", 32, "10.1.2.2", false),
            ("2001:db8::", 32, "2001:db8:1::1", true),
            ("2001:db8::", 32, "2001:db9::1", false),
            ("::", 0, "fe80::1", true),
            ("fe80::1", 128, "fe80::2", false),
        ];
        for (prefix, length, address, expected) in cases {
            let prefix = Prefix {
                address: prefix.parse().unwrap(),
                length,
            };
            assert_eq!(
                prefix.contains(address.parse().unwrap()),
                expected,
                "{prefix:?} {address}"
            );
        }
    }

    #[test]
    fn a_bridge_port_leaving_its_bridge_is_not_a_link_that_vanished() {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName("eth0".into()));
        assert_eq!(
            link(&message).map(|(_, link)| link.name),
            Some("eth0".into())
        );
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(event(&RouteNetlinkMessage::DelLink(message)), None);
    }

    #[test]
    fn messages_that_lack_what_we_need_are_left_aside() {
        assert_eq!(
            event(&RouteNetlinkMessage::NewLink(LinkMessage::default())),
            None
        );
        assert_eq!(
            event(&RouteNetlinkMessage::NewNeighbour(
                NeighbourMessage::default()
            )),
            None
        );
        assert_eq!(
            event(&RouteNetlinkMessage::NewRoute(RouteMessage::default())),
            None
        );
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        assert!(matches!(
            route(&message),
            Err(Unresolved::LookUpFailed { .. })
        ));
    }

    #[test]
    fn a_route_through_a_gateway_of_the_other_family_is_understood() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
        message.attributes = vec![
            RouteAttribute::Oif(7),
            RouteAttribute::Via(RouteVia::Inet6(gateway)),
            RouteAttribute::PrefSource(RouteAddress::Inet([10, 0, 0, 1].into())),
            RouteAttribute::Metrics(vec![RouteMetric::Advmss(9), RouteMetric::Mtu(1400)]),
        ];
        let expected = Path {
            interface: 7,
            gateway: Some(gateway.into()),
            source: Some("10.0.0.1".parse().unwrap()),
            mtu: Some(1400),
        };
        assert_eq!(route(&message), Ok(expected));
    }

    #[test]
    fn a_neighbour_message_gives_its_entry() {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 2].into())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
        ];
        let (hop, entry) = neighbour(&message).unwrap();
        assert_eq!(
            hop,
            Hop {
                interface: 3,
                address: "10.0.0.2".parse().unwrap()
            }
        );
        assert_eq!((entry.mac, entry.foreign), (Some([2, 0, 0, 0, 0, 1]), true));
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(vec![0; 20]));
        assert_eq!(
            neighbour(&message).unwrap().1.mac,
            None,
            "an InfiniBand address is no MAC"
        );
    }
}
