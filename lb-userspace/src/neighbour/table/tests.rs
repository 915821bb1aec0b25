//! The table with made-up facts and a made-up clock.

use super::*;
use crate::neighbour::facts::Path;
use rtnetlink::packet_route::neighbour::NeighbourState as State;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|a| ip(a)).collect()
}

fn hop(address: &str) -> Hop {
    Hop {
        interface: 1,
        address: ip(address),
    }
}

fn via(gateway: Option<&str>) -> Route {
    Ok(Path {
        interface: 1,
        gateway: gateway.map(ip),
        source: Some(ip("10.0.0.1")),
        mtu: None,
    })
}

fn entry(state: State) -> Option<Neighbour> {
    let mac = (state != State::Incomplete && state != State::Failed).then_some(MAC);
    Some(Neighbour {
        state,
        mac,
        foreign: state == State::Permanent,
    })
}

fn eth0() -> Link {
    Link {
        name: "eth0".into(),
        mtu: 1500,
        running: true,
        ethernet: true,
    }
}

/// A table with eth0 and the given addresses, all routed as given and their updates taken.
fn table(addresses: &[&str], route: Route, state: State, now: Instant) -> Table {
    let mut table = Table::default();
    let neighbours = addresses.iter().map(|a| (hop(a), entry(state).unwrap()));
    table.resync([(1, eth0())].into(), neighbours.collect());
    table.set_addresses(&set(addresses));
    for address in table.take_unrouted() {
        table.set_route(address, route.clone());
    }
    table.take_updates(now);
    table.take_unasked();
    table
}

fn reasons(updates: &[NextHopUpdate]) -> Vec<String> {
    let words = |r: &Resolution| r.as_ref().map_or_else(|e| e.to_string(), |h| h.to_string());
    updates
        .iter()
        .map(|u| format!("{}: {}", u.address, words(&u.resolution)))
        .collect()
}

#[test]
fn a_first_answer_is_sent_and_the_same_answer_is_not_sent_again() {
    let now = Instant::now();
    let mut table = Table::default();
    table.resync(
        [(1, eth0())].into(),
        [(hop("10.0.0.2"), entry(State::Stale).unwrap())].into(),
    );
    table.set_addresses(&set(&["10.0.0.2"]));
    assert_eq!(table.take_unrouted(), [ip("10.0.0.2")]);
    assert!(
        table.take_updates(now).is_empty(),
        "nothing is known before the look-up"
    );
    table.set_route(ip("10.0.0.2"), via(None));
    assert_eq!(
        reasons(&table.take_updates(now)),
        ["10.0.0.2: dev eth0 lladdr 02:00:00:00:00:01"]
    );
    assert_eq!(
        table.take_unasked(),
        [hop("10.0.0.2")],
        "asked once even if known, so that it is kept"
    );
    table.apply(Event::Neighbour(hop("10.0.0.2"), entry(State::Reachable)));
    table.resync(
        [(1, eth0())].into(),
        [(hop("10.0.0.2"), entry(State::Delay).unwrap())].into(),
    );
    assert_eq!(table.take_unrouted(), [ip("10.0.0.2")]);
    table.set_route(ip("10.0.0.2"), via(None));
    assert!(table.take_updates(now).is_empty());
}

#[test]
fn a_renewed_entry_moves_no_traffic_and_one_that_stays_away_does() {
    let now = Instant::now();
    let mut table = table(&["10.0.0.2"], via(None), State::Reachable, now);
    table.apply(Event::Neighbour(hop("10.0.0.2"), None));
    assert_eq!(table.take_unasked(), [hop("10.0.0.2")], "asked at once");
    table.apply(Event::Neighbour(hop("10.0.0.2"), entry(State::Incomplete)));
    assert!(table.take_updates(now).is_empty(), "the last answer stands");
    table.apply(Event::Neighbour(hop("10.0.0.2"), entry(State::Reachable)));
    assert!(
        table.take_updates(now + GRACE).is_empty(),
        "it is back as it was"
    );

    table.apply(Event::Neighbour(hop("10.0.0.2"), None));
    assert!(table.take_updates(now).is_empty());
    table.tick(now);
    assert_eq!(
        reasons(&table.take_updates(now + GRACE)),
        ["10.0.0.2: waiting for the MAC address of 10.0.0.2 on eth0"]
    );
}

#[test]
fn a_silent_next_hop_is_said_once_and_asked_at_each_tick() {
    let now = Instant::now();
    let mut table = table(&["10.0.0.2"], via(None), State::Reachable, now);
    table.apply(Event::Neighbour(hop("10.0.0.2"), entry(State::Failed)));
    assert_eq!(
        reasons(&table.take_updates(now)),
        ["10.0.0.2: 10.0.0.2 does not answer on eth0"]
    );
    for round in 1..5 {
        table.tick(now);
        assert_eq!(table.take_unasked(), [hop("10.0.0.2")]);
        for state in [State::Incomplete, State::Failed] {
            table.apply(Event::Neighbour(hop("10.0.0.2"), entry(state)));
            assert!(
                table.take_updates(now + GRACE * round).is_empty(),
                "{state:?}"
            );
        }
    }
    table.apply(Event::Neighbour(hop("10.0.0.2"), entry(State::Reachable)));
    assert_eq!(
        reasons(&table.take_updates(now)),
        ["10.0.0.2: dev eth0 lladdr 02:00:00:00:00:01"]
    );
    table.tick(now);
    assert!(table.take_unasked().is_empty());
}

