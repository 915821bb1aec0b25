//! Backends with the kernel's own tunnels, set up by what `lbctl backend-kit setup` prints. Hosts may lack the modules, so
//! these tests run in the guests of `cargo xtask vm`, which have them.

use anyhow::{Context, Result, ensure};
use lb_common::backend::Mode;
use lb_tests::{
    kit::{Bare, Pair},
    packet::{ETHERNET, Packet, Protocol},
    process::output,
    topology::CLIENT_V4,
};
use lb_userspace::kit::{Need, setup};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

const BYTES: usize = 300_000;

#[test]
fn what_is_printed_makes_a_backend_of_ipip() -> Result<()> {
    let mut network = Bare::set_up()?;
    network.balance("ipip")?;
    let bare = check(&network.pairs()[0], "ipip");
    let found = network.lbctl(&bare)?;
    ensure!(found.status.code() == Some(1), "a bare host passes {bare}");
    for pair in network.pairs() {
        let script = network
            .node
            .ok(&format!("backend-kit setup --service {}", pair.service))?;
        network.script(&script).context(script.clone())?;
        // It can be run again.
        network.script(&script).context(script)?;
    }
    network.serve()?;
    for pair in network.pairs() {
        network.ok(&format!(
            "{} --port {}",
            check(&pair, "ipip"),
            pair.vip.port()
        ))?;
        network.transfer(&pair, BYTES)?;
    }
    Ok(())
}

#[test]
fn what_is_printed_makes_a_backend_of_gue() -> Result<()> {
    let network = Bare::set_up()?;
    let needs = network.pairs().into_iter().map(|pair| Need {
        vip: pair.vip.ip().into(),
        mode: Mode::Gue,
        address: pair.address,
        gue_port: 6080,
    });
    for need in needs {
        let script = setup::script("backend-1", &need);
        network.script(&script).context(script)?;
    }
    network.serve()?;
    for pair in network.pairs() {
        network.ok(&format!(
            "{} --port {}",
            check(&pair, "gue"),
            pair.vip.port()
        ))?;
        through_the_kernel_s_gue(&network, &pair)?;
    }
    Ok(())
}

#[test]
fn the_kit_s_program_takes_the_kernel_s_gue() -> Result<()> {
    for mode in ["native", "generic", "tc"] {
        let network = Bare::set_up()?;
        // No card behind a veth fills in checksums that a sender leaves to it: XDP would see them unfilled.
        let mut plain = network.topology.router.command("ethtool");
        output(plain.args(["-K", &network.backend().name, "tx", "off"]))?;
        network.serve()?;
        network.script("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0")?;
        network.ok(&format!("attach --interface eth0 --mode {mode}"))?;
        for pair in network.pairs() {
            through_the_kernel_s_gue(&network, &pair)
                .with_context(|| format!("{mode}: {:?}", network.ok("status")))?;
        }
    }
    Ok(())
}

/// The name of a second owner is private data to the kernel: it takes the packet out of the tunnel all the same.
#[test]
fn the_kernel_s_gue_skips_the_name_of_a_second_owner() -> Result<()> {
    let network = Bare::set_up()?;
    let pairs = network.pairs();
    for pair in &pairs {
        let need = Need {
            vip: pair.vip.ip().into(),
            mode: Mode::Gue,
            address: pair.address,
            gue_port: 6080,
        };
        let script = setup::script("backend-1", &need);
        network.script(&script).context(script)?;
    }
    network.serve()?;
    let v6 = "fd00:3:2::2".parse::<std::net::Ipv6Addr>()?.octets();
    for pair in pairs.iter().filter(|pair| pair.vip.is_ipv4()) {
        let name: Vec<u8> = match pair.address {
            IpAddr::V4(_) => [&[0x21, 4, 0x17, 0xc0][..], &[10, 3, 2, 2]].concat(),
            IpAddr::V6(_) => [&[0x21, 16, 0x17, 0xc0][..], &v6].concat(),
        };
        let from = SocketAddr::from((CLIENT_V4, 40_000));
        let inner = Packet::new(Protocol::Udp, &from.to_string(), &pair.vip.to_string(), 100);
        let gue = [(name.len() / 4) as u8, 4, 0, 0];
        let datagram = [&gue[..], &name, &inner.frame()[ETHERNET..]].concat();
        let client = network.topology.client.run(|| UdpSocket::bind(from))?;
        client.set_read_timeout(Some(Duration::from_secs(20)))?;
        let router = &network.topology.router;
        let any: IpAddr = match pair.address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let to = SocketAddr::new(pair.address, 6080);
        router.run(|| UdpSocket::bind((any, 0))?.send_to(&datagram, to))?;
        let mut answer = [0; 200];
        let length = client
            .recv(&mut answer)
            .with_context(|| pair.service.clone())?;
        ensure!(
            answer[..length] == inner.payload,
            "{}: another answer",
            pair.service
        );
    }
    Ok(())
}

fn check(pair: &Pair, mode: &str) -> String {
    format!(
        "check --vip {} --mode {mode} --address {}",
        pair.vip.ip(),
        pair.address
    )
}

/// Transfers through a tunnel of the router's kernel, an encapsulator that nobody here has written.
fn through_the_kernel_s_gue(network: &Bare, pair: &Pair) -> Result<()> {
    let router = &network.topology.router;
    let (vip, address) = (pair.vip.ip(), pair.address);
    let (kind, local) = match (vip.is_ipv4(), address.is_ipv4()) {
        (true, true) => ("ipip", "10.3.1.1"),
        (false, true) => ("sit", "10.3.1.1"),
        (true, false) => ("ip6tnl mode ipip6 encaplimit none", "fd00:3:1::1"),
        (false, false) => ("ip6tnl mode ip6ip6 encaplimit none", "fd00:3:1::1"),
    };
    router.ip(&format!(
        "link add through type {kind} local {local} remote {address} encap gue encap-sport auto encap-dport 6080"
    ))?;
    router.ip("link set dev through up")?;
    let length = if vip.is_ipv4() { 32 } else { 128 };
    router.ip(&format!("route replace {vip}/{length} dev through"))?;
    // Traffic control cannot take less out of what the same kernel has put in: see the decapsulator's `Skb::lengthen`.
    network.transfer_with(pair, BYTES, 12)?;
    router.ip("link del dev through")
}
