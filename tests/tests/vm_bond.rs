//! A balancer whose one interface is a bond of two. Hosts may lack the module, so these tests run in the guests of
//! `cargo xtask vm`, which have it.

use anyhow::{Result, ensure};
use lb_tests::{
    echo,
    netns::Namespace,
    node::Node,
    process::output,
    session::Session,
    topology::{Layout, Topology, VIP_V4, VIP_V6},
    xdp::HostProgram,
};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

const BYTES: usize = 300_000;
const PORT: u16 = 80;
/// The slaves on the balancer and what they are joined with on the router.
const PAIRS: [(&str, &str); 2] = [("port0", "balancer"), ("port1", "balancer-b")];
const LIMIT: Duration = Duration::from_secs(30);

/// The network. Fields are dropped in this order.
struct Bonded {
    node: Node,
    topology: Topology,
    session: Session,
}

impl Bonded {
    /// Makes a bond of this mode, `eth0`, of the balancer's interface and a second one. `aggregate` is what joins the two on the
    /// router.
    fn set_up(mode: &str, aggregate: &str) -> Result<Self> {
        let session = Session::unique();
        fs::create_dir_all(session.directory())?;
        let topology = Topology::create(&session, Layout::Routed, 2)?;
        let node = Node::new(&session, "native")?;
        let bonded = Self {
            node,
            topology,
            session,
        };
        let Topology {
            router, balancer, ..
        } = &bonded.topology;
        router.ip("link set balancer xdpdrv off")?;
        balancer.ip("address flush dev eth0")?;
        balancer.ip("link set eth0 down")?;
        balancer.ip("link set eth0 name port0")?;
        let peer = balancer.name();
        router.ip(&format!(
            "link add balancer-b mtu 1600 type veth peer name port1 mtu 1600 netns {peer}"
        ))?;
        join(balancer, "eth0", mode, PAIRS.map(|(slave, _)| slave))?;
        router.ip("address flush dev balancer")?;
        join(router, "segment", aggregate, PAIRS.map(|(_, port)| port))?;
        let pass = HostProgram::pass(&bonded.session.pins())?;
        for (_, port) in PAIRS {
            pass.attach(router, port)?;
            let mut plain = router.command("ethtool");
            output(plain.args(["-K", port, "tx", "off"]))?;
        }
        for (namespace, interface, host) in [(router, "segment", 1), (balancer, "eth0", 2)] {
            namespace.ip(&format!("address add 10.2.0.{host}/24 dev {interface}"))?;
            namespace.ip(&format!(
                "address add fd00:2::{host}/64 dev {interface} nodad"
            ))?;
        }
        balancer.ip("route replace default via 10.2.0.1")?;
        balancer.ip("route replace default via fd00:2::1")?;
        router.ip(&format!("route replace {VIP_V4}/32 via 10.2.0.2"))?;
        router.ip(&format!("route replace {VIP_V6}/128 via fd00:2::2"))?;
        Ok(bonded)
    }

    /// Starts `lbd` and a service of each family.
    fn balance(&mut self) -> Result<()> {
        self.node.start(&self.topology.balancer)?;
        let mut names = vec![];
        for vip in vips() {
            let service = if vip.is_ipv4() { "four" } else { "six" };
            self.node.ok(&format!(
                "service add {service} --address {} --port {PORT} --health none",
                vip.ip()
            ))?;
            for backend in &self.topology.backends {
                echo::serve(&backend.namespace, vip)?;
                let name = format!("{}-{service}", backend.name);
                let address = backend.address_like(vip.ip());
                self.node.ok(&format!(
                    "backend add {name} --service {service} --address {address}"
                ))?;
                names.push(name);
            }
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.node.wait_active(&names)
    }

    /// Bytes there and back over connections of both families, and nothing that the program could not send.
    fn transfer(&self) -> Result<()> {
        for vip in vips() {
            for _ in 0..8 {
                echo::ask_tcp(&self.topology.client, vip, BYTES)?;
            }
        }
        self.node.nothing_dropped()
    }

    /// Packets that a slave has received.
    fn received(&self, slave: &str) -> Result<u64> {
        let mut show = self.topology.balancer.command("ip");
        let text = output(show.args(["-s", "-j", "link", "show", "dev", slave]))?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let packets = links[0]["stats64"]["rx"]["packets"].as_u64();
        packets.ok_or_else(|| anyhow::anyhow!("no count of packets in {text}"))
    }
}

fn vips() -> [SocketAddr; 2] {
    [IpAddr::from(VIP_V4), VIP_V6.into()].map(|ip| SocketAddr::new(ip, PORT))
}

/// Makes one interface of two: `kind` is a mode of bonds, or `bridge`.
fn join(namespace: &Namespace, name: &str, kind: &str, ports: [&str; 2]) -> Result<()> {
    let kind = match kind {
        "bridge" => kind.to_owned(),
        "802.3ad" => format!("bond mode {kind} miimon 50 lacp_rate fast xmit_hash_policy layer3+4"),
        mode => format!("bond mode {mode} miimon 50"),
    };
    namespace.ip(&format!("link add {name} mtu 1600 type {kind}"))?;
    for port in ports {
        namespace.ip(&format!("link set {port} down"))?;
        namespace.ip(&format!("link set {port} master {name}"))?;
        namespace.ip(&format!("link set {port} up"))?;
    }
    namespace.ip(&format!("link set {name} up"))
}

#[test]
fn a_bond_goes_on_by_its_other_slave() -> Result<()> {
    let mut bonded = Bonded::set_up("active-backup", "bridge")?;
    bonded.balance()?;
    let interface = &bonded.node.status()?.interfaces[0];
    ensure!(interface.mode == "native", "{interface:?}");
    bonded.transfer()?;
    let router = &bonded.topology.router;
    let mut before = bonded.received("port1")?;
    router.ip("link set balancer down")?;
    bonded.transfer()?;
    ensure!(
        bonded.received("port1")? > before + 100,
        "port1 is not used"
    );
    router.ip("link set balancer up")?;
    before = bonded.received("port0")?;
    router.ip("link set balancer-b down")?;
    bonded.transfer()?;
    ensure!(
        bonded.received("port0")? > before + 100,
        "port0 is not used"
    );
    Ok(())
}

/// LACP's frames are not IP and pass. The router spreads connections over both slaves.
#[test]
fn an_aggregate_of_lacp_balances() -> Result<()> {
    let mut bonded = Bonded::set_up("802.3ad", "802.3ad")?;
    bonded.balance()?;
    lb_tests::wait::wait_until("both slaves to carry packets", LIMIT, || {
        let before = [bonded.received("port0")?, bonded.received("port1")?];
        bonded.transfer()?;
        let after = [bonded.received("port0")?, bonded.received("port1")?];
        let used = before
            .iter()
            .zip(after)
            .all(|(before, after)| after > before + 100);
        Ok(used.then_some(()))
    })?;
    let path = "/proc/thread-self/net/bonding/eth0";
    let state = bonded.topology.balancer.run(|| fs::read_to_string(path))?;
    ensure!(
        !state.contains("Partner Mac Address: 00:00:00:00:00:00"),
        "no partner: {state}"
    );
    Ok(())
}
