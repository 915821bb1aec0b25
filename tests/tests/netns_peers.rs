//! Programs that others wrote as clients and servers: iperf3, ping, traceroute, scapy. And paths with a small MTU in front of
//! the balancer and behind it, which TCP stacks on both sides have to find out about.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    echo,
    process::{Process, output},
    require,
    scenario::{Scenario, scenario_of},
    topology::{Backend, CLIENT_V4, CLIENT_V6, Layout, VIP_V4, VIP_V6},
    wait::wait_until,
};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

const PORT: u16 = 5_201;
const VIPS: [IpAddr; 2] = [IpAddr::V4(VIP_V4), IpAddr::V6(VIP_V6)];

/// Adds a service on [`PORT`] of a VIP with every backend; its name.
fn add(scenario: &Scenario, vip: IpAddr, protocol: &str, options: &str) -> Result<String> {
    let family = if vip.is_ipv4() { 4 } else { 6 };
    let name = format!("{protocol}{family}");
    scenario.node.ok(&format!(
        "service add {name} --address {vip} --port {PORT} --protocol {protocol} --health none {options}"
    ))?;
    for backend in &scenario.topology.backends {
        let address = backend.address_like(vip);
        let backend = &backend.name;
        scenario.node.ok(&format!(
            "backend add {backend}-{family} --service {name} --address {address}"
        ))?;
    }
    wait_until("traffic to the backends", Duration::from_secs(10), || {
        let backends = scenario.node.backends()?;
        Ok(backends.iter().all(|b| b.active).then_some(()))
    })?;
    Ok(name)
}

#[test]
fn iperf3_both_ways_over_tcp_and_udp() {
    if !require::command("iperf3", "iperf3") {
        return;
    }
    // A test's connections have to reach the same server.
    scenario_of(1, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        for vip in VIPS {
            add(scenario, vip, "tcp", "")?;
            add(scenario, vip, "udp", "")?;
        }
        let server = &scenario.topology.backends[0].namespace;
        let mut servers = Vec::new();
        for vip in VIPS {
            // A datagram socket for any address would answer from the backend's own.
            let mut command = server.command("iperf3");
            command.args(["--server", "--port", &PORT.to_string(), "--bind"]);
            command.arg(vip.to_string());
            let log = scenario.directory().join("iperf3.log");
            servers.push(Process::start("iperf3", command, &log)?);
            let listens = || Ok(TcpStream::connect((vip, PORT)).ok());
            server.run(|| wait_until("iperf3 to listen", Duration::from_secs(10), listens))?;
        }
        for vip in VIPS {
            for options in ["--time 1", "--time 1 --reverse"] {
                let sum = iperf3(scenario, vip, options)?;
                let bytes = sum["sum_received"]["bytes"].as_u64().unwrap_or_default();
                ensure!(bytes >= 10 << 20, "{vip} {options}: {sum}");
            }
            let sum = iperf3(scenario, vip, "--udp --bitrate 20M --length 1200 --time 1")?;
            let (packets, lost) = (&sum["sum"]["packets"], &sum["sum"]["lost_percent"]);
            ensure!(packets.as_u64() > Some(1_000), "{vip}: {sum}");
            ensure!(lost.as_f64().is_some_and(|lost| lost < 1.0), "{vip}: {sum}");
        }
        scenario.node.nothing_dropped()
    });
}

/// Runs iperf3 to a VIP and returns what it says at the end.
fn iperf3(scenario: &Scenario, vip: IpAddr, options: &str) -> Result<serde_json::Value> {
    let client = &scenario.topology.client;
    let port = PORT.to_string();
    let mut command = client.command("timeout");
    command
        .args(["60", "iperf3", "--json", "--port", &port, "--client"])
        .arg(vip.to_string())
        .args(options.split_whitespace());
    let report: serde_json::Value = serde_json::from_str(&output(&mut command)?)?;
    let error = report.get("error");
    ensure!(error.is_none(), "iperf3 {options} to {vip}: {error:?}");
    Ok(report["end"].clone())
}

#[test]
fn ping_and_traceroute_reach_the_vip() {
    if !require::command("traceroute", "traceroute") || !require::command("ping", "iputils-ping") {
        return;
    }
    scenario_of(2, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        for (vip, router) in VIPS.into_iter().zip(["10.1.0.1", "fd00:1::1"]) {
            for backend in &scenario.topology.backends {
                echo::serve(&backend.namespace, SocketAddr::new(vip, PORT))?;
            }
            add(scenario, vip, "tcp", "--echo")?;
            let run = |program: &str, options: &str| {
                let mut command = scenario.topology.client.command(program);
                command
                    .args(options.split_whitespace())
                    .arg(vip.to_string());
                output(&mut command)
            };
            let said = run("ping", "-n -c 5 -i 0.2 -W 2 -s 1000")?;
            ensure!(said.contains("5 received"), "{said}");
            // The balancer is no hop: what it forwards has the TTL that it came with.
            for probe in ["-I".to_owned(), format!("-T -p {PORT}")] {
                let said = run("traceroute", &format!("-n -q 2 -w 2 -m 5 {probe}"))?;
                let hops: Vec<_> = said
                    .lines()
                    .skip(1)
                    .filter_map(|line| line.split_whitespace().nth(1))
                    .collect();
                ensure!(hops == [router, &vip.to_string()], "{said}");
            }
        }
        let stats = scenario.node.stats()?;
        let echoes = stats.verdicts.iter().find(|v| v.name == "answered_echo");
        let echoes = echoes.context("no such verdict")?.packets;
        // Ten pings, and two probes a family at the last hop or more.
        ensure!(echoes >= 14, "{echoes}");
        scenario.node.nothing_dropped()
    });
}