#[test]
fn addresses_behind_one_gateway_share_its_entry() {
    let now = Instant::now();
    let addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let mut table = table(&addresses, via(Some("10.0.0.254")), State::Reachable, now);
    table.apply(Event::Neighbour(hop("10.0.0.254"), entry(State::Reachable)));
    assert_eq!(table.take_updates(now).len(), 3);
    table.apply(Event::Neighbour(hop("10.0.0.254"), entry(State::Failed)));
    assert_eq!(table.take_updates(now).len(), 3);
    table.tick(now);
    assert_eq!(
        table.take_unasked(),
        [hop("10.0.0.254")],
        "one question for all"
    );
    table.set_addresses(&set(&addresses[1..]));
    assert!(table.take_released().is_empty());
    table.set_addresses(&set(&[]));
    assert_eq!(table.take_released(), [hop("10.0.0.254")]);
    table.apply(Event::Neighbour(hop("10.0.0.254"), entry(State::Reachable)));
    table.tick(now);
    assert!(
        table.take_updates(now).is_empty() && table.take_unasked().is_empty(),
        "nobody needs it"
    );
}

#[test]
fn only_what_an_event_may_change_is_looked_up() {
    let now = Instant::now();
    let mut table = table(
        &["10.0.0.2", "2001:db8::2"],
        via(None),
        State::Reachable,
        now,
    );
    table.apply(Event::Link(1, Some(eth0())));
    assert!(table.take_unrouted().is_empty(), "the link did not change");
    table.apply(Event::Link(
        1,
        Some(Link {
            running: false,
            ..eth0()
        }),
    ));
    assert_eq!(table.take_unrouted().len(), 2);
    table.set_route("10.0.0.2".parse().unwrap(), via(None));
    assert_eq!(table.take_updates(now), [], "another way may turn up");
    assert!(table.is_to_look_again());
    table.look_again();
    assert_eq!(
        table.take_unrouted().len(),
        2,
        "once more, when the kernel has dropped the link's routes"
    );
    table.set_route("10.0.0.2".parse().unwrap(), via(None));
    let updates = table.take_updates(now);
    assert!(
        matches!(&updates[..], [update] if matches!(update.resolution, Err(Unresolved::LinkDown { .. }))),
        "{updates:?}"
    );
    assert!(!table.is_to_look_again());
    table.tick(now);
    assert!(table.take_unrouted().is_empty());
    table.apply(Event::AnyRoute);
    assert_eq!(table.take_unrouted().len(), 2);
}

#[test]
fn an_entry_that_someone_else_keeps_is_left_alone() {
    let now = Instant::now();
    let mut table = table(&["10.0.0.2"], via(None), State::Permanent, now);
    table.resync(
        [(1, eth0())].into(),
        [(hop("10.0.0.2"), entry(State::Permanent).unwrap())].into(),
    );
    assert!(table.take_unasked().is_empty());
    table.set_addresses(&set(&[]));
    assert!(table.take_released().is_empty());
}

#[test]
fn a_path_mtu_counts_for_ten_minutes_and_only_a_smaller_one_replaces_it() {
    let now = Instant::now();
    let mut table = table(&["10.0.0.2"], via(None), State::Reachable, now);
    let told = |address: &str, mtu| PathMtu {
        address: ip(address),
        mtu,
    };
    let mtu_of = |table: &mut Table, now| -> Option<u16> {
        let updates = table.take_updates(now);
        updates.first().map(|u| u.resolution.as_ref().unwrap().mtu)
    };
    assert!(
        !table.set_path_mtu(told("10.0.0.3", 1_400), now),
        "no backend"
    );
    assert!(table.set_path_mtu(told("10.0.0.2", 1_400), now));
    assert_eq!(mtu_of(&mut table, now), Some(1_400));
    assert!(!table.set_path_mtu(told("10.0.0.2", 1_450), now), "larger");
    assert_eq!(mtu_of(&mut table, now), None);
    let later = now + Duration::from_secs(60);
    assert!(!table.set_path_mtu(told("10.0.0.2", 1_400), later), "known");
    assert!(table.set_path_mtu(told("10.0.0.2", 1_300), later));
    assert_eq!(mtu_of(&mut table, later), Some(1_300));
    // Routes that are looked up again change nothing of it.
    table.resync(
        [(1, eth0())].into(),
        [(hop("10.0.0.2"), entry(State::Reachable).unwrap())].into(),
    );
    table.set_route(ip("10.0.0.2"), via(None));
    assert_eq!(mtu_of(&mut table, later), None);
    table.tick(later + PATH_MTU_AGE - Duration::from_secs(1));
    assert_eq!(mtu_of(&mut table, later), None);
    table.tick(later + PATH_MTU_AGE);
    assert_eq!(mtu_of(&mut table, later), Some(1_500));
    // Nor does it raise the MTU of the link.
    assert!(table.set_path_mtu(told("10.0.0.2", 9_000), later));
    assert_eq!(mtu_of(&mut table, later), None);
}
