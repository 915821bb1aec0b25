//! `lbctl explain` beside real traffic: it says what the packet then does, and leaves no trace.

use anyhow::{Context, Result, ensure};
use lb_tests::{
    node::Node,
    scenario::{Scenario, WEB, scenario},
    topology::{Layout, VIP_V4, VIP_V6},
    wait::wait_until,
};
use lb_userspace::{
    api::{path::Explanation, protocol::Stats},
    explain::{
        frame::{Words, build},
        pcap,
    },
};
use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(10);
const DNS: u16 = 5_353;

fn explain(node: &Node, arguments: &str) -> Result<Explanation> {
    Ok(serde_json::from_str(
        &node.ok(&format!("--output json explain {arguments}"))?,
    )?)
}

/// What users see of the traffic, but for what passes: ARP and the like come at any time.
fn seen(node: &Node) -> Result<Stats> {
    let mut stats = node.stats()?;
    stats.verdicts.retain(|verdict| verdict.action != "pass");
    // Counted from time to time, not by packets.
    (stats.flows.entries, stats.flows.slots_waiting) = (0, 0);
    Ok(stats)
}

/// Packets by `service/backend`.
fn packets(node: &Node) -> Result<BTreeMap<String, u64>> {
    let services = node.stats()?.services.into_iter();
    let backends = services.flat_map(|service| {
        let name = service.name;
        let full = move |backend: &str| format!("{name}/{backend}");
        service
            .backends
            .into_iter()
            .map(move |backend| (full(&backend.name), backend.packets))
    });
    Ok(backends.collect())
}

/// The one backend that gets packets by what `act` does.
fn goes_to<T>(node: &Node, act: impl FnOnce() -> Result<T>) -> Result<(T, String)> {
    let before = packets(node)?;
    let done = act()?;
    let after = wait_until("the packets to be counted", LIMIT, || {
        let after = packets(node)?;
        Ok((after != before).then_some(after))
    })?;
    let mut more = after
        .into_iter()
        .filter(|(name, count)| before.get(name) != Some(count));
    let (name, _) = more.next().context("nobody got a packet")?;
    ensure!(more.next().is_none(), "more than one backend got packets");
    Ok((done, name))
}

fn add(
    scenario: &Scenario,
    service: &str,
    protocol: &str,
    address: IpAddr,
    port: u16,
    backends: usize,
) -> Result<()> {
    let node = &scenario.node;
    node.ok(&format!(
        "service add {service} --address {address} --port {port} --protocol {protocol} --health none"
    ))?;
    for backend in scenario.topology.backends.iter().take(backends) {
        // One name is one host, so an address of the other family has another.
        let family = if address.is_ipv4() { "" } else { "-v6" };
        let name = format!("{}{family}", backend.name);
        node.ok(&format!(
            "backend add {name} --service {service} --address {}",
            backend.address_like(address)
        ))?;
    }
    wait_until("the service to be up", LIMIT, || {
        let all = node.backends()?;
        Ok(all.iter().all(|backend| backend.active).then_some(()))
    })
}

#[test]
fn it_says_what_packets_then_do() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        for (name, protocol, address, port) in [
            ("www", "tcp", IpAddr::from(VIP_V4), WEB.port()),
            ("www6", "tcp", VIP_V6.into(), WEB.port()),
            ("dns", "udp", VIP_V4.into(), DNS),
            ("dns6", "udp", VIP_V6.into(), DNS),
        ] {
            add(scenario, name, protocol, address, port, 3)?;
            let server = SocketAddr::new(address, port);
            for _ in 0..4 {
                check(scenario, name, protocol, server)?;
            }
        }
        refuses(scenario)
    });
}

