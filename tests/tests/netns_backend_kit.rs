//! The backend kit's decapsulator on a backend: attached in each way, with real traffic, described and taken off.

use anyhow::{Result, ensure};
use lb_tests::{
    kit::{Bare, Pair},
    require,
    topology::{VIP_V4, VIP_V6},
};

const BYTES: usize = 5_000_000;

#[test]
fn traffic_of_all_families_comes_through_in_every_mode() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let mut network = Bare::set_up()?;
    network.balance("ipip")?;
    network.serve()?;
    network.host().sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    // Each takes the place of the one before; the last is the first again.
    for (mode, word) in [
        ("xdp", "native XDP"),
        ("generic", "generic XDP"),
        ("tc", "traffic control"),
        ("native", "native XDP"),
    ] {
        let said = network.ok(&format!(
            "attach --interface eth0 --mode {mode} --from 10.2.0.0/24 --from fd00:2::/64 --vip {VIP_V4} --vip {VIP_V6}"
        ))?;
        ensure!(said.contains(word), "{mode}: {said}");
        for pair in network.pairs() {
            network.transfer(&pair, BYTES)?;
        }
        let status = network.ok("status")?;
        ensure!(status.contains(word), "{mode}: {status}");
        let packets = count(&status, "decapsulated_ipip");
        ensure!(packets > 1_000, "{mode}: {packets} packets: {status}");
        for reason in [
            "pass_other_host",
            "pass_other_source",
            "pass_not_vip",
            "pass_malformed",
            "drop_failed",
        ] {
            ensure!(count(&status, reason) == 0, "{mode}: {status}");
        }
    }
    network.ok("detach")?;
    let pair = &network.pairs()[0];
    ensure!(refuses(&network, pair), "it goes on after detach");
    ensure!(network.ok("detach")?.contains("nothing was attached"));
    ensure!(!network.pins().exists());
    Ok(())
}

#[test]
fn packets_of_others_are_left_alone_and_counted() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let mut network = Bare::set_up()?;
    network.balance("ipip")?;
    network.serve()?;
    network.host().sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    let pair = network.pairs().remove(0);
    for (mode, rules, reason) in [
        ("xdp", "--from 192.0.2.0/24", "pass_other_source"),
        ("tc", "--from 192.0.2.0/24", "pass_other_source"),
        ("tc", "--vip 192.0.2.1", "pass_not_vip"),
        ("xdp", "--to 192.0.2.1", "pass_other_host"),
    ] {
        network.ok(&format!("attach --interface eth0 --mode {mode} {rules}"))?;
        ensure!(refuses(&network, &pair), "{mode} {rules}");
        let status = network.ok("status")?;
        ensure!(count(&status, reason) > 0, "{mode} {rules}: {status}");
        ensure!(
            count(&status, "decapsulated_ipip") == 0,
            "{mode} {rules}: {status}"
        );
    }
    Ok(())
}

#[test]
fn what_cannot_be_attached_is_said() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let network = Bare::set_up()?;
    for (arguments, said) in [
        ("attach --interface eth9", "no interface eth9"),
        ("attach --interface eth9 --mode tc", "no interface eth9"),
        ("status", "nothing is attached"),
        ("attach --interface eth0 --from 10.0.0.1/8", "bits set"),
    ] {
        let output = network.lbctl(arguments)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && text.contains(said),
            "{arguments}: {text}"
        );
    }
    ensure!(!network.pins().exists(), "something was left behind");
    Ok(())
}

#[test]
fn a_bare_host_is_found_wanting_and_told_what_mends_it() -> Result<()> {
    if !require::network() {
        return Ok(());
    }
    let network = Bare::set_up()?;
    let pair = network.pairs().remove(0);
    let check = format!(
        "check --vip {} --mode ipip --address {} --port 80",
        pair.vip.ip(),
        pair.address
    );
    let output = network.lbctl(&check)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(1), "{text}");
    for wrong in [
        "ip link add gw-ipip",
        "dev lo",
        "arp_ignore=1",
        "arp_announce=2",
        "nothing listens",
    ] {
        ensure!(text.contains(wrong), "no {wrong}: {text}");
    }
    network.serve()?;
    network.script("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")?;
    network.ok("attach --interface eth0")?;
    network.ok(&check)?;
    Ok(())
}

fn refuses(network: &Bare, pair: &Pair) -> bool {
    let server = pair.vip;
    network.topology.client.run(|| {
        std::net::TcpStream::connect_timeout(&server, std::time::Duration::from_millis(700))
            .is_err()
    })
}

/// A count in what `status` prints.
fn count(status: &str, reason: &str) -> u64 {
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix(reason)?.trim().parse().ok());
    count.unwrap_or_else(|| panic!("no {reason} in {status}"))
}
