//! Real requests through the real program: spread, source address, downloads, both families, both modes, UDP.

use anyhow::{Result, ensure};
use lb_tests::{
    http, nginx,
    node::METRICS,
    pattern,
    scenario::{FAST_PROBES, Scenario, WEB, scenario},
    topology::{Backend, CLIENT_V4, CLIENT_V6, Layout, VIP_V4, VIP_V6},
    traffic::{Sample, answers, failures},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::AtomicU64,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(5);
/// VIP and port of the services in IPv6.
const WEB_V6: SocketAddr = SocketAddr::new(IpAddr::V6(VIP_V6), nginx::PORT);

#[test]
fn thousands_of_requests_spread_by_weight_and_keep_the_clients_address() {
    const REQUESTS: usize = 3_000;
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        scenario.node.ok("backend set backend-3 --weight 50")?;
        let samples = scenario.requests(WEB, REQUESTS);
        assert_eq!(failures(&samples), [].into());
        let counts = answers(&samples);
        for (backend, expected) in [("backend-1", 0.4), ("backend-2", 0.4), ("backend-3", 0.2)] {
            // Five standard deviations of a binomial distribution are 0.045.
            let share = counts.get(backend).copied().unwrap_or_default() as f64 / REQUESTS as f64;
            assert!(
                (share - expected).abs() < 0.045,
                "{backend} got {share} of the requests: {counts:?}"
            );
        }
        assert_eq!(clients(&samples), [CLIENT_V4.to_string()].into());
        counters_agree(scenario, REQUESTS as u64)
    });
}

/// Every request takes at least four packets from the client: SYN, ACK, request, FIN.
fn counters_agree(scenario: &Scenario, requests: u64) -> Result<()> {
    let stats = scenario.node.stats()?;
    let [service] = stats.services.as_slice() else {
        anyhow::bail!("not one service: {stats:?}")
    };
    assert!(service.packets >= 4 * requests, "{service:?}");
    assert_eq!(
        service.packets,
        service
            .backends
            .iter()
            .map(|backend| backend.packets)
            .sum::<u64>()
    );
    assert_eq!(
        service.bytes,
        service
            .backends
            .iter()
            .map(|backend| backend.bytes)
            .sum::<u64>()
    );
    for verdict in &stats.verdicts {
        match verdict.action.as_str() {
            "forward" => assert_eq!(verdict.packets, service.packets),
            "drop" => assert_eq!(verdict.packets, 0, "{verdict:?}"),
            _ => {}
        }
    }
    let [interface] = &scenario.node.status()?.interfaces[..] else {
        anyhow::bail!("not one interface")
    };
    assert_eq!(
        (interface.name.as_str(), interface.mode.as_str()),
        ("eth0", "native"),
        "{interface:?}"
    );
    let (balancer, address) = (&scenario.topology.balancer, METRICS.parse()?);
    let metrics = balancer.run(|| http::get(address, "/metrics", LIMIT))?;
    for line in [
        format!(
            "guideway_service_packets_total{{service=\"www\"}} {}",
            service.packets
        ),
        "guideway_interface_attached{interface=\"eth0\",mode=\"native\"} 1".into(),
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "no {line} in {metrics}"
        );
    }
    let backends = scenario.node.backends()?;
    assert_eq!(
        backends.iter().map(|backend| backend.slots).sum::<u32>(),
        lb_common::limits::SLOTS
    );
    Ok(())
}

#[test]
fn a_large_download_arrives_byte_for_byte() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        download(scenario, WEB, 128 << 20)
    });
}

#[test]
fn generic_attachment_forwards_too() {
    scenario(Layout::Routed, "generic", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        assert_eq!(scenario.node.status()?.interfaces[0].mode, "generic");
        all_answered(scenario, WEB, CLIENT_V4.into())?;
        download(scenario, WEB, 8 << 20)
    });
}

#[test]
fn ipip_across_and_within_families() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        // The outer family is that of the backends' addresses.
        for (vip, outer, client) in [
            (WEB_V6, IpAddr::from(VIP_V6), IpAddr::from(CLIENT_V6)),
            (WEB_V6, VIP_V4.into(), CLIENT_V6.into()),
            (WEB, VIP_V6.into(), CLIENT_V4.into()),
        ] {
            add(scenario, "www", vip, "ipip", |backend| {
                backend.address_like(outer)
            })?;
            all_answered(scenario, vip, client)?;
            download(scenario, vip, 8 << 20)?;
            scenario.node.ok("service remove www")?;
        }
        Ok(())
    });
}

#[test]
fn gue_across_and_within_families() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        through_every_tunnel(scenario, "gue")?;
        let said = scenario
            .node
            .lbctl("service add other --address 10.0.0.9 --port 80 --mode gue --gue-port 70000")?;
        assert_eq!(said.code, 1, "{said:?}");
        let hint = "gue_port: is out of range (given: 70000); use 1 to 65535";
        assert!(said.stderr.contains(hint), "{said:?}");
        Ok(())
    });
}

/// The backends take what comes from anywhere; the router does not look at sources.
#[test]
fn outer_sources_out_of_a_prefix_arrive() {
    scenario(Layout::Routed, "auto", |scenario| {
        let config = scenario.node.config();
        let named = "outer_source: { ipv4: 172.31.0.0/16, ipv6: 'fd00:1f::/96' }\n";
        std::fs::write(&config, std::fs::read_to_string(&config)? + named)?;
        scenario.start_lbd()?;
        through_every_tunnel(scenario, "ipip")?;
        through_every_tunnel(scenario, "gue")
    });
}