/// A flow that goes where explain says.
fn check(scenario: &Scenario, service: &str, protocol: &str, server: SocketAddr) -> Result<()> {
    let (node, client) = (&scenario.node, &scenario.topology.client);
    let send = || -> Result<SocketAddr> {
        client.run(|| {
            if protocol == "tcp" {
                return Ok(TcpStream::connect_timeout(&server, LIMIT)?.local_addr()?);
            }
            let any: IpAddr = if server.is_ipv4() {
                [0; 4].into()
            } else {
                [0_u16; 8].into()
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(server)?;
            socket.send(b"which?")?;
            Ok(socket.local_addr()?)
        })
    };
    let (from, name) = goes_to(node, send)?;
    // The connection's end, too, is counted before what explain leaves is looked at.
    let before = wait_until("the connection to end", LIMIT, || {
        let first = seen(node)?;
        std::thread::sleep(Duration::from_millis(100));
        Ok((seen(node)? == first).then_some(first))
    })?;
    let said = explain(node, &format!("{protocol} {from} {server}"))?;
    assert_eq!(seen(node)?, before, "explain was counted");
    assert_eq!(said.verdict.name, "forwarded");
    let backend = said.backend.context("no backend")?;
    assert_eq!(backend.name, name, "{from} > {server}");
    assert_eq!(backend.interface, "eth0");
    assert_eq!(said.service.context("no service")?.name, service);
    let slot = said.slot.context("no slot")?;
    assert_eq!(
        (slot.state.as_str(), slot.new_owner),
        ("steady", Some(name))
    );
    assert!(said.flow_table.is_none());
    let output = said.output.context("no output")?;
    let outer = &output.headers[1];
    assert!(
        outer.contains(&format!("> {}, ", backend.address)),
        "{outer}"
    );
    let added = if server.is_ipv4() { 20 } else { 40 };
    assert_eq!(output.length, said.input.length + added);
    assert!(
        output.headers[2].contains(&format!("> {}, ", server.ip())),
        "{:?}",
        output.headers
    );
    Ok(())
}

/// What is dropped or passed has its reason, and what cannot be explained is refused.
fn refuses(scenario: &Scenario) -> Result<()> {
    let node = &scenario.node;
    let from = "10.1.0.2:40000";
    for (arguments, verdict, has_service) in [
        (format!("tcp {from} {VIP_V4}:9"), "pass_no_service", false),
        (format!("icmp 10.1.0.2 {VIP_V4}"), "pass_not_tcp_udp", false),
        (
            format!("udp {from} {VIP_V4}:{DNS} --size 1590"),
            "answered_too_big",
            true,
        ),
    ] {
        let said = explain(node, &arguments)?;
        assert_eq!(said.verdict.name, verdict);
        assert!(!said.verdict.advice.is_empty());
        assert_eq!(said.service.is_some(), has_service);
        // What is too big is answered: that is its output.
        assert_eq!(said.output.is_some(), verdict.starts_with("answered_"));
        if let Some(size) = said.size {
            assert_eq!(
                (size.received, size.added, size.mtu, size.fits),
                (1_590, 20, 1_600, false)
            );
        }
    }
    node.ok("service add empty --address 10.0.0.1 --port 7 --protocol udp --health none")?;
    let said = explain(node, &format!("udp {from} {VIP_V4}:7"))?;
    assert_eq!(said.verdict.name, "drop_no_backend");
    assert_eq!(said.slot.context("no slot")?.state, "empty");
    let text = node.ok(&format!("explain udp {from} {VIP_V4}:7"))?;
    for word in [
        "service     empty",
        "drop_no_backend",
        "What to do: ",
        "lbctl backend list",
    ] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    for (arguments, word) in [
        (
            format!("tcp {from} {VIP_V4}:80 --interface eth7"),
            "choose from eth0",
        ),
        (format!("tcp {from} {VIP_V6}:80"), "destination"),
        (format!("tcp {from} [{VIP_V6}]:80"), "family"),
        (
            format!("sctp {from} {VIP_V4}:80"),
            "choose tcp, udp or icmp",
        ),
        ("--pcap /nonexistent".into(), "cannot read /nonexistent"),
    ] {
        let refused = node.lbctl(&format!("explain {arguments}"))?;
        assert_eq!(refused.code, 1, "{arguments}: {refused:?}");
        assert!(refused.stderr.contains(word), "{arguments}: {refused:?}");
    }
    captures(scenario)
}

/// Packets of a file, one after the other.
fn captures(scenario: &Scenario) -> Result<()> {
    let file = scenario.directory().join("strange.pcapng");
    let mut writer = pcap::Writer::new(fs::File::create(&file)?, &["eth0"])?;
    for (destination, port) in [("10.0.0.1:80", 1), ("10.0.0.1:9", 2), ("10.0.0.1:80", 3)] {
        let source = format!("10.1.0.2:{port}");
        let words = Words {
            payload: &[],
            protocol: "tcp",
            source: &source,
            destination,
            flags: "ack",
            size: None,
        };
        let frame = build(&words, [2; 6]).map_err(|problem| anyhow::anyhow!("{problem}"))?;
        writer.write(0, 0, &frame, frame.len() as u32, "")?;
    }
    let file = file.display();
    let said = scenario
        .node
        .ok(&format!("--output json explain --pcap {file} --packets 2"))?;
    let said: Vec<Explanation> = serde_json::from_str(&said)?;
    let verdicts: Vec<&str> = said.iter().map(|said| said.verdict.name.as_str()).collect();
    assert_eq!(verdicts, ["forwarded", "pass_no_service"]);
    let text = scenario.node.ok(&format!("explain --pcap {file}"))?;
    assert!(
        text.starts_with("packet 1\n") && text.contains("\npacket 3\n"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_moved_slot_has_two_owners() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        add(scenario, "www", "tcp", VIP_V4.into(), WEB.port(), 1)?;
        let (node, client) = (&scenario.node, &scenario.topology.client);
        let mut connections = client.run(|| {
            let connect = |_| Ok(TcpStream::connect_timeout(&WEB, LIMIT)?);
            (0..24).map(connect).collect::<Result<Vec<_>>>()
        })?;
        let second = &scenario.topology.backends[1];
        node.ok(&format!(
            "backend add {} --service www --address {}",
            second.name, second.v4
        ))?;
        node.wait_active(&["backend-1", "backend-2"])?;

        let mut moved = 0;
        for connection in &mut connections {
            let from = connection.local_addr()?;
            let ask = |flags: &str| explain(node, &format!("tcp {from} {WEB} --flags {flags}"));
            let (open, new) = (ask("ack")?, ask("syn")?);
            let slot = open.slot.clone().context("no slot")?;
            if slot.state != "moved" {
                continue;
            }
            moved += 1;
            assert_eq!(slot.new_owner.as_deref(), Some("www/backend-2"));
            assert_eq!(slot.old_owner.as_deref(), Some("www/backend-1"));
            let names =
                |said: &Explanation| said.backend.as_ref().map(|backend| backend.name.clone());
            assert_eq!(names(&open).as_deref(), Some("www/backend-1"));
            assert_eq!(names(&new).as_deref(), Some("www/backend-2"));
            let table = open.flow_table.context("the flow table was not asked")?;
            assert!(!table.found, "explain recorded the flow: {table:?}");

            let ((), name) = goes_to(node, || Ok(connection.write_all(b"G")?))?;
            assert_eq!(name, "www/backend-1");
            let known = ask("syn")?;
            let table = known
                .flow_table
                .clone()
                .context("the flow table was not asked")?;
            assert!(table.found && table.counts, "{table:?}");
            assert_eq!(names(&known).as_deref(), Some("www/backend-1"));
        }
        assert!(moved > 3, "{moved} of 24 slots moved");
        assert_eq!(node.stats()?.flows.recorded, moved);
        Ok(())
    });
}
