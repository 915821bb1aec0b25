//! All that is known: the kernel's links and neighbour entries, the route of each address, and what was last sent.
//! Works out what an event leaves to be done: which routes to look up, which next hops to ask, which updates to send.
//! Does no IO and takes the time as an argument.
//!
//! **Invariants.** `users` holds exactly the hops of the routes in `addresses`. An address's answer changes only if it
//! is in `unsettled`; every change of a fact puts the addresses it touches there, through `unrouted` or directly.

use super::{
    NextHopUpdate, Resolution, ResolvedHop, Unresolved,
    facts::{Event, Hop, Link, Neighbour, Route},
    path_mtu::PathMtu,
    resolve::resolve,
};
use rtnetlink::packet_route::neighbour::NeighbourState;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    net::IpAddr,
    time::{Duration, Instant},
};

/// How long an address keeps its last answer while its next hop is asked for its MAC address.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// How long a path MTU counts that a router told (RFC 1191, section 6.3, and RFC 8201, section 4: ten minutes).
pub(super) const PATH_MTU_AGE: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    addresses: BTreeMap<IpAddr, Entry>,
    links: HashMap<u32, Link>,
    neighbours: HashMap<Hop, Neighbour>,
    /// The addresses behind each hop.
    users: BTreeMap<Hop, BTreeSet<IpAddr>>,
    unrouted: BTreeSet<IpAddr>,
    unsettled: BTreeSet<IpAddr>,
    unasked: BTreeSet<Hop>,
    released: BTreeSet<Hop>,
    /// A link changed, and the routes have not been looked up again since.
    link_changed: bool,
}

#[derive(Debug, Default)]
struct Entry {
    route: Option<Route>,
    sent: Option<Resolution>,
    asking_since: Option<Instant>,
    /// What a router told, in bytes, and when.
    path_mtu: Option<(u16, Instant)>,
}

impl Table {
    /// Replaces the set of addresses.
    pub(super) fn set_addresses(&mut self, wanted: &BTreeSet<IpAddr>) {
        let gone: Vec<_> = self
            .addresses
            .keys()
            .filter(|a| !wanted.contains(a))
            .copied()
            .collect();
        for address in gone {
            if let Some(hop) = self
                .addresses
                .remove(&address)
                .and_then(|entry| entry.hop(address))
            {
                self.detach(hop, address);
            }
        }
        for &address in wanted {
            if let std::collections::btree_map::Entry::Vacant(vacant) =
                self.addresses.entry(address)
            {
                vacant.insert(Entry::default());
                self.unrouted.insert(address);
            }
        }
    }

    /// Replaces what is known of the kernel by a fresh reading. Every route is to be looked up and every next hop asked
    /// again: asking keeps an entry from ageing out on kernels that do not keep it by themselves.
    pub(super) fn resync(
        &mut self,
        links: HashMap<u32, Link>,
        neighbours: HashMap<Hop, Neighbour>,
    ) {
        self.links = links;
        self.neighbours = neighbours;
        self.reroute_all();
        self.unasked.extend(self.users.keys());
    }

