//! Everything that a run is made of: the network with some balancers behind an ECMP router, a node on each, a server on
//! every backend; and how events are done to it.

use super::{
    flood,
    ledger::Ledger,
    plan::Action,
    server,
    services::{self, NAMES},
};
use crate::{
    netns::Namespace,
    node::Node,
    process::{Process, output},
    require,
    session::Session,
    topology::{Backend, Layout, Topology, VIP_V4, balancer_v4},
    wait::wait_until,
    xdp::HostProgram,
};
use anyhow::{Context, Result};
use lb_common::{decap::Reason, maps};
use lb_userspace::dataplane::FlowTable;
use nix::sys::signal::Signal;
use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Backends of a run.
pub(crate) const BACKENDS: u8 = 8;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(15);
/// Shortest time between the kill of a server and its return.
const DEAD: Duration = Duration::from_secs(2);
/// Drain timeout until the services have settled.
const SHORT_DRAIN: Duration = Duration::from_secs(1);
/// Time for which an `lbd` is away.
const AWAY: Duration = Duration::from_millis(300);

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Nodes.
    pub(crate) balancers: u8,
    /// Servers.
    pub(crate) backends: u8,
    /// Forwarding mode of the services.
    pub(crate) mode: &'static str,
    /// What is added to the configuration of each node; nothing to those that it has no more for.
    pub(crate) more: Vec<String>,
}

impl Shape {
    /// That of a chaos run.
    pub(super) const fn chaos(mode: &'static str) -> Self {
        Self {
            balancers: 2,
            backends: BACKENDS,
            mode,
            more: Vec::new(),
        }
    }
}

/// The whole set-up. Fields are dropped in this order, names and files last.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) nodes: Vec<Node>,
    servers: Vec<Option<Process>>,
    killed: Vec<Option<Instant>>,
    /// The balancers after the first.
    others: Vec<Namespace>,
    /// Forwarding mode of the services.
    mode: &'static str,
    pub(crate) topology: Topology,
    session: Session,
}

impl Fleet {
    /// Builds the network, starts servers and daemons, and waits until every backend gets traffic in this mode.
    ///
    /// # Errors
    /// What a part of it refuses.
    pub(crate) fn set_up(session: Session, shape: Shape) -> Result<Self> {
        let directory = session.directory();
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let topology = Topology::create(&session, Layout::Routed, shape.backends)?;
        let others = (2..=shape.balancers).map(|number| topology.add_balancer(&session, number));
        let others = others.collect::<Result<_>>()?;
        topology.spread(shape.balancers)?;
        flood::route_back(&topology.router)?;
        let node = |number: u8| -> Result<Node> {
            let node = Node::named(&session, &format!("lbd-{number}"), "native")?;
            let more = shape.more.get(usize::from(number) - 1);
            let text = node.configuration("native") + more.map_or("", String::as_str);
            fs::write(node.config(), text)?;
            Ok(node)
        };
        let mut fleet = Self {
            nodes: (1..=shape.balancers).map(node).collect::<Result<_>>()?,
            servers: topology.backends.iter().map(|_| None).collect(),
            killed: vec![None; topology.backends.len()],
            others,
            mode: shape.mode,
            topology,
            session,
        };
        for backend in 0..fleet.servers.len() {
            fleet.start_server(backend)?;
        }
        for node in 0..fleet.nodes.len() {
            fleet.start_node(node)?;
        }
        fleet.apply_services()?;
        Ok(fleet)
    }

    /// Applies the services; at first with a short drain timeout, so that the slots have settled before the run.
    fn apply_services(&self) -> Result<()> {
        self.apply(SHORT_DRAIN)?;
        let names: Vec<&str> = self
            .topology
            .backends
            .iter()
            .map(|backend| backend.name.as_str())
            .collect();
        for node in &self.nodes {
            self.wait_active(node, &names)?;
        }
        for node in &self.nodes {
            wait_until("all slots to be steady", LIMIT, || {
                Ok((node.stats()?.flows.slots_waiting == 0).then_some(()))
            })?;
        }
        self.apply(services::DRAIN)
    }

    fn apply(&self, drain: Duration) -> Result<()> {
        let file = self.session.directory().join("services.yaml");
        let backends: Vec<_> = self
            .topology
            .backends
            .iter()
            .map(|backend| (backend.name.as_str(), backend.v4))
            .collect();
        fs::write(&file, services::yaml(self.mode, &backends, drain))?;
        self.on_all(&format!("apply --file {}", file.display()))
    }

    /// Waits until in both services all of `names` get traffic.
    fn wait_active(&self, node: &Node, names: &[&str]) -> Result<()> {
        wait_until("all backends to get traffic", LIMIT, || {
            let backends = node.backends()?;
            let active = backends.iter().filter(|backend| backend.active).count();
            Ok((active == names.len() * NAMES.len()).then_some(()))
        })
        .with_context(|| node.log())
    }

