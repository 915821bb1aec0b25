//! From facts to an answer: a pure function.

use super::{
    Resolution, ResolvedHop, Unresolved,
    facts::{Hop, Link, Neighbour, Path},
};
use lb_common::mtu::LARGEST;
use rtnetlink::packet_route::neighbour::NeighbourState;
use std::net::IpAddr;

impl Path {
    /// The next hop on this way to `address`.
    pub(super) fn hop(&self, address: IpAddr) -> Hop {
        Hop {
            interface: self.interface,
            address: self.gateway.unwrap_or(address),
        }
    }
}

impl Neighbour {
    /// The MAC address to send to, if the entry is good for sending. A stale one is: the kernel sends to it as well
    /// while it asks again (RFC 4861, section 7.3.2).
    pub(super) fn usable_mac(&self) -> Option<[u8; 6]> {
        match self.state {
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent => self.mac.filter(|mac| *mac != [0; 6]),
            _ => None,
        }
    }
}

/// The answer for `address` on the way `path`, given its link and its next hop's neighbour entry.
pub(super) fn resolve(
    address: IpAddr,
    path: &Path,
    link: Option<&Link>,
    neighbour: Option<&Neighbour>,
) -> Resolution {
    let Some(link) = link else {
        return Err(Unresolved::LinkDown {
            interface: format!("number {}", path.interface),
        });
    };
    let interface = link.name.clone();
    if !link.running {
        return Err(Unresolved::LinkDown { interface });
    }
    if !link.ethernet {
        return Err(Unresolved::NotEthernet { interface });
    }
    let Some(source) = path
        .source
        .filter(|source| source.is_ipv4() == address.is_ipv4())
    else {
        return Err(Unresolved::NoSource { interface });
    };
    let Some(mac) = neighbour.and_then(Neighbour::usable_mac) else {
        let via = path.hop(address).address;
        return Err(match neighbour.map(|n| n.state) {
            None | Some(NeighbourState::None | NeighbourState::Incomplete) => {
                Unresolved::Asking { via, interface }
            }
            Some(_) => Unresolved::NoNeighbour { via, interface },
        });
    };
    let mtu = path.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
    Ok(ResolvedHop {
        mac,
        interface: path.interface,
        interface_name: interface,
        gateway: path.gateway,
        source,
        mtu: u16::try_from(mtu).map_or(LARGEST, |mtu| mtu.min(LARGEST)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use NeighbourState as State;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn path() -> Path {
        Path {
            interface: 4,
            gateway: None,
            source: Some(ip("10.0.0.1")),
            mtu: None,
        }
    }

    fn link() -> Link {
        Link {
            name: "eth0".into(),
            mtu: 1500,
            running: true,
            ethernet: true,
        }
    }

    fn answer(
        path: Path,
        link: Option<Link>,
        neighbour: Option<(State, Option<[u8; 6]>)>,
    ) -> Resolution {
        let neighbour = neighbour.map(|(state, mac)| Neighbour {
            state,
            mac,
            foreign: false,
        });
        resolve(ip("10.0.0.2"), &path, link.as_ref(), neighbour.as_ref())
    }

    #[test]
    fn every_neighbour_state_has_its_answer() {
        let name = || "eth0".to_string();
        let asking = Unresolved::Asking {
            via: ip("10.0.0.2"),
            interface: name(),
        };
        let silent = Unresolved::NoNeighbour {
            via: ip("10.0.0.2"),
            interface: name(),
        };
        let table = [
            (None, Err(&asking)),
            (Some((State::None, None)), Err(&asking)),
            (Some((State::Incomplete, None)), Err(&asking)),
            (Some((State::Incomplete, Some(MAC))), Err(&asking)),
            (Some((State::Failed, None)), Err(&silent)),
            (Some((State::Failed, Some(MAC))), Err(&silent)),
            (Some((State::Noarp, Some(MAC))), Err(&silent)),
            (Some((State::Other(0x300), Some(MAC))), Err(&silent)),
            (Some((State::Reachable, None)), Err(&silent)),
            (Some((State::Reachable, Some([0; 6]))), Err(&silent)),
            (Some((State::Reachable, Some(MAC))), Ok(MAC)),
            (Some((State::Stale, Some(MAC))), Ok(MAC)),
            (Some((State::Delay, Some(MAC))), Ok(MAC)),
            (Some((State::Probe, Some(MAC))), Ok(MAC)),
            (Some((State::Permanent, Some(MAC))), Ok(MAC)),
        ];
        for (neighbour, expected) in table {
            let got = answer(path(), Some(link()), neighbour);
            assert_eq!(got.as_ref().map(|hop| hop.mac), expected, "{neighbour:?}");
        }
    }

    #[test]
    fn a_way_that_cannot_carry_packets_is_said_before_the_neighbour_is_looked_at() {
        let good = Some((State::Reachable, Some(MAC)));
        let name = || "eth0".to_string();
        let table = [
            (
                path(),
                None,
                Unresolved::LinkDown {
                    interface: "number 4".into(),
                },
            ),
            (
                path(),
                Some(Link {
                    running: false,
                    ..link()
                }),
                Unresolved::LinkDown { interface: name() },
            ),
            (
                path(),
                Some(Link {
                    ethernet: false,
                    ..link()
                }),
                Unresolved::NotEthernet { interface: name() },
            ),
            (
                Path {
                    source: None,
                    ..path()
                },
                Some(link()),
                Unresolved::NoSource { interface: name() },
            ),
            (
                Path {
                    source: Some(ip("fe80::1")),
                    ..path()
                },
                Some(link()),
                Unresolved::NoSource { interface: name() },
            ),
        ];
        for (path, link, expected) in table {
            assert_eq!(answer(path, link, good), Err(expected));
        }
    }

    #[test]
    fn the_smaller_mtu_counts_and_a_gateway_is_told() {
        let good = Some((State::Stale, Some(MAC)));
        for (link_mtu, route_mtu, expected) in [
            (1500, None, 1500),
            (1500, Some(1400), 1400),
            (1500, Some(9000), 1500),
            (65_535, None, LARGEST),
            (65_536, None, LARGEST),
        ] {
            let path = Path {
                mtu: route_mtu,
                gateway: Some(ip("10.0.0.254")),
                ..path()
            };
            let hop = answer(
                path,
                Some(Link {
                    mtu: link_mtu,
                    ..link()
                }),
                good,
            )
            .unwrap();
            assert_eq!(hop.mtu, expected);
            assert_eq!(
                hop.to_string(),
                "via 10.0.0.254 dev eth0 lladdr 02:00:00:00:00:09"
            );
        }
        let gateway = Some(ip("10.0.0.254"));
        let silent = answer(
            Path { gateway, ..path() },
            Some(link()),
            Some((State::Failed, None)),
        );
        assert_eq!(
            silent.unwrap_err().to_string(),
            "10.0.0.254 does not answer on eth0"
        );
    }
}
