//! Next hops in real network namespaces: a balancer's, and a peer's with the backends or the gateway in it. Each test
//! makes its own, changes something with `ip`, and awaits the update that follows. Times are printed with `--nocapture`.

use lb_tests::{netns::Namespace, process::output, require, session::Session};
use lb_userspace::neighbour::{
    NextHopUpdate, Resolution, ResolvedHop, Resolver, Unresolved, start,
};
use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    io::Write,
    net::IpAddr,
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

/// How soon a change that the kernel tells at once is to be followed. It takes about 5 ms with the command itself; busy cores
/// need room.
const AT_ONCE: Duration = Duration::from_secs(1);
/// For what the kernel itself takes its time with: carrier changes (told once a second), unanswered questions.
const SOON: Duration = Duration::from_secs(8);

const V4: &str = "10.77.0.2";
const V6: &str = "2001:db8:77::2";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SECOND_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// Two namespaces joined by two links, and the code under test in the first.
struct Bench {
    balancer: Namespace,
    peer: Namespace,
    updates: Receiver<NextHopUpdate>,
    /// When the last change was begun.
    changed: Cell<Instant>,
    resolver: Resolver,
    /// Stops the runtime of the code under test for a time.
    stall: tokio::sync::mpsc::UnboundedSender<Duration>,
    /// Removes what is left when it is dropped, so it comes last.
    _session: Session,
}

impl Bench {
    fn new() -> Self {
        let session = Session::unique();
        let namespace = |role: &str| Namespace::create(&session.namespace(role)).unwrap();
        let (balancer, peer) = (namespace("lb"), namespace("peer"));
        for namespace in [&balancer, &peer] {
            // A new link is not to wait two seconds for its address to be proved unique.
            namespace
                .sysctl("net/ipv6/conf/default/accept_dad", "0")
                .unwrap();
        }
        for (number, link) in ["eth0", "eth1"].iter().enumerate() {
            let net = 77 + number;
            let peer_name = peer.name();
            balancer
                .ip(&format!(
                    "link add {link} type veth peer name {link} netns {peer_name}"
                ))
                .unwrap();
            peer.ip(&format!(
                "link set {link} address 02:00:00:00:0{number}:02 up"
            ))
            .unwrap();
            balancer.ip(&format!("link set {link} up")).unwrap();
            for (namespace, host) in [(&balancer, 1), (&peer, 2)] {
                namespace
                    .ip(&format!("addr add 10.{net}.0.{host}/24 dev {link}"))
                    .unwrap();
                namespace
                    .ip(&format!(
                        "addr add 2001:db8:{net}::{host}/64 dev {link} nodad"
                    ))
                    .unwrap();
            }
        }
        let (to_test, updates) = channel();
        let (hand_over, handed) = channel();
        let (stall, mut stalls) = tokio::sync::mpsc::unbounded_channel();
        balancer.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
                hand_over.send(start(sender).unwrap()).unwrap();
                tokio::spawn(async move {
                    while let Some(time) = stalls.recv().await {
                        std::thread::sleep(time);
                    }
                });
                // Ends when the test drops the resolver.
                while let Some(update) = receiver.recv().await {
                    let _ = to_test.send(update);
                }
            });
        });
        let resolver = handed.recv().unwrap();
        Self {
            balancer,
            peer,
            updates,
            changed: Cell::new(Instant::now()),
            resolver,
            stall,
            _session: session,
        }
    }

    /// A bench whose resolver follows `addresses`.
    fn following(addresses: &[&str]) -> Self {
        let bench = Self::new();
        bench.follow(addresses);
        bench
    }

    /// Runs `ip` in a namespace and starts the clock.
    fn change(&self, namespace: &Namespace, arguments: &str) {
        self.changed.set(Instant::now());
        namespace.ip(arguments).unwrap();
    }

    fn follow(&self, addresses: &[&str]) {
        self.changed.set(Instant::now());
        self.resolver
            .set_addresses(addresses.iter().map(|a| a.parse().unwrap()).collect());
    }

    /// Waits for an update of `address` that fits and prints the time since the change; others are passed over.
    fn expect(
        &self,
        what: &str,
        address: &str,
        limit: Duration,
        fits: impl Fn(&Resolution) -> bool,
    ) -> Resolution {
        let began = Instant::now();
        let wanted: IpAddr = address.parse().unwrap();
        let mut seen = Vec::new();
        while let Ok(update) = self
            .updates
            .recv_timeout(limit.saturating_sub(began.elapsed()))
        {
            if update.address == wanted && fits(&update.resolution) {
                println!("{what} ({address}): {:?}", self.changed.get().elapsed());
                return update.resolution;
            }
            seen.push(update);
        }
        panic!("{what}: no such update of {address} within {limit:?}, but {seen:?}");
    }

    fn expect_mac(&self, what: &str, address: &str, limit: Duration, mac: [u8; 6]) -> ResolvedHop {
        self.expect(what, address, limit, |r| {
            r.as_ref().is_ok_and(|hop| hop.mac == mac)
        })
        .unwrap()
    }

    fn expect_reason(&self, what: &str, address: &str, limit: Duration, reason: &Unresolved) {
        let _ = self.expect(what, address, limit, |r| r.as_ref() == Err(reason));
    }

    /// Asserts that nothing is sent for a while.
    fn expect_silence(&self, what: &str, time: Duration) {
        assert_eq!(
            self.updates.recv_timeout(time),
            Err(RecvTimeoutError::Timeout),
            "{what}"
        );
    }

    /// What `ip neigh` shows in the balancer's namespace for an address on eth0.
    fn neighbour(&self, address: &str) -> String {
        output(Command::new("ip").args([
            "-n",
            self.balancer.name(),
            "neigh",
            "show",
            address,
            "dev",
            "eth0",
        ]))
        .unwrap()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn eth0() -> String {
    "eth0".into()
}

#[test]
fn on_link_addresses_of_both_families() {
    if !require::network() {
        return;
    }
    let bench = Bench::following(&[V4, V6]);
    for (address, source) in [(V4, "10.77.0.1"), (V6, "2001:db8:77::1")] {
        let hop = bench.expect_mac("first answer", address, SOON, MAC);
        assert_eq!(hop.interface_name, "eth0");
        assert!(hop.interface > 1);
        assert_eq!((hop.gateway, hop.source, hop.mtu), (None, ip(source), 1500));
    }
    bench.change(&bench.balancer, "link set eth0 mtu 1400");
    bench
        .expect("MTU changed", V4, AT_ONCE, |r| {
            r.as_ref().is_ok_and(|hop| hop.mtu == 1400)
        })
        .unwrap();
}

/// Addresses may be set before the resolver's task has run for the first time. What it has not read yet it must not
/// take for missing: a false answer takes a backend's traffic away.
#[test]
fn addresses_set_before_the_first_look_get_no_false_answer() {
    const ROUNDS: usize = 12;
    if !require::network() {
        return;
    }
    let bench = Bench::following(&[V4]);
    bench
        .balancer
        .ip("route add 192.0.2.0/24 via 10.77.0.2")
        .unwrap();
    bench.expect_mac("the gateway is known", V4, SOON, MAC);
    let addresses: BTreeSet<IpAddr> = (1..=200).map(|n| [192, 0, 2, n].into()).collect();
    let first_answers = bench.balancer.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut answers = Vec::new();
            for _ in 0..ROUNDS {
                let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
                let resolver = start(sender).unwrap();
                resolver.set_addresses(addresses.clone());
                for _ in &addresses {
                    let answer = tokio::time::timeout(SOON, receiver.recv()).await;
                    answers.push(answer.unwrap().unwrap());
                }
            }
            answers
        })
    });
    assert_eq!(first_answers.len(), ROUNDS * addresses.len());
    let wrong = first_answers
        .iter()
        .find(|update| update.resolution.is_err());
    assert_eq!(wrong, None);
}