    /// Does an event; the same on both nodes, in the same order.
    ///
    /// # Errors
    /// When `lbctl` refuses it, or a process does not start.
    pub(super) fn act(&mut self, action: Action, ledger: &Ledger) -> Result<()> {
        match action {
            Action::Drain(backend) => self.change(backend, services::drain),
            Action::Undrain(backend) => self.change(backend, services::undrain),
            Action::Remove(backend) => self.change(backend, services::remove),
            Action::Add(backend) => self.change(backend, services::add),
            Action::Weight(backend, weight) => self.change(backend, |backend, service| {
                services::weight(backend, service, weight)
            }),
            Action::Fail(backend) => self.kill_server(backend, ledger),
            Action::Return(backend) => {
                let since = self.killed[backend].map_or(DEAD, |killed| killed.elapsed());
                thread::sleep(DEAD.saturating_sub(since));
                self.start_server(backend)
            }
            Action::Restart(node) => {
                self.nodes[node].kill()?;
                thread::sleep(AWAY);
                self.start_node(node)
            }
            Action::Upgrade(node, gently, backends, flows) => {
                if gently {
                    self.nodes[node].terminate()?;
                } else {
                    self.nodes[node].kill()?;
                }
                self.configure(node, backends, flows)?;
                self.start_node(node)
            }
            Action::Reload(node) => self.nodes[node].signal(Signal::SIGHUP),
        }
    }

    fn change(&self, backend: usize, command: impl Fn(&Backend, &str) -> String) -> Result<()> {
        let backend = &self.topology.backends[backend];
        NAMES
            .iter()
            .try_for_each(|service| self.on_all(&command(backend, service)))
    }

    fn on_all(&self, command: &str) -> Result<()> {
        for (node, number) in self.nodes.iter().zip(1..) {
            node.ok(command)
                .with_context(|| format!("lbd-{number} refuses"))?;
        }
        Ok(())
    }

    /// Writes a node's configuration with other limits.
    fn configure(&self, node: usize, backends: u32, flows: u32) -> Result<()> {
        let node = &self.nodes[node];
        let limits = format!("limits: {{ services: 64, backends: {backends}, flows: {flows} }}\n");
        let text = node.configuration("native");
        let (before, _) = text
            .split_once("limits:")
            .context("the configuration has no limits")?;
        Ok(fs::write(node.config(), before.to_owned() + &limits)?)
    }

