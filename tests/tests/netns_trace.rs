//! `lbctl trace` beside real traffic: it shows live packets with their verdicts, and afterwards the plain program is back.

use anyhow::{Context, Result, ensure};
use lb_common::maps;
use lb_tests::{
    node::Node,
    process::Process,
    require,
    scenario::{Scenario, WEB, scenario_of},
    topology::{CLIENT_V4, CLIENT_V6, Layout, VIP_V4, VIP_V6},
    traffic::failures,
    wait::wait_until,
};
use lb_userspace::{
    api::path::{TraceLine, TracedPacket},
    explain::{decode, hex, pcap},
};
use nix::sys::signal::Signal;
use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(10);
const DNS: u16 = 5_353;

/// A trace under way, its lines in a file.
struct Running {
    process: Process,
    lines: PathBuf,
}

impl Running {
    /// Starts one and waits until its program is attached.
    fn start(scenario: &Scenario, arguments: &str) -> Result<Self> {
        let plain = program(&scenario.node)?;
        let lines = scenario.directory().join("trace.log");
        fs::write(&lines, "")?;
        let mut command = Command::new(require::built("lbctl")?);
        command
            .arg("--socket")
            .arg(scenario.node.socket())
            .args(["--output", "json", "trace"]);
        command.args(arguments.split_whitespace());
        let process = Process::start("lbctl trace", command, &lines)?;
        wait_until("the program that traces", LIMIT, || {
            Ok((program(&scenario.node)? != plain).then_some(()))
        })?;
        Ok(Self { process, lines })
    }

    /// The packets so far.
    fn packets(&self) -> Result<Vec<TracedPacket>> {
        let text = fs::read_to_string(&self.lines)?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut packets = Vec::new();
        for line in whole.lines() {
            if let TraceLine::Packet(packet) =
                serde_json::from_str(line).with_context(|| line.to_owned())?
            {
                packets.push(*packet);
            }
        }
        Ok(packets)
    }

    /// Waits for as many packets, and some time more for others.
    fn wait_for(&self, count: usize) -> Result<Vec<TracedPacket>> {
        wait_until(&format!("{count} packets"), LIMIT, || {
            Ok((self.packets()?.len() >= count).then_some(()))
        })?;
        thread::sleep(Duration::from_millis(300));
        self.packets()
    }

    fn end(mut self) -> Result<()> {
        // Not SIGINT, which whoever runs this in the background has made it ignore.
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(LIMIT).map(drop)
    }
}

/// Id of the attached program.
fn program(node: &Node) -> Result<u32> {
    let interface = node
        .status()?
        .interfaces
        .into_iter()
        .next()
        .context("no interface")?;
    ensure!(
        interface.program_id != 0,
        "nothing is attached: {}",
        interface.note
    );
    Ok(interface.program_id)
}

fn loaded() -> usize {
    let named = aya::programs::loaded_programs().flatten();
    named
        .filter(|program| program.name_as_str() == Some(maps::PROGRAM))
        .count()
}

fn send(scenario: &Scenario, to: SocketAddr, packets: usize) -> Result<SocketAddr> {
    let from = match to {
        SocketAddr::V4(_) => IpAddr::from(CLIENT_V4),
        SocketAddr::V6(_) => CLIENT_V6.into(),
    };
    scenario.topology.client.run(|| {
        let socket = UdpSocket::bind((from, 0))?;
        // Not connected: nobody listens on the backends, and they say so.
        for _ in 0..packets {
            socket.send_to(b"which?", to)?;
        }
        Ok(socket.local_addr()?)
    })
}

fn add_services(scenario: &Scenario) -> Result<()> {
    let node = &scenario.node;
    for (service, address) in [("dns", IpAddr::from(VIP_V4)), ("dns6", VIP_V6.into())] {
        node.ok(&format!(
            "service add {service} --address {address} --port {DNS} --protocol udp --health none"
        ))?;
        for backend in &scenario.topology.backends {
            // One name is one host, so an address of the other family has another.
            let family = if address.is_ipv4() { "" } else { "-v6" };
            let name = format!("{}{family}", backend.name);
            node.ok(&format!(
                "backend add {name} --service {service} --address {}",
                backend.address_like(address)
            ))?;
        }
    }
    node.ok("service add empty --address 10.0.0.1 --port 7 --protocol udp --health none")?;
    wait_until("the services to be up", LIMIT, || {
        let all = node.backends()?;
        Ok(all.iter().all(|backend| backend.active).then_some(()))
    })
}

