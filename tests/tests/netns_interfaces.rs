//! A balancer with two interfaces: clients come in on `eth0`, the way to the backends is by `eth1`.

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::{backend::BackendEntry, maps};
use lb_tests::{
    http, nginx, pattern,
    scenario::{FAST_PROBES, Scenario, WEB, scenario},
    topology::{Layout, VIP_V6},
    traffic::{answers, failures},
};
use nix::sys::signal::Signal;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::atomic::AtomicU64,
    thread,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(5);
const WEB_V6: SocketAddr = SocketAddr::new(IpAddr::V6(VIP_V6), nginx::PORT);
const BACKENDS: [&str; 3] = ["backend-1", "backend-2", "backend-3"];

/// Adds a service whose backends are reached by their addresses of the VIP's family.
fn add(scenario: &Scenario, name: &str, vip: SocketAddr) -> Result<()> {
    let (ip, port) = (vip.ip(), vip.port());
    scenario.node.ok(&format!(
        "service add {name} --address {ip} --port {port} {FAST_PROBES}"
    ))?;
    for backend in &scenario.topology.backends {
        let (backend, address) = (&backend.name, backend.address_like(ip));
        scenario.node.ok(&format!(
            "backend add {backend} --service {name} --address {address}"
        ))?;
    }
    Ok(())
}

/// Requests and a download of `bytes` bytes, each byte of which is compared.
fn traffic(scenario: &Scenario, vip: SocketAddr, bytes: u64) -> Result<()> {
    let samples = scenario.requests(vip, 300);
    ensure!(failures(&samples).is_empty(), "{:?}", failures(&samples));
    ensure!(answers(&samples).len() == 3, "{:?}", answers(&samples));
    pattern::write(&scenario.directory().join(nginx::LARGE_FILE), bytes)?;
    let progress = AtomicU64::new(0);
    let client = &scenario.topology.client;
    let download = client.run(|| http::download(vip, "/large", LIMIT, &progress))?;
    ensure!(download.bytes == bytes, "{download:?}");
    Ok(())
}

/// Every backend's next hop is by `interface`.
fn assert_behind(scenario: &Scenario, interface: &str) -> Result<()> {
    for backend in scenario.node.backends()? {
        let said = format!("{backend:?}");
        ensure!(said.contains(&format!("dev {interface} ")), "{said}");
    }
    Ok(())
}

#[test]
fn backends_behind_a_second_interface_serve_both_families() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.add_back_side()?;
        scenario.configure(&["eth0", "eth1"], "auto")?;
        scenario.start_lbd()?;
        for (name, vip) in [("four", WEB), ("six", WEB_V6)] {
            add(scenario, name, vip)?;
            scenario.node.wait_active(&BACKENDS)?;
            assert_behind(scenario, "eth1")?;
            traffic(scenario, vip, 64 << 20)?;
            scenario.node.ok(&format!("service remove {name}"))?;
        }
        let modes: Vec<String> = scenario
            .node
            .status()?
            .interfaces
            .into_iter()
            .map(|interface| interface.mode)
            .collect();
        assert_eq!(modes, ["native", "native"]);
        scenario.node.nothing_dropped()
    });
}

#[test]
fn generic_attachment_redirects_too() {
    scenario(Layout::Routed, "generic", |scenario| {
        scenario.add_back_side()?;
        scenario.configure(&["eth0", "eth1"], "generic")?;
        scenario.start_lbd()?;
        add(scenario, "four", WEB)?;
        scenario.node.wait_active(&BACKENDS)?;
        assert_behind(scenario, "eth1")?;
        assert_eq!(scenario.node.status()?.interfaces[0].mode, "generic");
        traffic(scenario, WEB, 8 << 20)?;
        scenario.node.nothing_dropped()
    });
}

#[test]
fn an_interface_that_is_not_configured_gets_nothing_until_it_is() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.add_back_side()?;
        scenario.start_lbd()?;
        add(scenario, "four", WEB)?;
        lb_tests::wait::wait_until("the backends to be refused", LIMIT, || {
            let said = scenario.node.ok("backend list")?;
            Ok(said
                .contains("behind eth1, on which no program is attached")
                .then_some(()))
        })?;
        scenario.configure(&["eth0", "eth1"], "auto")?;
        scenario.node.signal(Signal::SIGHUP)?;
        scenario.node.wait_active(&BACKENDS)?;
        traffic(scenario, WEB, 1 << 20)?;
        // The program is replaced by a new daemon's: it finds the exits in the maps.
        scenario.node.terminate()?;
        scenario.start_lbd()?;
        ensure!(
            scenario
                .node
                .log()
                .contains("the running data plane was adopted")
        );
        traffic(scenario, WEB, 1 << 20)?;
        scenario.node.nothing_dropped()
    });
}

/// How soon the entries of all backends are to name another interface.
const FOLLOWED: Duration = Duration::from_millis(100);

/// The time from the start of `change` until every entry in use names this interface.
fn time_until_behind(
    scenario: &Scenario,
    interface: u32,
    change: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    let map = fs::read_dir(scenario.node.pins())?
        .filter_map(|entry| Some(entry.ok()?.path().join(maps::BACKENDS)))
        .find(|path| path.exists())
        .context("no pinned backends")?;
    let entries: Array<_, BackendEntry> =
        Array::try_from(Map::from_map_data(MapData::from_pin(map)?)?)?;
    let began = Instant::now();
    change()?;
    while began.elapsed() < LIMIT {
        let mut used = (1..32)
            .filter_map(|index| entries.get(&index, 0).ok())
            .filter(|entry| entry.mode != 0)
            .peekable();
        let some = used.peek().is_some();
        if some && used.all(|entry| entry.interface == interface && entry.next_hop.is_resolved()) {
            return Ok(began.elapsed());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("no entries behind interface {interface} after {LIMIT:?}")
}

/// Times include those of the `ip` command. Of five rounds the fastest counts: others may run on a busy machine.
#[test]
fn a_lost_link_and_a_changed_route_are_followed_within_100_ms() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.add_back_side()?;
        scenario.configure(&["eth0", "eth1"], "auto")?;
        scenario.start_lbd()?;
        add(scenario, "four", WEB)?;
        scenario.node.wait_active(&BACKENDS)?;
        let index = |name: &'static str| {
            scenario
                .topology
                .balancer
                .run(move || nix::net::if_::if_nametoindex(name))
        };
        let (eth0, eth1) = (index("eth0")?, index("eth1")?);
        let balancer = &scenario.topology.balancer;
        let (mut downs, mut ups, mut routes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            downs.push(time_until_behind(scenario, eth0, || {
                balancer.ip("link set eth1 down")
            })?);
            balancer.ip("link set eth1 up")?;
            ups.push(time_until_behind(scenario, eth1, || {
                scenario.topology.restore_back_side()
            })?);
            routes.push(time_until_behind(scenario, eth0, || {
                balancer.ip("route replace 10.3.0.0/16 via 10.2.0.1")
            })?);
            scenario.topology.restore_back_side()?;
            time_until_behind(scenario, eth1, || Ok(()))?;
        }
        for (what, times) in [("down", downs), ("up", ups), ("route", routes)] {
            println!("{what}: {times:?}");
            let best = times.iter().min().context("no rounds")?;
            ensure!(*best < FOLLOWED, "{what}: {times:?}");
        }
        traffic(scenario, WEB, 1 << 20)
    });
}