    /// Starts the `lbd` of a node.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub(crate) fn start_node(&mut self, node: usize) -> Result<()> {
        let namespace = namespace(&self.topology, &self.others, node);
        self.nodes[node].start(namespace)
    }

    /// Where a node is.
    pub(crate) fn namespace(&self, node: usize) -> &Namespace {
        namespace(&self.topology, &self.others, node)
    }

    /// The directory of all files.
    pub(crate) fn directory(&self) -> std::path::PathBuf {
        self.session.directory()
    }

    fn start_server(&mut self, number: usize) -> Result<()> {
        let backend = &self.topology.backends[number];
        let process = server::start(backend, &super::program()?, &self.session.directory())?;
        self.servers[number] = Some(process);
        Ok(())
    }

    /// Kills a server and waits until both nodes have noticed.
    fn kill_server(&mut self, number: usize, ledger: &Ledger) -> Result<()> {
        let name = &self.topology.backends[number].name;
        let server = self.servers[number]
            .take()
            .with_context(|| format!("no server runs on {name}"))?;
        ledger.killing(name);
        server.kill()?;
        ledger.killed(name);
        self.killed[number] = Some(Instant::now());
        for (node, which) in self.nodes.iter().zip(1..) {
            wait_until(&format!("lbd-{which} to notice"), LIMIT, || {
                let backends = node.backends()?;
                let active = backends
                    .iter()
                    .any(|backend| backend.name == *name && backend.active);
                Ok((!active).then_some(()))
            })?;
        }
        ledger.noticed(name);
        Ok(())
    }

    /// Has every backend take packets out of their tunnels by its kit, attached by `by` (a value of `--mode`).
    ///
    /// # Errors
    /// What the kernel or `lbctl` refuses.
    pub(super) fn attach_kits(&self, by: &str, second_chance: &str) -> Result<()> {
        // The balancers' packets come back to the router from backends now, which answers for no balancer.
        for key in ["all", "default"] {
            let router = &self.topology.router;
            router.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
        }
        let pass = HostProgram::pass(&self.session.pins())?;
        for backend in &self.topology.backends {
            let port = &backend.name;
            self.topology
                .router
                .sysctl(&format!("net/ipv4/conf/{port}/rp_filter"), "0")?;
            // It takes what a backend sends back by XDP_TX only so.
            pass.attach(&self.topology.router, port)?;
            backend.namespace.ip("link set eth0 xdpdrv off")?;
            self.kit(
                backend,
                &format!(
                    "attach --interface eth0 --mode {by} --from 10.2.0.0/16 --vip {VIP_V4} --second-chance {second_chance}"
                ),
            )?;
        }
        Ok(())
    }

    /// Packets that backends have handed on to one another.
    ///
    /// # Errors
    /// When a kit does not say.
    pub(super) fn handed_on(&self) -> Result<u64> {
        let mut sum = 0;
        for backend in &self.topology.backends {
            let text = self.kit(backend, "status --output json")?;
            let status: serde_json::Value = serde_json::from_str(&text)?;
            let counts = status["packets"].as_array().context("no packets")?;
            let handed = counts
                .iter()
                .find(|count| count[0] == Reason::HandedOn.name());
            sum += handed
                .and_then(|count| count[1].as_u64())
                .context("the kit does not count what it hands on")?;
        }
        Ok(sum)
    }

    fn kit(&self, backend: &Backend, command: &str) -> Result<String> {
        let pins = self.session.pins().join(format!("kit-{}", backend.name));
        let mut lbctl = backend.namespace.command(require::built("lbctl")?);
        lbctl
            .arg("backend-kit")
            .args(command.split_whitespace())
            .arg("--pin-directory")
            .arg(pins);
        output(&mut lbctl)
    }

    /// Takes the first balancer's link down: its flows go to the second from now on.
    ///
    /// # Errors
    /// When the router refuses.
    pub(super) fn lose_first_balancer(&self) -> Result<()> {
        let router = &self.topology.router;
        router.ip("link set balancer down")?;
        let second = balancer_v4(2);
        router.ip(&format!("route replace {VIP_V4}/32 via {second}"))
    }

    /// Entries of the flow tables of both nodes.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub(super) fn flow_entries(&self) -> Result<usize> {
        self.nodes.iter().map(entries).sum()
    }

    /// Packets that both programs have forwarded.
    ///
    /// # Errors
    /// When `lbctl stats` fails.
    pub(super) fn forwarded(&self) -> Result<u64> {
        let mut sum = 0;
        for node in &self.nodes {
            let stats = node.stats()?;
            let forwarded = stats.verdicts.iter().filter(|v| v.name == "forwarded");
            sum += forwarded.map(|verdict| verdict.packets).sum::<u64>();
        }
        Ok(sum)
    }

    /// MAC of the router towards the client.
    ///
    /// # Errors
    /// When `ip` does not say it.
    pub(super) fn router_mac(&self) -> Result<[u8; 6]> {
        let mut command = self.topology.router.command("ip");
        let text = output(command.args(["-json", "link", "show", "dev", "client"]))?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let mac = links.pointer("/0/address").and_then(|mac| mac.as_str());
        let mac = mac.context("the router's interface has no address")?;
        let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
        bytes
            .try_into()
            .map_err(|_| anyhow::anyhow!("{mac} is no MAC"))
    }

    /// Writes what each `lbd` has logged beside a report.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn write_logs(&self, report: &Path) -> Result<()> {
        for (node, number) in self.nodes.iter().zip(1..) {
            let mut name = report.as_os_str().to_owned();
            name.push(format!(".lbd-{number}.log"));
            let cannot = || format!("cannot write {}", name.display());
            fs::write(&name, node.log()).with_context(cannot)?;
        }
        Ok(())
    }

    /// The end of what each `lbd` has logged.
    pub(crate) fn logs(&self, lines: usize) -> String {
        let mut text = String::new();
        for (node, number) in self.nodes.iter().zip(1..) {
            let log = node.log();
            let all: Vec<&str> = log.lines().collect();
            let last = all[all.len().saturating_sub(lines)..].join("\n");
            text += &format!("--- the end of what lbd-{number} logged ---\n{last}\n");
        }
        text
    }
}

fn namespace<'a>(topology: &'a Topology, others: &'a [Namespace], node: usize) -> &'a Namespace {
    match node {
        0 => &topology.balancer,
        _ => &others[node - 1],
    }
}

/// Entries of a node's flow table.
fn entries(node: &Node) -> Result<usize> {
    let names = fs::read_dir(node.pins()).context("cannot read the node's pins")?;
    let mut tables: Vec<_> = names
        .flatten()
        .map(|name| name.path().join(maps::FLOWS))
        .filter(|path| path.exists())
        .collect();
    tables.sort();
    // While maps are replaced there are two generations.
    let path = tables.pop().context("no flow table is pinned")?;
    let data = aya::maps::MapData::from_pin(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let table = FlowTable::open(&aya::maps::Map::from_map_data(data)?)?;
    let mut count = 0;
    table.scan(&mut |_, _| count += 1);
    Ok(count)
}