#[test]
fn a_gateway_changes_and_the_route_goes() {
    if !require::network() {
        return;
    }
    let bench = Bench::new();
    let (v4, v6) = ("192.0.2.80", "2001:db8:99::80");
    bench.change(
        &bench.balancer,
        "route add 192.0.2.0/24 via 10.77.0.2 mtu 1400",
    );
    bench.change(
        &bench.balancer,
        "-6 route add 2001:db8:99::/48 via 2001:db8:77::2",
    );
    bench.follow(&[v4, v6]);
    for (address, gateway, mtu) in [(v4, V4, 1400), (v6, V6, 1500)] {
        let hop = bench.expect_mac("first answer", address, SOON, MAC);
        assert_eq!((hop.gateway, hop.mtu), (Some(ip(gateway)), mtu));
    }
    bench.change(&bench.balancer, "route replace 192.0.2.0/24 via 10.78.0.2");
    let hop = bench.expect_mac("gateway changed", v4, AT_ONCE, SECOND_MAC);
    assert_eq!(
        (hop.interface_name.as_str(), hop.gateway, hop.source),
        ("eth1", Some(ip("10.78.0.2")), ip("10.78.0.1"))
    );
    bench.change(
        &bench.balancer,
        "-6 route replace 2001:db8:99::/48 via 2001:db8:78::2",
    );
    bench.expect_mac("gateway changed", v6, AT_ONCE, SECOND_MAC);

    bench.change(&bench.balancer, "route add blackhole 192.0.2.80/32");
    bench.expect_reason("blackhole", v4, AT_ONCE, &Unresolved::Blackhole);
    bench.change(&bench.balancer, "route replace unreachable 192.0.2.80/32");
    bench.expect_reason("unreachable", v4, AT_ONCE, &Unresolved::Unreachable);
    bench.change(&bench.balancer, "route replace prohibit 192.0.2.80/32");
    bench.expect_reason("prohibit", v4, AT_ONCE, &Unresolved::Prohibited);
    bench.change(&bench.balancer, "route del prohibit 192.0.2.80/32");
    bench.expect_mac("the wider route again", v4, AT_ONCE, SECOND_MAC);
    bench.change(
        &bench.balancer,
        "route replace 192.0.2.0/24 via inet6 2001:db8:77::2 dev eth0",
    );
    let hop = bench.expect_mac("an IPv6 gateway", v4, AT_ONCE, MAC);
    assert_eq!((hop.gateway, hop.source), (Some(ip(V6)), ip("10.77.0.1")));
    bench.change(&bench.balancer, "route del 192.0.2.0/24");
    bench.expect_reason("route gone", v4, AT_ONCE, &Unresolved::NoRoute);
    bench.change(&bench.balancer, "-6 route del 2001:db8:99::/48");
    bench.expect_reason("route gone", v6, AT_ONCE, &Unresolved::NoRoute);
}