/// All four pairs of families: requests and downloads. The outer family is that of the backends' addresses.
fn through_every_tunnel(scenario: &Scenario, mode: &str) -> Result<()> {
    for (vip, client) in [
        (WEB, IpAddr::from(CLIENT_V4)),
        (WEB_V6, IpAddr::from(CLIENT_V6)),
    ] {
        for outer in [IpAddr::from(VIP_V4), IpAddr::from(VIP_V6)] {
            add(scenario, "www", vip, mode, |backend| {
                backend.address_like(outer)
            })?;
            all_answered(scenario, vip, client)?;
            download(scenario, vip, 8 << 20)?;
            scenario.node.ok("service remove www --now")?;
        }
    }
    Ok(())
}

#[test]
fn l2_forwards_both_families_on_one_segment() {
    scenario(Layout::Bridged, "auto", |scenario| {
        scenario.start_lbd()?;
        add(scenario, "four", WEB, "l2", |backend| backend.v4.into())?;
        all_answered(scenario, WEB, CLIENT_V4.into())?;
        download(scenario, WEB, 64 << 20)?;
        scenario.node.ok("service remove four")?;
        add(scenario, "six", WEB_V6, "l2", |backend| backend.v6.into())?;
        all_answered(scenario, WEB_V6, CLIENT_V6.into())?;
        download(scenario, WEB_V6, 8 << 20)
    });
}

#[test]
fn datagrams_to_any_port_are_answered_by_every_backend() {
    const DATAGRAMS: usize = 300;
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        let server = SocketAddr::from((VIP_V4, 5_353));
        for backend in &scenario.topology.backends {
            let socket = backend.namespace.run(|| UdpSocket::bind(server))?;
            let name = backend.name.clone();
            // It ends with the process: it holds nothing but its socket.
            std::thread::spawn(move || name_each_datagram(&socket, &name));
        }
        scenario.node.ok(&format!(
            "service add udp --address {VIP_V4} --port 0 --protocol udp --health none"
        ))?;
        for backend in &scenario.topology.backends {
            scenario.node.ok(&format!(
                "backend add {} --service udp --address {}",
                backend.name, backend.v4
            ))?;
        }
        scenario
            .node
            .wait_active(&["backend-1", "backend-2", "backend-3"])?;
        let names = (0..DATAGRAMS)
            .map(|_| scenario.topology.client.run(|| who(server)))
            .collect::<Result<BTreeSet<String>>>()?;
        assert_eq!(
            names,
            ["backend-1", "backend-2", "backend-3"]
                .map(String::from)
                .into()
        );
        Ok(())
    });
}

fn name_each_datagram(socket: &UdpSocket, name: &str) {
    while let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
        if socket.send_to(name.as_bytes(), client).is_err() {
            return;
        }
    }
}

fn who(server: SocketAddr) -> Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(LIMIT))?;
    // Connected: an answer from another address than the VIP would not be received.
    socket.connect(server)?;
    socket.send(b"who?")?;
    let mut name = [0; 64];
    let length = socket.recv(&mut name)?;
    Ok(String::from_utf8_lossy(&name[..length]).into_owned())
}

fn add(
    scenario: &Scenario,
    name: &str,
    vip: SocketAddr,
    mode: &str,
    address: impl Fn(&Backend) -> IpAddr,
) -> Result<()> {
    let (ip, port) = (vip.ip(), vip.port());
    scenario.node.ok(&format!(
        "service add {name} --address {ip} --port {port} --mode {mode} {FAST_PROBES}"
    ))?;
    for backend in &scenario.topology.backends {
        scenario.node.ok(&format!(
            "backend add {} --service {name} --address {}",
            backend.name,
            address(backend)
        ))?;
    }
    scenario
        .node
        .wait_active(&["backend-1", "backend-2", "backend-3"])
}

/// A few hundred requests: all answered, by every backend, all from the client.
fn all_answered(scenario: &Scenario, server: SocketAddr, client: IpAddr) -> Result<()> {
    let samples = scenario.requests(server, 300);
    assert_eq!(failures(&samples), [].into(), "{server}");
    assert_eq!(
        answers(&samples).len(),
        3,
        "{server}: {:?}",
        answers(&samples)
    );
    assert_eq!(clients(&samples), [client.to_string()].into(), "{server}");
    Ok(())
}

/// Downloads a file of `bytes` bytes from the VIP and verifies every byte.
fn download(scenario: &Scenario, server: SocketAddr, bytes: u64) -> Result<()> {
    pattern::write(&scenario.directory().join(nginx::LARGE_FILE), bytes)?;
    let progress = AtomicU64::new(0);
    let download = scenario
        .topology
        .client
        .run(|| http::download(server, "/large", LIMIT, &progress))?;
    ensure!(download.bytes == bytes, "{download:?}");
    Ok(())
}

/// The client addresses that the backends saw.
fn clients(samples: &[Sample]) -> BTreeSet<String> {
    samples
        .iter()
        .filter_map(|sample| sample.outcome.as_ref().ok())
        .map(|answer| answer.client.clone())
        .collect()
}
