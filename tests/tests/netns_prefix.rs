//! Real requests to many addresses of a service that is a whole prefix, in both families, beside a service of one of them;
//! and to services that hash by the client's address.

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    process::output,
    scenario::{FAST_PROBES, Scenario, scenario},
    topology::{Backend, Layout},
    traffic::{Sample, answers, failures},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// Requests to each address.
const REQUESTS: usize = 40;

/// A prefix, what a request to it may ask for, and its way to the balancer.
struct Side {
    prefix: &'static str,
    addresses: [&'static str; 3],
    via: &'static str,
    family: &'static str,
}

const SIDES: [Side; 2] = [
    Side {
        prefix: "10.77.0.0/24",
        addresses: ["10.77.0.0", "10.77.0.9", "10.77.0.255"],
        via: "10.2.0.2",
        family: "-4",
    },
    Side {
        prefix: "fd00:77::/64",
        addresses: ["fd00:77::1", "fd00:77::9", "fd00:77::ffff:0:0:1"],
        via: "fd00:2::2",
        family: "-6",
    },
];

fn address_of(backend: &Backend, side: &Side) -> IpAddr {
    match side.family {
        "-4" => backend.v4.into(),
        _ => backend.v6.into(),
    }
}

/// Leads the prefix to the balancer and makes it local on every backend, as `lbctl backend-kit setup` says.
fn route(scenario: &Scenario, side: &Side) -> Result<()> {
    let Side {
        prefix,
        via,
        family,
        ..
    } = side;
    let router = &scenario.topology.router;
    router.ip(&format!("{family} route add {prefix} via {via}"))?;
    for backend in &scenario.topology.backends {
        let script = scenario.node.ok(&format!(
            "backend-kit setup --service all --backend {}",
            backend.name
        ))?;
        let command = format!("{family} route replace local {prefix} dev lo");
        ensure!(script.contains(&format!("ip {command}\n")), "{script}");
        backend.namespace.ip(&command)?;
    }
    Ok(())
}

fn add(scenario: &Scenario, service: &str, address: &str, more: &str, side: &Side) -> Result<()> {
    scenario.node.ok(&format!(
        "service add {service} --address {address} --port 80 {more} {FAST_PROBES}"
    ))?;
    for backend in &scenario.topology.backends {
        if service == "all" || backend.name == "backend-3" {
            scenario.node.ok(&format!(
                "backend add {} --service {service} --address {}",
                backend.name,
                address_of(backend, side)
            ))?;
        }
    }
    let mut names = vec!["backend-1", "backend-2", "backend-3"];
    if service != "all" {
        names.push("backend-3");
    }
    scenario.node.wait_active(&names)
}

/// Which backends answer at an address.
fn ask(scenario: &Scenario, address: &str) -> Result<BTreeMap<String, usize>> {
    let server = SocketAddr::new(address.parse()?, 80);
    let samples: Vec<Sample> = scenario.requests(server, REQUESTS);
    ensure!(failures(&samples).is_empty(), "{:?}", failures(&samples));
    Ok(answers(&samples))
}

#[test]
fn every_address_of_a_prefix_is_served_and_one_of_them_by_its_own_service() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        for side in &SIDES {
            add(scenario, "all", side.prefix, "--echo", side)?;
            route(scenario, side)?;
            let [first, one, last] = side.addresses;
            for address in [first, one, last] {
                let answers = ask(scenario, address)?;
                assert_eq!(answers.len(), 3, "{address}: {answers:?}");
                let mut ping = scenario.topology.client.command("ping");
                output(ping.args([side.family, "-c", "1", "-W", "5", address]))?;
            }
            add(scenario, "one", one, "", side)?;
            let only = [("backend-3".to_owned(), REQUESTS)].into();
            assert_eq!(ask(scenario, one)?, only);
            assert_eq!(ask(scenario, last)?.len(), 3);
            scenario.node.ok("service remove one --now")?;
            assert_eq!(ask(scenario, one)?.len(), 3, "the prefix again");
            let shown = scenario.node.ok("service show all")?;
            assert!(shown.contains(side.prefix), "{shown}");
            scenario.node.ok("service remove all --now")?;
        }
        Ok(())
    });
}

#[test]
fn a_client_has_one_backend_at_all_addresses_and_loses_it_only_when_it_is_drained() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        for side in &SIDES {
            add(scenario, "all", side.prefix, "--hash source-ip", side)?;
            route(scenario, side)?;
            let ask_all = || -> Result<BTreeMap<String, usize>> {
                let mut all = BTreeMap::new();
                for address in side.addresses {
                    for (backend, requests) in ask(scenario, address)? {
                        *all.entry(backend).or_default() += requests;
                    }
                }
                Ok(all)
            };
            let before = ask_all()?;
            ensure!(before.len() == 1, "{before:?}");
            let (owner, _) = before.first_key_value().context("nobody answered")?;
            let client = if side.family == "-4" {
                "10.1.0.2:40000"
            } else {
                "[fd00:1::2]:40000"
            };
            let server = SocketAddr::new(side.addresses[1].parse()?, 80);
            let explained = scenario
                .node
                .ok(&format!("explain tcp {client} {server}"))?;
            assert!(explained.contains(", of source-ip"), "{explained}");
            assert!(explained.contains(&format!("all/{owner}")), "{explained}");
            scenario.node.ok(&format!("backend drain {owner}"))?;
            let after = ask_all()?;
            ensure!(after.len() == 1 && !after.contains_key(owner), "{after:?}");
            scenario.node.ok("service remove all --now")?;
        }
        Ok(())
    });
}
