//! Backends with the kernel's own tunnels, set up by what `lbctl backend-kit setup` prints. Hosts may lack the modules, so
//! these tests run in the guests of `cargo xtask vm`, which have them.

use anyhow::{Context, Result, ensure};
use lb_common::backend::Mode;
use lb_tests::{
    kit::{Bare, Pair},
    process::output,
};
use lb_userspace::kit::{Need, setup};

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
