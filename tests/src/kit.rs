//! A network with one backend that is not set up yet: for the tests of what sets it up.

use crate::{
    echo,
    netns::Namespace,
    node::Node,
    session::Session,
    topology::{Backend, Layout, Topology, VIP_V4, VIP_V6},
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Command, Output},
};

/// A service of the balancer, TCP and UDP alike.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Name of its TCP service.
    pub service: String,
    /// Where clients send to.
    pub vip: SocketAddr,
    /// The backend's address: perhaps of the other family.
    pub address: IpAddr,
}

/// The network. Fields are dropped in this order.
#[derive(Debug)]
pub struct Bare {
    /// The balancer's programs.
    pub node: Node,
    /// The namespaces.
    pub topology: Topology,
    session: Session,
}

impl Bare {
    /// Builds the network, and takes away from its backend what makes it one.
    ///
    /// # Errors
    /// What a part of it refuses.
    pub fn set_up() -> Result<Self> {
        let session = Session::unique();
        fs::create_dir_all(session.directory())?;
        let topology = Topology::create(&session, Layout::Routed, 1)?;
        let node = Node::new(&session, "native")?;
        let bare = Self {
            node,
            topology,
            session,
        };
        let host = bare.host();
        host.ip("link set dev eth0 xdpdrv off")?;
        host.ip(&format!("address del {VIP_V4}/32 dev lo"))?;
        host.ip(&format!("address del {VIP_V6}/128 dev lo"))?;
        for (key, value) in [
            ("arp_ignore", "0"),
            ("arp_announce", "0"),
            ("rp_filter", "1"),
        ] {
            host.sysctl(&format!("net/ipv4/conf/all/{key}"), value)?;
        }
        Ok(bare)
    }

    /// The backend.
    pub fn backend(&self) -> &Backend {
        &self.topology.backends[0]
    }

    /// Where the backend runs.
    pub fn host(&self) -> &Namespace {
        &self.backend().namespace
    }

    /// All four pairs of families: port 80 for the backend's IPv4 address, port 81 for the other.
    pub fn pairs(&self) -> Vec<Pair> {
        let backend = self.backend();
        let mut pairs = vec![];
        for vip in [IpAddr::from(VIP_V4), VIP_V6.into()] {
            for (port, address) in [(80, IpAddr::from(backend.v4)), (81, backend.v6.into())] {
                let inner = if vip.is_ipv4() { 4 } else { 6 };
                let outer = if address.is_ipv4() { 4 } else { 6 };
                pairs.push(Pair {
                    service: format!("inner{inner}-outer{outer}"),
                    vip: SocketAddr::new(vip, port),
                    address,
                });
            }
        }
        pairs
    }

    /// Starts `lbd` and adds services of this mode for all pairs.
    ///
    /// # Errors
    /// What `lbctl` refuses.
    pub fn balance(&mut self, mode: &str) -> Result<()> {
        self.node.start(&self.topology.balancer)?;
        let mut names = vec![];
        for Pair {
            service,
            vip,
            address,
        } in self.pairs()
        {
            for (protocol, name) in [("tcp", service.clone()), ("udp", format!("{service}-udp"))] {
                self.node.ok(&format!(
                    "service add {name} --address {} --port {} --protocol {protocol} --mode {mode} --health none",
                    vip.ip(),
                    vip.port(),
                ))?;
                self.node.ok(&format!(
                    "backend add {name} --service {name} --address {address}"
                ))?;
                names.push(name);
            }
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.node.wait_active(&names)
    }

    /// Runs the `lbctl` of the backend, which has no `lbd`, with its kit's pins.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn lbctl(&self, arguments: &str) -> Result<Output> {
        let mut command = self.host().command(crate::require::built("lbctl")?);
        command
            .arg("backend-kit")
            .args(arguments.split_whitespace())
            .arg("--pin-directory")
            .arg(self.pins());
        command.output().context("cannot run lbctl")
    }

    /// As [`Bare::lbctl`], and it has to succeed; its standard output.
    ///
    /// # Errors
    /// What it says.
    pub fn ok(&self, arguments: &str) -> Result<String> {
        said(self.lbctl(arguments)?, arguments)
    }

    /// Runs a shell script on the backend, which has to succeed.
    ///
    /// # Errors
    /// What it says.
    pub fn script(&self, script: &str) -> Result<String> {
        let mut command: Command = self.host().command("sh");
        said(command.arg("-c").arg(script).output()?, script)
    }

    /// Gives the backend the services' addresses and a service on each, without anything that decapsulates.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn serve(&self) -> Result<()> {
        // Usable at once: without nodad an address of IPv6 is not, even on lo.
        self.host()
            .ip(&format!("address replace {VIP_V4}/32 dev lo"))?;
        self.host()
            .ip(&format!("address replace {VIP_V6}/128 dev lo nodad"))?;
        for pair in self.pairs() {
            echo::serve(self.host(), pair.vip)?;
        }
        Ok(())
    }

    /// Sends `bytes` bytes each way over TCP, and the smallest and a large datagram, through this pair.
    ///
    /// # Errors
    /// As [`Bare::transfer_with`].
    pub fn transfer(&self, pair: &Pair, bytes: usize) -> Result<()> {
        self.transfer_with(pair, bytes, 1)
    }

    /// As [`Bare::transfer`], with another size of the smallest datagram.
    ///
    /// # Errors
    /// When what comes back is not what was sent.
    pub fn transfer_with(&self, pair: &Pair, bytes: usize, smallest: usize) -> Result<()> {
        let client = &self.topology.client;
        let through = || pair.service.clone();
        echo::ask_tcp(client, pair.vip, bytes).with_context(through)?;
        for datagram in [smallest, 1_200] {
            echo::ask_udp(client, pair.vip, datagram).with_context(through)?;
        }
        Ok(())
    }

    /// Where the backend's kit pins.
    pub fn pins(&self) -> PathBuf {
        self.session.pins().join("backend-kit")
    }
}

fn said(output: Output, what: &str) -> Result<String> {
    ensure!(
        output.status.success(),
        "{what}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
