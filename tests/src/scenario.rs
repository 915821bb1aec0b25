//! A whole set-up in one value: the network, web servers on the backends, and a node. Tests run in one by [`scenario`],
//! which takes it down whatever happens and shows the logs when a test fails.

use crate::{
    nginx,
    node::Node,
    process::Process,
    require,
    session::Session,
    topology::{Layout, Topology, VIP_V4},
    traffic::{self, Sample},
};
use anyhow::{Context, Result};
use std::{
    fs,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// The VIP's address and the web servers' port.
pub const WEB: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(VIP_V4), nginx::PORT);

/// Probes fast enough for a test: a dead backend is down after two failures, within half a second.
pub const FAST_PROBES: &str =
    "--health-interval 200ms --health-timeout 150ms --health-rise 2 --health-fall 2";

/// Network, web servers and node. Fields are dropped in this order, names and files last.
#[derive(Debug)]
pub struct Scenario {
    /// The balancer's programs.
    pub node: Node,
    webs: Vec<Option<Process>>,
    /// The namespaces.
    pub topology: Topology,
    session: Session,
}

impl Scenario {
    /// Builds the network with `backends` backends and starts their web servers; `lbd` is not started.
    ///
    /// # Errors
    /// What a part of it refuses.
    pub fn set_up(session: Session, layout: Layout, backends: u8, attach: &str) -> Result<Self> {
        let directory = session.directory();
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let topology = Topology::create(&session, layout, backends)?;
        let node = Node::new(&session, attach)?;
        let web = |backend| nginx::start(backend, &directory).map(Some);
        let webs = topology.backends.iter().map(web).collect::<Result<_>>()?;
        Ok(Self {
            node,
            webs,
            topology,
            session,
        })
    }

    /// The directory of all files.
    pub fn directory(&self) -> std::path::PathBuf {
        self.session.directory()
    }

    /// Gives the balancer a second interface (see [`Topology::add_back_side`]); `lbd` is told of it by
    /// [`Scenario::configure`].
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn add_back_side(&self) -> Result<()> {
        self.topology.add_back_side(&self.session)
    }

    /// Makes the network one of jumbo frames (see [`Topology::grow_to_jumbo_frames`]).
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn grow_to_jumbo_frames(&self) -> Result<()> {
        self.topology.grow_to_jumbo_frames(&self.session)
    }

    /// Writes a configuration with these interfaces, all attached as `attach` says.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, interfaces: &[&str], attach: &str) -> Result<()> {
        let one = format!("  - {{ name: eth0, attach: {attach} }}\n");
        let all: String = interfaces
            .iter()
            .map(|name| one.replace("eth0", name))
            .collect();
        let text = self.node.configuration(attach).replace(&one, &all);
        Ok(fs::write(self.node.config(), text)?)
    }

    /// Starts `lbd`.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_lbd(&mut self) -> Result<()> {
        self.node.start(&self.topology.balancer)
    }

    /// Adds the service `www` on [`WEB`] with every backend, and waits until all get traffic.
    ///
    /// # Errors
    /// What `lbctl` refuses.
    pub fn add_www(&self, mode: &str) -> Result<()> {
        let (address, port) = (WEB.ip(), WEB.port());
        self.node.ok(&format!(
            "service add www --address {address} --port {port} --mode {mode} {FAST_PROBES}"
        ))?;
        for backend in &self.topology.backends {
            self.node.ok(&format!(
                "backend add {} --service www --address {}",
                backend.name, backend.v4
            ))?;
        }
        let names: Vec<&str> = self
            .topology
            .backends
            .iter()
            .map(|backend| backend.name.as_str())
            .collect();
        self.node.wait_active(&names)
    }

    /// Sends requests to `server` from the client, eight at a time.
    pub fn requests(&self, server: SocketAddr, requests: usize) -> Vec<Sample> {
        traffic::burst(&self.topology.client, server, requests, 8)
    }

    /// Kills the web server of backend `number` (from 1) as `kill -9` does.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_web(&mut self, number: usize) -> Result<()> {
        let web = self.webs.get_mut(number - 1).and_then(Option::take);
        web.with_context(|| format!("no web server runs on backend {number}"))?
            .kill()
    }

    /// Starts the web server of backend `number` (from 1) again.
    ///
    /// # Errors
    /// As [`nginx::start`].
    pub fn start_web(&mut self, number: usize) -> Result<()> {
        let web = nginx::start(&self.topology.backends[number - 1], &self.directory())?;
        self.webs[number - 1] = Some(web);
        Ok(())
    }

    /// Leaves everything running when this value is dropped.
    pub fn keep(&mut self) {
        self.node.keep();
        self.webs.iter_mut().flatten().for_each(Process::keep);
        self.topology.keep();
        self.session.keep();
    }
}

/// Runs a test in a new scenario with three backends, unless the machine cannot (see [`require`]).
///
/// # Panics
/// When the test fails, after showing what `lbd` logged.
pub fn scenario(layout: Layout, attach: &str, test: impl FnOnce(&mut Scenario) -> Result<()>) {
    scenario_of(3, layout, attach, test);
}

/// As [`scenario`], with another number of backends.
///
/// # Panics
/// When the test fails, after showing what `lbd` logged.
pub fn scenario_of(
    backends: u8,
    layout: Layout,
    attach: &str,
    test: impl FnOnce(&mut Scenario) -> Result<()>,
) {
    if !require::network() {
        return;
    }
    let mut scenario = match Scenario::set_up(Session::unique(), layout, backends, attach) {
        Ok(scenario) => scenario,
        Err(error) => panic!("cannot build the network: {error:?}"),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&mut scenario)));
    if !matches!(outcome, Ok(Ok(()))) {
        eprintln!(
            "--- what lbd logged ---\n{}--- end ---",
            scenario.node.log()
        );
    }
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error:?}"),
        Err(panic) => resume_unwind(panic),
    }
}