    /// Takes one change in.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Link(index, link) => {
                if self.links.get(&index) == link.as_ref() {
                    return;
                }
                match link {
                    Some(link) => self.links.insert(index, link),
                    None => self.links.remove(&index),
                };
                self.link_changed = true;
                self.reroute_all();
            }
            Event::Neighbour(hop, neighbour) => {
                match neighbour {
                    Some(neighbour) => self.neighbours.insert(hop, neighbour),
                    None => {
                        self.unasked.insert(hop);
                        self.neighbours.remove(&hop)
                    }
                };
                self.unsettled
                    .extend(self.users.get(&hop).into_iter().flatten());
            }
            Event::Route(prefix) => {
                self.unrouted
                    .extend(self.addresses.keys().filter(|a| prefix.contains(**a)));
            }
            Event::AnyRoute => self.reroute_all(),
        }
    }

    /// Takes in what a router told of the way to an address; whether it is news. A smaller size counts at once, a larger one
    /// when the smaller is forgotten.
    pub(super) fn set_path_mtu(&mut self, told: PathMtu, now: Instant) -> bool {
        let Some(entry) = self.addresses.get_mut(&told.address) else {
            return false;
        };
        let known = entry.path_mtu.map(|(mtu, _)| mtu);
        if known.is_some_and(|known| known < told.mtu) {
            return false;
        }
        entry.path_mtu = Some((told.mtu, now));
        self.unsettled.insert(told.address);
        known != Some(told.mtu)
    }

    /// To be called regularly, at least every [`GRACE`]: asks silent next hops again, ends graces and forgets path MTUs.
    pub(super) fn tick(&mut self, now: Instant) {
        self.look_again();
        for (address, entry) in &mut self.addresses {
            let old = |(_, told): &mut (u16, Instant)| now.duration_since(*told) >= PATH_MTU_AGE;
            if entry.path_mtu.take_if(old).is_some() {
                self.unsettled.insert(*address);
            }
        }
        // An incomplete entry is being asked for by the kernel.
        let silent = |hop: &&Hop| {
            let neighbour = self.neighbours.get(hop);
            neighbour
                .is_none_or(|n| n.usable_mac().is_none() && n.state != NeighbourState::Incomplete)
        };
        self.unasked.extend(self.users.keys().filter(silent));
        let asking = self
            .addresses
            .iter()
            .filter(|(_, entry)| entry.asking_since.is_some());
        self.unsettled.extend(asking.map(|(address, _)| *address));
    }

    /// Whether routes are to be looked at a second time: the kernel tells of a link that went down before it drops the
    /// link's routes, and of those IPv4 routes it says nothing. Until then no address is said to be behind a link that is
    /// down, as another way may turn up.
    pub(super) fn is_to_look_again(&self) -> bool {
        self.link_changed
    }

    /// The second look, to be called a moment after the first.
    pub(super) fn look_again(&mut self) {
        if mem::take(&mut self.link_changed) {
            self.reroute_all();
        }
    }

    /// Addresses whose route is to be looked up.
    pub(super) fn take_unrouted(&mut self) -> Vec<IpAddr> {
        let unrouted = mem::take(&mut self.unrouted);
        unrouted
            .into_iter()
            .filter(|address| self.addresses.contains_key(address))
            .collect()
    }

    /// The outcome of a look-up.
    pub(super) fn set_route(&mut self, address: IpAddr, route: Route) {
        let Some(entry) = self.addresses.get_mut(&address) else {
            return;
        };
        let before = entry.hop(address);
        entry.route = Some(route);
        let after = entry.hop(address);
        self.unsettled.insert(address);
        if before == after {
            return;
        }
        if let Some(hop) = after {
            self.users.entry(hop).or_default().insert(address);
            self.unasked.insert(hop);
        }
        if let Some(hop) = before {
            self.detach(hop, address);
        }
    }

    /// Next hops to ask for their MAC address. Entries that someone else keeps are left alone.
    pub(super) fn take_unasked(&mut self) -> Vec<Hop> {
        let unasked = mem::take(&mut self.unasked);
        unasked
            .into_iter()
            .filter(|hop| self.users.contains_key(hop) && self.is_ours(hop))
            .collect()
    }

    /// Next hops that no address needs any more.
    pub(super) fn take_released(&mut self) -> Vec<Hop> {
        let released = mem::take(&mut self.released);
        let unneeded =
            |hop: &Hop| !self.users.contains_key(hop) && self.neighbours.contains_key(hop);
        released
            .into_iter()
            .filter(|hop| unneeded(hop) && self.is_ours(hop))
            .collect()
    }

    /// What to send: each changed answer, and each first one.
    pub(super) fn take_updates(&mut self, now: Instant) -> Vec<NextHopUpdate> {
        let mut updates = Vec::new();
        for address in mem::take(&mut self.unsettled) {
            let Some(entry) = self.addresses.get_mut(&address) else {
                continue;
            };
            let fresh = match &entry.route {
                None => continue,
                Some(Err(reason)) => Err(reason.clone()),
                Some(Ok(path)) => {
                    let neighbour = self.neighbours.get(&path.hop(address));
                    let link = self.links.get(&path.interface);
                    resolve(address, path, link, neighbour).map(|hop| entry.limited(hop))
                }
            };
            if self.link_changed && matches!(fresh, Err(Unresolved::LinkDown { .. })) {
                // The second look settles it.
                continue;
            }
            if let Some(resolution) = entry.settle(fresh, now) {
                updates.push(NextHopUpdate {
                    address,
                    resolution,
                });
            }
        }
        updates
    }

    fn reroute_all(&mut self) {
        self.unrouted.extend(self.addresses.keys());
    }

    fn detach(&mut self, hop: Hop, address: IpAddr) {
        let Some(users) = self.users.get_mut(&hop) else {
            return;
        };
        users.remove(&address);
        if users.is_empty() {
            self.users.remove(&hop);
            self.released.insert(hop);
        }
    }

    fn is_ours(&self, hop: &Hop) -> bool {
        self.neighbours
            .get(hop)
            .is_none_or(|neighbour| !neighbour.foreign)
    }
}

impl Entry {
    fn hop(&self, address: IpAddr) -> Option<Hop> {
        self.route
            .as_ref()?
            .as_ref()
            .ok()
            .map(|path| path.hop(address))
    }

    /// The answer with the smallest MTU of the way.
    fn limited(&self, mut hop: ResolvedHop) -> ResolvedHop {
        if let Some((mtu, _)) = self.path_mtu {
            hop.mtu = hop.mtu.min(mtu);
        }
        hop
    }

    /// What to send of a fresh answer. While the next hop is being asked the last answer stands, for [`GRACE`] if it
    /// was a good one and for good if it said that this next hop does not answer.
    fn settle(&mut self, fresh: Resolution, now: Instant) -> Option<Resolution> {
        if let Err(Unresolved::Asking { via, .. }) = &fresh {
            let since = *self.asking_since.get_or_insert(now);
            let known = matches!(&self.sent, Some(Err(Unresolved::NoNeighbour { via: silent, .. })) if silent == via);
            if known || now.duration_since(since) < GRACE {
                return None;
            }
        } else {
            self.asking_since = None;
        }
        if self.sent.as_ref() == Some(&fresh) {
            return None;
        }
        self.sent = Some(fresh.clone());
        Some(fresh)
    }
}

#[cfg(test)]
mod tests;