/// Backends find out: routers tell the VIP what the way to the client takes, and the balancer hands it on.
#[test]
fn a_small_mtu_in_front_is_found_by_the_backend() {
    const MTU: u32 = 1_300;
    scenario_of(3, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        for (vip, client) in VIPS.into_iter().zip([CLIENT_V4.into(), CLIENT_V6.into()]) {
            let server = SocketAddr::new(vip, PORT);
            for backend in &scenario.topology.backends {
                echo::serve(&backend.namespace, server)?;
            }
            add(scenario, vip, "tcp", "")?;
            let router = &scenario.topology.router;
            router.ip(&format!("route add {client} dev client mtu {MTU}"))?;
            echo::ask_tcp(&scenario.topology.client, server, 1 << 20)?;
            let knows = |backend: &Backend| -> Result<bool> {
                Ok(path_mtu(backend.namespace.command("ip"), client)? == Some(MTU))
            };
            let backends = scenario.topology.backends.iter();
            let told = backends.map(knows).collect::<Result<Vec<bool>>>()?;
            let count = told.iter().filter(|knows| **knows).count();
            ensure!(count == 1, "one backend has sent something: {told:?}");
        }
        scenario.node.nothing_dropped()
    });
}

/// Clients find out: the balancer tells them what fits with an outer header, on its own link and on what is behind the first
/// router.
#[test]
fn a_small_mtu_behind_is_found_by_the_client() {
    scenario_of(1, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        let (client, router) = (&scenario.topology.client, &scenario.topology.router);
        let backend = &scenario.topology.backends[0];
        for vip in VIPS {
            echo::serve(&backend.namespace, SocketAddr::new(vip, PORT))?;
        }
        for (mode, header) in [("ipip", [20, 40]), ("gue", GUE_HEADERS)] {
            for (place, mtu) in [("here", 1_400), ("there", 1_380)] {
                for vip in VIPS {
                    let address = backend.address_like(vip);
                    let (namespace, way) = if place == "here" {
                        let gateway = if vip.is_ipv4() {
                            "10.2.0.1"
                        } else {
                            "fd00:2::1"
                        };
                        (&scenario.topology.balancer, format!("via {gateway}"))
                    } else {
                        (router, format!("dev {}", backend.name))
                    };
                    namespace.ip(&format!("route add {address} {way} mtu {mtu}"))?;
                }
                for (vip, header) in VIPS.into_iter().zip(header) {
                    let server = SocketAddr::new(vip, PORT);
                    let name = add(scenario, vip, "tcp", &format!("--mode {mode}"))?;
                    echo::ask_tcp(client, server, 1 << 20)
                        .with_context(|| format!("{mode}, {mtu} bytes {place}"))?;
                    let found = path_mtu(client.command("ip"), vip)?;
                    ensure!(
                        found == Some(mtu - header),
                        "{mode} {place}: {found:?} to {vip}"
                    );
                    scenario.node.ok(&format!("service remove {name} --now"))?;
                    let address = backend.address_like(vip);
                    let namespace = if place == "here" {
                        &scenario.topology.balancer
                    } else {
                        router
                    };
                    namespace.ip(&format!("route delete {address}"))?;
                }
                output(client.command("ip").args(["route", "flush", "cache"]))?;
                output(client.command("ip").args(["-6", "route", "flush", "cache"]))?;
            }
        }
        ensure!(
            scenario
                .node
                .log()
                .contains("larger packets do not get there")
        );
        Ok(())
    });
}

/// Bytes that mode `gue` adds, over IPv4 and IPv6, with the name of a second owner.
const GUE_HEADERS: [u32; 2] = [40, 72];

/// What a host has found out about the way to an address.
fn path_mtu(mut ip: Command, address: IpAddr) -> Result<Option<u32>> {
    let said = output(ip.args(["route", "get", &address.to_string()]))?;
    let mut words = said.split_whitespace().skip_while(|word| *word != "mtu");
    Ok(words.nth(1).and_then(|mtu| mtu.parse().ok()))
}

#[test]
fn what_scapy_sends_is_answered() {
    if !require::command("scapy", "python3-scapy") {
        return;
    }
    scenario_of(3, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        for vip in VIPS {
            for backend in &scenario.topology.backends {
                echo::serve(&backend.namespace, SocketAddr::new(vip, PORT))?;
            }
            add(scenario, vip, "udp", "--echo")?;
            add(scenario, vip, "tcp", "--echo")?;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/client.py");
        let mut command = scenario.topology.client.command("timeout");
        command.args(["120", "/usr/bin/python3", script]);
        command.args(VIPS.map(|vip| vip.to_string()));
        let said = output(command.arg(PORT.to_string()))?;
        let cases: Vec<_> = said
            .lines()
            .filter_map(|line| line.split_once(' '))
            .collect();
        ensure!(cases.len() == 14, "{said}");
        for (case, answer) in cases {
            // Nothing is held back for a first fragment that comes later.
            let expected = if case == "fragments4-last-first" {
                "silent"
            } else {
                "answered"
            };
            ensure!(answer == expected, "{case}: {answer}\n{said}");
        }
        Ok(())
    });
}
