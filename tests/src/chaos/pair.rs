//! A pair of balancers with keepalived on the link that they share with their router and backends: one holds the VIPs.

use super::{server, services};
use crate::{
    echo,
    keepalived::{self, Keepalived, holds},
    netns::Namespace,
    node::Node,
    process::{Process, output},
    session::Session,
    topology::{Layout, Topology, VIP_V4, VIP_V6},
    wait::wait_until,
    xdp::HostProgram,
};
use anyhow::{Context, Result};
use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

/// Backends of a pair.
const BACKENDS: u8 = 4;
/// Longest wait for anything.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// How long slots that have moved remember their flows.
const DRAIN: Duration = Duration::from_secs(2);
/// Port of the service over IPv6.
const PORT_V6: u16 = 7;

/// One of the two.
#[derive(Debug)]
pub struct Side {
    /// Its daemon.
    pub node: Node,
    /// Its keepalived.
    pub keepalived: Keepalived,
    /// The router's port that it is at.
    port: &'static str,
}

/// Two balancers on a link with their router and backends. Fields are dropped in this order, names and files last.
#[derive(Debug)]
pub struct Pair {
    /// The two.
    pub sides: [Side; 2],
    servers: Vec<Process>,
    second: Namespace,
    /// The network.
    pub topology: Topology,
    session: Session,
}

impl Pair {
    /// Builds the network, starts servers and nodes, and waits until every backend gets traffic in this mode (`l2` or `ipip`)
    /// and one node holds both VIPs. `program` is the servers': one that knows `serve NAME VIP`.
    ///
    /// # Errors
    /// What a part of it refuses.
    pub fn set_up(session: Session, program: &Path, mode: &str) -> Result<Self> {
        let directory = session.directory();
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let topology = Topology::create(&session, Layout::Bridged, BACKENDS)?;
        let second = topology.add_balancer_on_segment(&session)?;
        let side = |name: &str, port| -> Result<Side> {
            Ok(Side {
                node: Node::named(&session, name, "auto")?,
                keepalived: Keepalived::new(directory.join(format!("{name}-keepalived")))?,
                port,
            })
        };
        let mut pair = Self {
            sides: [side("lbd-1", "balancer")?, side("lbd-2", "balancer-2")?],
            servers: Vec::new(),
            second,
            topology,
            session,
        };
        pair.start_servers(program, mode)?;
        for number in 0..2 {
            keepalived::configure(&pair.sides[number].node, &pair.sides[number].keepalived)?;
            pair.start(number)?;
        }
        pair.apply_services(mode)?;
        pair.holder()?;
        Ok(pair)
    }

