//! Real packets that are too large for some way: datagrams and segments in fragments, path MTU discovery, pings of any size.

use anyhow::{Context, Result, ensure};
use lb_tests::{
    process::output,
    require,
    scenario::{FAST_PROBES, Scenario, scenario},
    topology::{Layout, VIP_V4, VIP_V6},
};
use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(20);
const PORT: u16 = 5_353;
const VIPS: [IpAddr; 2] = [IpAddr::V4(VIP_V4), IpAddr::V6(VIP_V6)];

/// Adds a service of this protocol on [`PORT`] for every VIP, with every backend.
fn add(scenario: &Scenario, protocol: &str, options: &str) -> Result<()> {
    let backends = &scenario.topology.backends;
    for vip in VIPS {
        let name = if vip.is_ipv4() { "four" } else { "six" };
        scenario.node.ok(&format!(
            "service add {name} --address {vip} --port {PORT} --protocol {protocol} {options}"
        ))?;
        for backend in backends {
            // One name is one host: both services have the same backends, reached over IPv4.
            scenario.node.ok(&format!(
                "backend add {} --service {name} --address {}",
                backend.name, backend.v4
            ))?;
        }
    }
    let names: Vec<&str> = backends.iter().map(|backend| &*backend.name).collect();
    // Those of the one service, then those of the other.
    scenario.node.wait_active(&names.repeat(VIPS.len()))
}

/// Packets under a verdict so far.
fn counted(scenario: &Scenario, verdict: &str) -> Result<u64> {
    let stats = scenario.node.stats()?;
    let found = stats.verdicts.iter().find(|found| found.name == verdict);
    Ok(found
        .with_context(|| format!("no verdict {verdict}"))?
        .packets)
}

/// Starts servers on the backends that send each datagram back.
fn serve_datagrams(scenario: &Scenario) -> Result<()> {
    for backend in &scenario.topology.backends {
        for vip in VIPS {
            let socket = backend
                .namespace
                .run(|| UdpSocket::bind(SocketAddr::new(vip, PORT)))?;
            // It ends with the process: it holds nothing but its socket.
            thread::spawn(move || {
                let mut datagram = vec![0; 65_536];
                while let Ok((length, client)) = socket.recv_from(&mut datagram) {
                    if socket.send_to(&datagram[..length], client).is_err() {
                        return;
                    }
                }
            });
        }
    }
    Ok(())
}

/// Sends a datagram of so many bytes from the client to a VIP and expects it back.
fn exchange(scenario: &Scenario, vip: IpAddr, bytes: usize) -> Result<()> {
    let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
    let received = scenario.topology.client.run(|| -> Result<Vec<u8>> {
        let local: IpAddr = if vip.is_ipv4() {
            "0.0.0.0".parse()?
        } else {
            "::".parse()?
        };
        let socket = UdpSocket::bind((local, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        socket.connect((vip, PORT))?;
        socket.send(&sent)?;
        let mut received = vec![0; 65_536];
        let length = socket.recv(&mut received)?;
        received.truncate(length);
        Ok(received)
    });
    let received = received.with_context(|| format!("{bytes} bytes to {vip}"))?;
    ensure!(received == sent, "{bytes} bytes to {vip} came back changed");
    Ok(())
}

#[test]
fn datagrams_in_fragments_reach_one_backend_whole() {
    const DATAGRAMS: u64 = 60;
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        serve_datagrams(scenario)?;
        add(scenario, "udp", "--health none")?;
        for vip in VIPS {
            for _ in 0..DATAGRAMS {
                exchange(scenario, vip, 4_000)?;
            }
        }
        // Each is three fragments: 1,500 bytes a packet.
        let datagrams = VIPS.len() as u64 * DATAGRAMS;
        assert_eq!(counted(scenario, "forwarded")?, 3 * datagrams);
        assert_eq!(counted(scenario, "drop_fragment")?, 0);
        Ok(())
    });
}

/// Starts servers on the backends that read a connection to its end and answer with the number of bytes.
fn serve_uploads(scenario: &Scenario) -> Result<()> {
    for backend in &scenario.topology.backends {
        // Probes come to the backend's own address.
        let own = [backend.v4.into(), backend.v6.into()];
        for address in VIPS.into_iter().chain(own) {
            let listener = backend
                .namespace
                .run(|| TcpListener::bind(SocketAddr::new(address, PORT)))?;
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { return };
                    thread::spawn(move || {
                        let mut all = Vec::new();
                        if stream.read_to_end(&mut all).is_ok() {
                            let _ = stream.write_all(&(all.len() as u64).to_be_bytes());
                        }
                    });
                }
            });
        }
    }
    Ok(())
}