#[test]
fn a_deleted_neighbour_comes_back_unnoticed_and_a_silent_one_is_noticed() {
    if !require::network() {
        return;
    }
    let bench = Bench::following(&[V4]);
    bench.expect_mac("first answer", V4, SOON, MAC);
    bench.change(&bench.balancer, "neigh del 10.77.0.2 dev eth0");
    bench.expect_silence("a renewal moves no traffic", Duration::from_secs(2));
    assert!(
        bench.neighbour(V4).contains("02:00:00:00:00:02"),
        "it was asked for again: {}",
        bench.neighbour(V4)
    );

    bench.change(&bench.peer, "link set eth0 arp off");
    bench.change(&bench.balancer, "neigh del 10.77.0.2 dev eth0");
    bench.expect_reason(
        "silent",
        V4,
        SOON,
        &Unresolved::Asking {
            via: ip(V4),
            interface: eth0(),
        },
    );
    bench.expect_reason(
        "given up",
        V4,
        SOON,
        &Unresolved::NoNeighbour {
            via: ip(V4),
            interface: eth0(),
        },
    );
    bench.expect_silence("said once", Duration::from_secs(4));
    bench.change(&bench.peer, "link set eth0 arp on");
    bench.expect_mac("back", V4, SOON, MAC);
}

#[test]
fn a_mac_address_that_changes_is_followed() {
    if !require::network() {
        return;
    }
    let bench = Bench::following(&[V4, V6]);
    bench.expect_mac("first answer", V4, SOON, MAC);
    bench.expect_mac("first answer", V6, SOON, MAC);
    // The peer announces its new address by itself, as a fail-over does.
    bench
        .peer
        .sysctl("net/ipv4/conf/eth0/arp_notify", "1")
        .unwrap();
    bench
        .peer
        .sysctl("net/ipv6/conf/eth0/ndisc_notify", "1")
        .unwrap();
    bench.change(&bench.peer, "link set eth0 address 02:00:00:00:00:99");
    for address in [V4, V6] {
        bench.expect_mac("announced MAC", address, AT_ONCE, [2, 0, 0, 0, 0, 0x99]);
    }
    for address in [V4, V6] {
        bench.change(
            &bench.balancer,
            &format!("neigh replace {address} lladdr 02:00:00:00:00:77 dev eth0"),
        );
        bench.expect_mac("static MAC", address, AT_ONCE, [2, 0, 0, 0, 0, 0x77]);
    }
    bench.expect_silence("a static entry is left alone", Duration::from_secs(2));
    assert!(
        bench.neighbour(V4).contains("PERMANENT"),
        "{}",
        bench.neighbour(V4)
    );
}

#[test]
fn links_go_down_and_come_up() {
    if !require::network() {
        return;
    }
    let bench = Bench::following(&[V4, V6]);
    bench.expect_mac("first answer", V4, SOON, MAC);
    bench.expect_mac("first answer", V6, SOON, MAC);
    let down = Unresolved::LinkDown { interface: eth0() };
    bench.change(&bench.peer, "link set eth0 down");
    bench.expect_reason("carrier lost", V4, SOON, &down);
    // The kernel withdraws the IPv6 routes with the carrier.
    let _ = bench.expect("carrier lost", V6, SOON, Result::is_err);
    bench.change(&bench.peer, "link set eth0 up");
    bench.change(&bench.peer, "addr replace 2001:db8:77::2/64 dev eth0 nodad");
    bench.expect_mac("carrier back", V4, SOON, MAC);
    bench.expect_mac("carrier back", V6, SOON, MAC);

    bench.change(&bench.balancer, "link set eth0 down");
    bench.expect_reason("set down", V4, AT_ONCE, &Unresolved::NoRoute);
    bench.change(&bench.balancer, "link set eth0 up");
    bench.expect_mac("set up", V4, SOON, MAC);
    bench.change(&bench.balancer, "link del eth0");
    bench.expect_reason("deleted", V4, SOON, &Unresolved::NoRoute);
}