    fn start_servers(&mut self, program: &Path, mode: &str) -> Result<()> {
        let directory = self.session.directory();
        let decapsulator = HostProgram::decapsulator(&self.session.pins())?;
        for backend in &self.topology.backends {
            self.servers
                .push(server::start(backend, program, &directory)?);
            let everywhere = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, PORT_V6));
            echo::serve_tcp(&backend.namespace, everywhere)?;
            if mode == "ipip" {
                decapsulator.attach(&backend.namespace, "eth0")?;
            }
        }
        Ok(())
    }

    /// The namespace of one of the two.
    pub fn namespace(&self, number: usize) -> &Namespace {
        if number == 0 {
            &self.topology.balancer
        } else {
            &self.second
        }
    }

    /// Starts both programs of a node, in the order that the units ask for.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(&mut self, number: usize) -> Result<()> {
        self.start_keepalived(number)?;
        self.start_lbd(number)
    }

    /// Starts keepalived alone.
    ///
    /// # Errors
    /// As [`Keepalived::start`].
    pub fn start_keepalived(&mut self, number: usize) -> Result<()> {
        let namespaces = [&self.topology.balancer, &self.second];
        self.sides[number].keepalived.start(namespaces[number])
    }

    /// Starts `lbd` alone.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_lbd(&mut self, number: usize) -> Result<()> {
        let namespaces = [&self.topology.balancer, &self.second];
        self.sides[number].node.start(namespaces[number])
    }

    /// Applies the same services on both, at first with a short drain timeout, so that the slots have settled before the run.
    fn apply_services(&self, mode: &str) -> Result<()> {
        let file = self.session.directory().join("services.yaml");
        fs::write(&file, self.services(mode))?;
        for (side, number) in self.sides.iter().zip(1..) {
            side.node.ok(&format!("apply --file {}", file.display()))?;
            let all = 3 * self.topology.backends.len();
            wait_until("every backend to get traffic", LIMIT, || {
                let backends = side.node.backends()?;
                let active = backends.iter().filter(|backend| backend.active).count();
                Ok((active == all).then_some(()))
            })
            .with_context(|| format!("lbd-{number}: {}", side.node.log()))?;
        }
        (0..2).try_for_each(|number| self.wait_steady(number))
    }

    fn services(&self, mode: &str) -> String {
        let backends = &self.topology.backends;
        let v4: Vec<_> = backends.iter().map(|b| (b.name.as_str(), b.v4)).collect();
        let mut text = services::yaml(mode, &v4, DRAIN);
        let _ = write!(
            text,
            "  - name: echo-v6
    address: \"{VIP_V6}\"
    protocol: tcp
    port: {PORT_V6}
    mode: {mode}
    drain_timeout: {}s
    health: {{ type: tcp, interval: 500ms, timeout: 500ms, rise: 2, fall: 5 }}
    backends:
",
            DRAIN.as_secs()
        );
        for backend in backends {
            let _ = writeln!(
                text,
                "      - {{ name: {}-v6, address: \"{}\" }}",
                backend.name, backend.v6
            );
        }
        text
    }

    /// Waits until no slot of a node is on its way: until then its flow table counts, which the other does not have.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn wait_steady(&self, number: usize) -> Result<()> {
        let node = &self.sides[number].node;
        wait_until("all slots to be steady", LIMIT, || {
            Ok((node.stats()?.flows.slots_waiting == 0).then_some(()))
        })
    }

    /// Waits until exactly one of the two holds both VIPs; which.
    ///
    /// # Errors
    /// When that does not happen in time; the error has what both say.
    pub fn holder(&self) -> Result<usize> {
        let both = [IpAddr::from(VIP_V4), IpAddr::from(VIP_V6)];
        wait_until("one node to hold both VIPs", LIMIT, || {
            let mut held = [0; 2];
            for (number, count) in held.iter_mut().enumerate() {
                for vip in both {
                    *count += usize::from(holds(self.namespace(number), vip)?);
                }
            }
            Ok(match held {
                [2, 0] => Some(0),
                [0, 2] => Some(1),
                _ => None,
            })
        })
        .with_context(|| self.words())
    }

    /// Waits until this one holds both VIPs, and the other none.
    ///
    /// # Errors
    /// When that does not happen in time; the error has what both say.
    pub fn wait_holder(&self, number: usize) -> Result<()> {
        wait_until(
            &format!("node {} to hold the VIPs", number + 1),
            LIMIT,
            || Ok((self.holder()? == number).then_some(())),
        )
        .with_context(|| self.words())
    }

    /// Waits until a node announces both VIPs.
    ///
    /// # Errors
    /// When that does not happen in time; the error has what both say.
    pub fn wait_announced(&self, number: usize) -> Result<()> {
        let track = self.sides[number].keepalived.track();
        let says = |vip: IpAddr| keepalived::tracked(&track, vip) == Some(100);
        wait_until("the node to announce the VIPs", LIMIT, || {
            Ok((says(VIP_V4.into()) && says(VIP_V6.into())).then_some(()))
        })
        .with_context(|| self.words())
    }

    /// What both nodes say.
    pub fn words(&self) -> String {
        let mut text = String::new();
        for (side, number) in self.sides.iter().zip(1..) {
            let list = side.node.ok("announce list").unwrap_or_default();
            let log = side.keepalived.log();
            let _ = writeln!(text, "node {number}:\n{list}{log}");
        }
        text
    }

    /// The holder dies: its daemon, its keepalived and its link.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        let side = &mut self.sides[number];
        self.topology
            .router
            .ip(&format!("link set {} down", side.port))?;
        side.node.kill()?;
        side.keepalived.kill()
    }

    /// What has died starts anew, as after a boot: no address and no word of lbd is left.
    ///
    /// # Errors
    /// When a program does not start.
    pub fn revive(&mut self, number: usize) -> Result<()> {
        let namespace = self.namespace(number);
        for (vip, length) in [(IpAddr::from(VIP_V4), 32), (IpAddr::from(VIP_V6), 128)] {
            if holds(namespace, vip)? {
                namespace.ip(&format!("address del {vip}/{length} dev eth0"))?;
            }
        }
        let side = &self.sides[number];
        for entry in fs::read_dir(side.keepalived.track())? {
            fs::remove_file(entry?.path())?;
        }
        self.topology
            .router
            .ip(&format!("link set {} up", side.port))?;
        self.start(number)
    }

    /// Cuts one node, and it alone, off from the backends, or joins it with them again.
    ///
    /// # Errors
    /// When the bridge refuses.
    pub fn cut_off(&self, number: usize, is_cut: bool) -> Result<()> {
        let ports = self.topology.backends.iter().map(|b| b.name.as_str());
        for port in ports.chain([self.sides[number].port]) {
            let mut bridge = self.topology.router.command("bridge");
            let isolated = if is_cut { "on" } else { "off" };
            output(bridge.args(["link", "set", "dev", port, "isolated", isolated]))?;
        }
        Ok(())
    }

    /// Whether new connections over IPv6 are answered.
    ///
    /// # Errors
    /// When one is not.
    pub fn ask_v6(&self) -> Result<()> {
        let server = SocketAddr::from((VIP_V6, PORT_V6));
        (0..8).try_for_each(|_| echo::ask_tcp(&self.topology.client, server, 1_000))
    }
}
