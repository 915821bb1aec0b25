//! What a route to a VIP says to routers, for the drivers that speak to a BGP speaker themselves: next hop, MED, communities.

use super::{Announced, Role, Wanted};
use crate::prefix::Prefix;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

/// Asks routers to prefer any other way (RFC 8326). A route with it is that of a node that is drained.
pub const GRACEFUL_SHUTDOWN: Community = Community(65_535, 0);
/// LOCAL_PREF of such a route among routers of one AS (RFC 8326, section 4.2); others are not told it.
const LAST_CHOICE: u32 = 0;

/// A community (RFC 1997).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Community(pub u16, pub u16);

impl From<u32> for Community {
    fn from(number: u32) -> Self {
        // Each is one half of the number.
        Self((number >> 16) as u16, number as u16)
    }
}

impl From<Community> for u32 {
    fn from(Community(high, low): Community) -> Self {
        (Self::from(high) << 16) | Self::from(low)
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

impl FromStr for Community {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let halves = text.split_once(':');
        let halves = halves.and_then(|(high, low)| Some((high.parse().ok()?, low.parse().ok()?)));
        halves.map(|(high, low)| Self(high, low)).ok_or_else(|| {
            "is no community; write two numbers of 0 to 65535 such as 65001:100".into()
        })
    }
}

impl Serialize for Community {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Community {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// What routes say, as the node's configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Next hop of IPv4 routes; none: the address that the speaker has towards each router.
    pub next_hop_v4: Option<IpAddr>,
    /// Next hop of IPv6 routes; as before.
    pub next_hop_v6: Option<IpAddr>,
    /// MED of VIPs that the node serves. Routers prefer the lowest.
    pub med: u32,
    /// MED of VIPs of a node that is drained.
    pub draining_med: u32,
    /// Communities of all routes.
    pub communities: Vec<Community>,
}

/// What one route says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Where packets go; none: to the speaker.
    pub next_hop: Option<IpAddr>,
    /// MED.
    pub med: u32,
    /// LOCAL_PREF, if the route says it.
    pub local_pref: Option<u32>,
    /// Communities, in order.
    pub communities: Vec<Community>,
}

/// Routes by prefix.
pub type Routes = BTreeMap<Prefix, Route>;

impl Route {
    /// How it announces the VIP.
    pub fn role(&self) -> Role {
        if self.communities.contains(&GRACEFUL_SHUTDOWN) {
            Role::Draining
        } else {
            Role::Serving
        }
    }
}

impl Attributes {
    /// The routes of what is wanted.
    pub fn routes(&self, wanted: &Wanted) -> Routes {
        let wanted = wanted
            .iter()
            .filter_map(|(prefix, role)| Some((*prefix, (*role)?)));
        wanted
            .map(|(prefix, role)| (prefix, self.route(prefix, role)))
            .collect()
    }

    fn route(&self, prefix: Prefix, role: Role) -> Route {
        let mut communities = self.communities.clone();
        let (med, local_pref) = match role {
            Role::Serving => (self.med, None),
            Role::Draining => {
                communities.push(GRACEFUL_SHUTDOWN);
                (self.draining_med, Some(LAST_CHOICE))
            }
        };
        communities.sort_unstable();
        communities.dedup();
        Route {
            next_hop: if prefix.is_ipv4() {
                self.next_hop_v4
            } else {
                self.next_hop_v6
            },
            med,
            local_pref,
            communities,
        }
    }
}

/// What routes announce.
pub fn announced(routes: &Routes) -> Announced {
    let role = |(prefix, route): (&Prefix, &Route)| (*prefix, route.role());
    routes.iter().map(role).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_node_is_the_last_choice_of_every_router() {
        let attributes = Attributes {
            next_hop_v4: None,
            next_hop_v6: "2001:db8::11".parse().ok(),
            med: 5,
            draining_med: 900,
            communities: vec![Community(65_535, 666), Community(65_001, 7)],
        };
        let (v4, v6): (Prefix, Prefix) = (
            "192.0.2.1".parse().unwrap(),
            "2001:db8::/64".parse().unwrap(),
        );
        let gone: Prefix = "192.0.2.2".parse().unwrap();
        let wanted = Wanted::from([
            (v4, Some(Role::Serving)),
            (v6, Some(Role::Draining)),
            (gone, None),
        ]);
        let routes = attributes.routes(&wanted);
        let serving = Route {
            next_hop: None,
            med: 5,
            local_pref: None,
            communities: vec![Community(65_001, 7), Community(65_535, 666)],
        };
        let draining = Route {
            next_hop: "2001:db8::11".parse().ok(),
            med: 900,
            local_pref: Some(0),
            communities: vec![
                Community(65_001, 7),
                GRACEFUL_SHUTDOWN,
                Community(65_535, 666),
            ],
        };
        assert_eq!(routes, [(v4, serving), (v6, draining)].into());
        let roles = [(v4, Role::Serving), (v6, Role::Draining)];
        assert_eq!(announced(&routes), roles.into());
    }

    #[test]
    fn communities_are_two_numbers() {
        for (text, number) in [
            ("65535:0", 0xffff_0000),
            ("0:7", 7),
            ("65001:179", 0xfde9_00b3),
        ] {
            let community: Community = text.parse().unwrap();
            assert_eq!(
                (community.to_string().as_str(), u32::from(community)),
                (text, number)
            );
            assert_eq!(Community::from(number), community);
        }
        for bad in ["", "65001", "65536:1", "1:2:3", "1:-1", "a:b", "1: 2"] {
            assert!(bad.parse::<Community>().is_err(), "{bad}");
        }
    }
}
