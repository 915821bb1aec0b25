//! Our routes as paths of GoBGP, and back.
//!
//! **Invariant.** Only paths that the API has added with [`OURS`] as identifier are ours. The identifier is GoBGP's own number
//! for paths of one source to one prefix: routers are not told it, and somebody else's path to the same prefix stays beside.

use super::message::{
    Any, Communities, Family, IpAddressPrefix, LocalPref, Med, MpReach, NextHop, Origin, Path,
};
use crate::{
    announce::bgp::{Community, Route},
    prefix::Prefix,
};
use prost::{Message, Name};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Identifier of our paths.
pub const OURS: u32 = 179;
/// Both families, unicast.
pub const FAMILIES: [Family; 2] = [family(true), family(false)];

/// The family of IPv4 or IPv6 unicast.
const fn family(is_ipv4: bool) -> Family {
    Family {
        afi: if is_ipv4 { 1 } else { 2 },
        safi: 1,
    }
}

macro_rules! names {
    ($($message:ident = $name:literal),*) => { $(
        impl Name for $message {
            const NAME: &'static str = $name;
            const PACKAGE: &'static str = "apipb";
        }
    )* };
}

names!(
    IpAddressPrefix = "IPAddressPrefix",
    Origin = "OriginAttribute",
    NextHop = "NextHopAttribute",
    Med = "MultiExitDiscAttribute",
    LocalPref = "LocalPrefAttribute",
    Communities = "CommunitiesAttribute",
    MpReach = "MpReachNLRIAttribute"
);

fn pack<T: Message + Name>(message: &T) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", T::full_name()),
        value: message.encode_to_vec(),
    }
}

fn unpack<T: Message + Name + Default>(any: &Any) -> Option<T> {
    let (_, name) = any.type_url.rsplit_once('/')?;
    if name != T::full_name() {
        return None;
    }
    T::decode(any.value.as_slice()).ok()
}

/// The path of a route.
pub fn path(prefix: Prefix, route: &Route) -> Path {
    let nlri = nlri(prefix);
    let family = family(prefix.is_ipv4());
    // GoBGP takes its own address towards each neighbor in place of the unspecified one.
    let own: IpAddr = match prefix.address() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let hop = route.next_hop.unwrap_or(own).to_string();
    let hop = if prefix.is_ipv4() {
        pack(&NextHop { address: hop })
    } else {
        pack(&MpReach {
            family: Some(family),
            next_hops: vec![hop],
            prefixes: vec![nlri.clone()],
        })
    };
    let mut attributes = vec![
        pack(&Origin { origin: 0 }),
        hop,
        pack(&Med { med: route.med }),
    ];
    if let Some(preference) = route.local_pref {
        attributes.push(pack(&LocalPref { preference }));
    }
    if !route.communities.is_empty() {
        let communities = route.communities.iter().copied().map(u32::from);
        attributes.push(pack(&Communities {
            communities: communities.collect(),
        }));
    }
    Path {
        nlri: Some(nlri),
        attributes,
        family: Some(family),
        identifier: OURS,
        ..Path::default()
    }
}

fn nlri(prefix: Prefix) -> Any {
    pack(&IpAddressPrefix {
        length: prefix.length().into(),
        address: prefix.address().to_string(),
    })
}

/// The prefix that a path leads to.
pub fn prefix(path: &Path) -> Option<Prefix> {
    let IpAddressPrefix { length, address } = unpack(path.nlri.as_ref()?)?;
    Prefix::around(address.parse().ok()?, u8::try_from(length).ok()?)
}

/// Whether a path is ours.
pub fn is_ours(path: &Path) -> bool {
    path.identifier == OURS && path.neighbor.parse::<IpAddr>().is_err()
}

/// What a path says.
pub fn route(path: &Path) -> Route {
    let mut route = Route {
        next_hop: None,
        med: 0,
        local_pref: None,
        communities: vec![],
    };
    let mut hop = None;
    for any in &path.attributes {
        if let Some(NextHop { address }) = unpack(any) {
            hop = address.parse().ok();
        } else if let Some(MpReach { next_hops, .. }) = unpack(any) {
            hop = next_hops.first().and_then(|hop| hop.parse().ok());
        } else if let Some(Med { med }) = unpack(any) {
            route.med = med;
        } else if let Some(LocalPref { preference }) = unpack(any) {
            route.local_pref = Some(preference);
        } else if let Some(Communities { communities }) = unpack(any) {
            route.communities = communities.into_iter().map(Community::from).collect();
        }
    }
    route.communities.sort_unstable();
    route.next_hop = hop.filter(|hop: &IpAddr| !hop.is_unspecified());
    route
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::bgp::GRACEFUL_SHUTDOWN;

    #[test]
    fn a_route_comes_back_as_it_went() {
        for (vip, hop) in [
            ("192.0.2.1", None),
            ("192.0.2.0/24", Some("198.51.100.1")),
            ("2001:db8::1", None),
            ("2001:db8::/64", Some("2001:db8:1::1")),
        ] {
            let vip: Prefix = vip.parse().unwrap();
            let plain = Route {
                next_hop: hop.map(|hop| hop.parse().unwrap()),
                med: 100,
                local_pref: None,
                communities: vec![],
            };
            let full = Route {
                local_pref: Some(0),
                communities: vec![Community(65_001, 7), GRACEFUL_SHUTDOWN],
                ..plain.clone()
            };
            for sent in [plain, full] {
                let path = path(vip, &sent);
                assert!(is_ours(&path));
                assert_eq!((prefix(&path), route(&path)), (Some(vip), sent));
            }
        }
    }

    #[test]
    fn other_paths_are_not_ours_and_odd_ones_say_nothing() {
        let vip: Prefix = "192.0.2.1".parse().unwrap();
        let ours = path(vip, &route(&Path::default()));
        let with = |change: fn(&mut Path)| {
            let mut path = ours.clone();
            change(&mut path);
            path
        };
        assert!(!is_ours(&with(|path| path.identifier = 0)));
        assert!(!is_ours(&with(|path| path.neighbor = "192.0.2.9".into())));
        assert!(is_ours(&with(|path| path.neighbor = "<nil>".into())));
        for odd in [
            with(|path| path.nlri = None),
            with(|path| path.nlri = Some(pack(&Origin { origin: 0 }))),
            with(|path| path.nlri.as_mut().unwrap().value = vec![0xff; 9]),
            with(|path| {
                path.nlri = Some(pack(&IpAddressPrefix {
                    length: 33,
                    address: "192.0.2.1".into(),
                }))
            }),
            with(|path| {
                path.nlri = Some(pack(&IpAddressPrefix {
                    length: 32,
                    address: "vip".into(),
                }))
            }),
        ] {
            assert_eq!(prefix(&odd), None, "{odd:?}");
        }
    }
}