/// Sends so many bytes from the client to a VIP and expects their number back.
fn upload(scenario: &Scenario, vip: IpAddr, bytes: usize) -> Result<()> {
    scenario.topology.client.run(|| {
        let server = SocketAddr::new(vip, PORT);
        let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.write_all(&vec![0x5a; bytes]).context("sending")?;
        stream.shutdown(Shutdown::Write)?;
        let mut number = [0; 8];
        stream.read_exact(&mut number).context("the answer")?;
        ensure!(u64::from_be_bytes(number) == bytes as u64);
        Ok(())
    })
}

/// A router with a way of 1,400 bytes to the balancer cuts segments of a client that allows it.
#[test]
fn segments_in_fragments_reach_their_connection() {
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        serve_uploads(scenario)?;
        add(scenario, "tcp", FAST_PROBES)?;
        let (client, router) = (&scenario.topology.client, &scenario.topology.router);
        client.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
        router.ip(&format!("route replace {VIP_V4}/32 via 10.2.0.2 mtu 1400"))?;
        upload(scenario, VIP_V4.into(), 4 << 20)?;
        // Had nothing been cut, 4 MiB would be 2,897 segments.
        let forwarded = counted(scenario, "forwarded")?;
        assert!(forwarded > 2 * 2_897, "{forwarded} packets");
        assert_eq!(counted(scenario, "drop_fragment")?, 0);
        Ok(())
    });
}

/// The MTU of the client's way to a VIP, as far as it knows.
fn mtu(scenario: &Scenario, vip: IpAddr) -> Result<Option<String>> {
    let client = &scenario.topology.client;
    let route = output(
        client
            .command("ip")
            .args(["route", "get", &vip.to_string()]),
    )?;
    let mut words = route.split_whitespace();
    Ok(words
        .find(|word| *word == "mtu")
        .and_then(|_| words.next())
        .map(String::from))
}

/// The client's link and the way to the backends take 1,500 bytes, and nobody lowered an MSS: full segments do not fit with
/// an outer header, and the client has to be told.
#[test]
fn path_mtu_discovery_lets_uploads_through() {
    scenario(Layout::Routed, "auto", |scenario| {
        let balancer = &scenario.topology.balancer;
        balancer.ip("route replace default via 10.2.0.1 mtu 1500")?;
        scenario.start_lbd()?;
        serve_uploads(scenario)?;
        add(scenario, "tcp", FAST_PROBES)?;
        for (told, vip) in (1..).zip(VIPS) {
            assert_eq!(mtu(scenario, vip)?.as_deref(), Some("1500"), "{vip}");
            upload(scenario, vip, 4 << 20)?;
            assert_eq!(mtu(scenario, vip)?.as_deref(), Some("1480"), "{vip}");
            let answered = counted(scenario, "answered_too_big")?;
            assert!(answered >= told, "{answered} answers");
        }
        assert_eq!(counted(scenario, "drop_too_big")?, 0);
        Ok(())
    });
}

/// Pings a VIP three times with this payload; whether all were answered.
fn ping(scenario: &Scenario, vip: IpAddr, payload: u32) -> bool {
    let mut command = scenario.topology.client.command("ping");
    command.args(["-n", "-q", "-c", "3", "-i", "0.05", "-W", "1", "-s"]);
    let pinged = output(command.args([payload.to_string(), vip.to_string()]));
    pinged.is_ok_and(|said| said.contains("3 received"))
}

#[test]
fn pings_are_answered_for_addresses_that_the_host_does_not_have() {
    if !require::command("ping", "iputils-ping") {
        return;
    }
    scenario(Layout::Routed, "auto", |scenario| {
        scenario.start_lbd()?;
        add(scenario, "udp", "--health none")?;
        for vip in VIPS {
            assert!(!ping(scenario, vip, 56), "{vip}: nobody should answer");
            let name = if vip.is_ipv4() { "four" } else { "six" };
            scenario.node.ok(&format!("service remove {name}"))?;
        }
        add(scenario, "udp", "--health none --echo")?;
        let before = counted(scenario, "answered_echo")?;
        for vip in VIPS {
            for payload in [0, 56, 1_400] {
                assert!(ping(scenario, vip, payload), "{vip}, {payload} bytes");
            }
        }
        assert_eq!(counted(scenario, "answered_echo")? - before, 18);
        // In fragments they are left to the host, which does not have the address.
        for vip in VIPS {
            assert!(!ping(scenario, vip, 3_000), "{vip}");
        }
        assert_eq!(counted(scenario, "answered_echo")? - before, 18);
        Ok(())
    });
}