#[test]
fn no_route_an_own_address_and_no_unicast() {
    if !require::network() {
        return;
    }
    let bench = Bench::following(&[
        "198.51.100.1",
        "2001:db8:aa::1",
        "10.77.0.1",
        "2001:db8:77::1",
        "10.77.0.255",
    ]);
    bench.expect_reason("no route", "198.51.100.1", SOON, &Unresolved::NoRoute);
    bench.follow(&["2001:db8:aa::1"]);
    bench.expect_reason("no route", "2001:db8:aa::1", SOON, &Unresolved::NoRoute);
    for (address, reason) in [
        ("10.77.0.1", Unresolved::Local),
        ("2001:db8:77::1", Unresolved::Local),
        ("10.77.0.255", Unresolved::NotUnicast),
        ("127.0.0.1", Unresolved::Local),
    ] {
        bench.follow(&[]);
        bench.follow(&[address]);
        bench.expect_reason("not a next hop", address, SOON, &reason);
    }
    bench.follow(&[V4]);
    bench.expect_mac("another's", V4, SOON, MAC);
    bench.change(&bench.balancer, "addr add 10.77.0.2/32 dev lo");
    bench.expect_reason("our own now", V4, AT_ONCE, &Unresolved::Local);
}

#[test]
fn an_entry_is_kept_by_the_kernel_while_it_is_needed() {
    if !require::network() {
        return;
    }
    let bench = Bench::following(&[V4]);
    bench.expect_mac("first answer", V4, SOON, MAC);
    assert!(
        bench.neighbour(V4).contains("managed"),
        "{}",
        bench.neighbour(V4)
    );
    bench.follow(&[]);
    let deadline = Instant::now() + SOON;
    while bench.neighbour(V4).contains("managed") {
        assert!(
            Instant::now() < deadline,
            "not released: {}",
            bench.neighbour(V4)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn thousands_of_addresses_follow_their_gateway() {
    if !require::network() {
        return;
    }
    const COUNT: usize = 5000;
    let bench = Bench::new();
    bench.change(&bench.balancer, "route add 172.16.0.0/12 via 10.77.0.2");
    let addresses: BTreeSet<IpAddr> = (0..COUNT)
        .map(|i| ip(&format!("172.16.{}.{}", i / 250, i % 250 + 1)))
        .collect();
    let all_have = |what: &str, mac: [u8; 6]| {
        let began = Instant::now();
        let mut missing = addresses.clone();
        while !missing.is_empty() {
            let update = bench.updates.recv_timeout(SOON).unwrap();
            if update.resolution.is_ok_and(|hop| hop.mac == mac) {
                missing.remove(&update.address);
            }
        }
        println!("{what}, {COUNT} addresses: {:?}", began.elapsed());
    };
    bench.resolver.set_addresses(addresses.clone());
    all_have("first answers", MAC);
    bench.change(&bench.balancer, "route replace 172.16.0.0/12 via 10.78.0.2");
    all_have("gateway changed", SECOND_MAC);
}

#[test]
fn lost_events_are_made_up_for() {
    if !require::network() {
        return;
    }
    let bench = Bench::new();
    bench.change(&bench.balancer, "route add 192.0.2.0/24 via 10.77.0.2");
    bench.follow(&["192.0.2.80"]);
    bench.expect_mac("first answer", "192.0.2.80", SOON, MAC);
    // More routes than the socket's buffer holds while nobody reads it; the change that matters comes last and is lost.
    let mut batch = tempfile::NamedTempFile::new().unwrap();
    for i in 0..5000 {
        writeln!(
            batch,
            "route add 100.64.{}.{}/32 via 10.77.0.2",
            i / 256,
            i % 256
        )
        .unwrap();
    }
    writeln!(batch, "route replace 192.0.2.0/24 via 10.78.0.2").unwrap();
    bench.stall.send(Duration::from_secs(2)).unwrap();
    bench.change(
        &bench.balancer,
        &format!("-batch {}", batch.path().display()),
    );
    bench.expect_mac("lost", "192.0.2.80", SOON, SECOND_MAC);
    let sockets = bench
        .balancer
        .run(|| fs::read_to_string("/proc/thread-self/net/netlink"))
        .unwrap();
    // Columns of /proc/net/netlink: sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode.
    let drops = sockets
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(8));
    assert!(
        drops.into_iter().any(|count| count != "0"),
        "nothing was lost, the test shows nothing:\n{sockets}"
    );
}