#[test]
fn live_packets_are_shown_with_their_verdicts() {
    scenario_of(2, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        add_services(scenario)?;
        let node = &scenario.node;
        let plain = program(node)?;

        let capture = scenario.directory().join("trace.pcapng");
        let filter = format!(
            "--source {CLIENT_V4} --service dns --pcap {}",
            capture.display()
        );
        let trace = Running::start(scenario, &filter)?;
        let from = send(scenario, SocketAddr::new(VIP_V4.into(), DNS), 3)?;
        send(scenario, SocketAddr::new(VIP_V6.into(), DNS), 3)?;
        send(scenario, SocketAddr::new(VIP_V4.into(), 7), 3)?;
        let packets = trace.wait_for(3)?;
        assert_eq!(packets.len(), 3, "{packets:?}");
        for packet in &packets {
            shows(packet, from)?;
        }
        let second = node.lbctl("trace --count 1")?;
        assert_eq!(second.code, 1, "{second:?}");
        assert!(
            second.stderr.contains("a trace is under way already"),
            "{second:?}"
        );
        trace.end()?;
        back_to(scenario, plain)?;
        both_sides(&capture, &packets)?;

        let trace = Running::start(scenario, "--reason drops")?;
        send(scenario, SocketAddr::new(VIP_V6.into(), DNS), 2)?;
        send(scenario, SocketAddr::new(VIP_V4.into(), 7), 2)?;
        let packets = trace.wait_for(2)?;
        let verdicts: Vec<&str> = packets
            .iter()
            .map(|packet| packet.verdict.as_str())
            .collect();
        assert_eq!(verdicts, ["drop_no_backend"; 2]);
        assert_eq!(packets[0].service.as_deref(), Some("empty"));
        assert!(packets[0].output.is_empty() && packets[0].backend.is_none());
        trace.end()?;
        back_to(scenario, plain)?;

        let filter = format!("--reason forwarded --source {CLIENT_V6}/64 --count 2");
        let mut trace = Running::start(scenario, &filter)?;
        send(scenario, SocketAddr::new(VIP_V6.into(), DNS), 5)?;
        assert!(trace.process.wait(LIMIT)?.success());
        assert_eq!(trace.packets()?.len(), 2);
        back_to(scenario, plain)?;
        refusals(scenario)
    });
}

/// A packet of the service `dns`, forwarded.
fn shows(packet: &TracedPacket, from: SocketAddr) -> Result<()> {
    assert_eq!(packet.verdict, "forwarded");
    assert_eq!(packet.interface, "eth0");
    assert_eq!(packet.service.as_deref(), Some("dns"));
    let backend = packet.backend.as_deref().context("no backend")?;
    assert!(backend.starts_with("dns/backend-"), "{backend}");
    let flow = packet.flow.clone().context("no flow")?;
    assert_eq!(
        (flow.protocol.as_str(), flow.source),
        ("udp", from.to_string())
    );
    assert_eq!(packet.length_out, packet.length_in + 20);
    let lines = decode::headers(&hex::decode(&packet.output).map_err(anyhow::Error::msg)?, 0);
    let inner = format!("IPv4 {} > {VIP_V4}", from.ip());
    assert!(
        lines.get(2).is_some_and(|line| line.starts_with(&inner)),
        "{lines:?}"
    );
    Ok(())
}

/// The capture has each packet as it came and as it left.
fn both_sides(capture: &PathBuf, packets: &[TracedPacket]) -> Result<()> {
    let read = pcap::read(&fs::read(capture)?, 100).map_err(anyhow::Error::msg)?;
    let mut expected = Vec::new();
    for packet in packets {
        let comment = format!(
            "forwarded to {}",
            packet.backend.as_deref().unwrap_or_default()
        );
        for (interface, side) in (0..).zip([&packet.input, &packet.output]) {
            expected.push(pcap::Captured {
                interface,
                bytes: hex::decode(side).map_err(anyhow::Error::msg)?,
                comment: comment.clone(),
            });
        }
    }
    assert_eq!(read, expected);
    Ok(())
}

fn refusals(scenario: &Scenario) -> Result<()> {
    for (arguments, code, word) in [
        ("--service ww", 1, "no such service"),
        ("--source 10.0.0.0/40", 1, "neither an address nor a prefix"),
        ("--reason drop", 1, "no such verdict"),
        ("--sample 0", 1, "not a share"),
        ("--sample often", 2, "not a share"),
        (
            "--pcap /nonexistent/file",
            1,
            "cannot write /nonexistent/file",
        ),
    ] {
        let refused = scenario
            .node
            .lbctl(&format!("trace --count 1 {arguments}"))?;
        assert_eq!(refused.code, code, "{arguments}: {refused:?}");
        assert!(refused.stderr.contains(word), "{arguments}: {refused:?}");
    }
    Ok(())
}

/// The plain program is attached again, and no other is left.
fn back_to(scenario: &Scenario, plain: u32) -> Result<()> {
    wait_until("the plain program to be back", LIMIT, || {
        Ok((program(&scenario.node)? == plain).then_some(()))
    })
}

/// However a trace ends, the program that traces goes, and no request fails meanwhile.
#[test]
fn the_plain_program_comes_back_whatever_happens() {
    scenario_of(2, Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        scenario.add_www("ipip")?;
        let plain = program(&scenario.node)?;

        // The client is killed.
        let trace = Running::start(scenario, "--service www")?;
        assert_eq!(failures(&scenario.requests(WEB, 50)), [].into());
        trace.process.kill()?;
        assert_eq!(failures(&scenario.requests(WEB, 50)), [].into());
        back_to(scenario, plain)?;

        // The daemon is stopped: the program that stays attached is the plain one.
        let trace = Running::start(scenario, "--service www")?;
        let before = loaded();
        scenario.node.terminate()?;
        assert_eq!(failures(&scenario.requests(WEB, 50)), [].into());
        wait_until("the program that traces to go", LIMIT, || {
            Ok((loaded() < before).then_some(()))
        })?;
        drop(trace);
        scenario.start_lbd()?;
        scenario.node.wait_active(&["backend-1", "backend-2"])?;

        // The daemon is killed: the next one puts a plain program in.
        let trace = Running::start(scenario, "--service www")?;
        let tracing = program(&scenario.node)?;
        scenario.node.kill()?;
        assert_eq!(failures(&scenario.requests(WEB, 50)), [].into());
        drop(trace);
        scenario.start_lbd()?;
        wait_until("another program", LIMIT, || {
            Ok((program(&scenario.node)? != tracing).then_some(()))
        })?;
        scenario.node.wait_active(&["backend-1", "backend-2"])?;
        assert_eq!(failures(&scenario.requests(WEB, 50)), [].into());
        Ok(())
    });
}
