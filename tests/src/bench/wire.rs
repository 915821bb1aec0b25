//! A wire to measure on: a router and one interface of a balancer. The router sends frames to a service's address and takes
//! what the balancer sends to the service's backends, which exist as addresses alone.

use crate::{
    netns::Namespace,
    node::Node,
    packet::{ETHERNET, Packet, Protocol},
    process::output,
    runner::{Live, take_cpu},
    session::Session,
    topology::{CLIENT_V4, Layout, Topology, VIP_V4},
    xdp::HostProgram,
};
use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray},
    programs::{SchedClassifier, Xdp},
};
use lb_userspace::dataplane::object;
use std::{
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Flows, which differ by source port.
pub const FLOWS: u32 = 64_000;
/// The first of these ports.
pub const FIRST_PORT: u16 = 1_024;
/// The service's port.
pub const PORT: u16 = 53;
/// The router's interface.
pub const INTERFACE: &str = "balancer";
/// Backends: addresses behind the router.
pub const BACKENDS: u8 = 16;

/// The smallest frame with room for a time in it.
const LENGTH: usize = 64;

/// The network and a node. Fields are dropped in this order.
#[derive(Debug)]
pub struct Wire {
    /// The balancer's programs.
    pub node: Node,
    /// The namespaces.
    pub topology: Topology,
    session: Session,
}

/// How frames are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// By an XDP program, which a veth must have for frames of XDP_TX to arrive.
    Xdp,
    /// In traffic control, which is the cheapest for frames of a network stack.
    Stack,
}

/// What sends and counts, loaded and attached.
pub struct Ends {
    sink: Sink,
    ebpf: Ebpf,
    generator: OwnedFd,
    frame: Vec<u8>,
}

impl Wire {
    /// Builds the network; nothing balances.
    pub fn create() -> Result<Self> {
        let session = Session::unique();
        fs::create_dir_all(session.directory())?;
        let topology = Topology::create(&session, Layout::Routed, 1)?;
        topology
            .router
            .ip(&format!("link set {INTERFACE} xdpdrv off"))?;
        let node = Node::new(&session, "native")?;
        Ok(Self {
            node,
            topology,
            session,
        })
    }

    /// The same on a guest's two network cards, which the emulator has joined, in place of a veth.
    pub fn of_cards() -> Result<Self> {
        let wire = Self::create()?;
        wire.topology.join_by_cards("eth0", "eth1")?;
        // What only answers XDP_TX leaves the frame the MAC address that it came to.
        wire.topology
            .router
            .ip(&format!("link set {INTERFACE} promisc on"))?;
        Ok(wire)
    }

    /// Addresses of the backends.
    pub fn backends() -> impl Iterator<Item = Ipv4Addr> {
        (1..=BACKENDS).map(|number| Ipv4Addr::new(10, 3, 200, number))
    }

    /// Where programs are pinned.
    fn pins(&self) -> PathBuf {
        self.session.pins()
    }

    /// Starts `lbd` with a service of mode `ipip`.
    pub fn balance(&mut self) -> Result<()> {
        self.node.start(&self.topology.balancer)?;
        self.node.ok(&format!(
            "service add bench --address {VIP_V4} --port {PORT} --protocol udp --mode ipip --health none"
        ))?;
        let mut names = vec![];
        for address in Self::backends() {
            let name = format!("host-{:02}", names.len());
            self.node.ok(&format!(
                "backend add {name} --service bench --address {address}"
            ))?;
            names.push(name);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.node.wait_active(&names)
    }

    /// Stops `lbd` and takes its program off the interface.
    pub fn stop(&mut self) -> Result<()> {
        self.node.terminate()?;
        let done = self.node.lbd(&self.topology.balancer, "detach")?;
        ensure!(done.code == 0, "lbd detach: {}", done.stderr.trim());
        Ok(())
    }

    /// Attaches the sink and loads a generator, with this many nanoseconds from a frame to the next or as fast as can be.
    pub fn ends(&self, sink: Sink, interval: u64) -> Result<Ends> {
        let router = &self.topology.router;
        let frame = frame(router, &self.topology.balancer)?;
        let mut start = [0_u16; 24];
        for (word, bytes) in start.iter_mut().zip(frame.as_chunks::<2>().0) {
            *word = u16::from_ne_bytes(*bytes);
        }
        let exit = index(router)?;
        let mut ebpf = EbpfLoader::new()
            .override_global("FRAME", &start, true)
            .override_global("FLOWS", &FLOWS, true)
            .override_global("EXIT", &exit, true)
            .override_global("INTERVAL", &interval, true)
            .load(object::LIVE)
            .context("loading both ends of the wire")?;
        let generator: &mut Xdp = program(&mut ebpf, "generate")?.try_into()?;
        generator.load().context("program generate")?;
        let generator = generator.fd()?.as_fd().try_clone_to_owned()?;
        match sink {
            Sink::Xdp => {
                let count: &mut Xdp = program(&mut ebpf, "count")?.try_into()?;
                count.load().context("program count")?;
                HostProgram::pinned(count, self.pins().join("count"))?.attach(router, INTERFACE)?;
            }
            Sink::Stack => {
                let count: &mut SchedClassifier = program(&mut ebpf, "count_tc")?.try_into()?;
                count.load().context("program count_tc")?;
                let pin = self.pins().join("count_tc");
                count.pin(&pin)?;
                tc(router, &format!("qdisc add dev {INTERFACE} clsact"))?;
                let filter = format!("filter add dev {INTERFACE} ingress bpf direct-action");
                let pinned = pin.display();
                tc(router, &format!("{filter} object-pinned {pinned}"))?;
                fs::remove_file(&pin)?;
            }
        }
        Ok(Ends {
            sink,
            ebpf,
            generator,
            frame,
        })
    }

    /// Takes the sink off.
    pub fn take_off(&self, ends: Ends) -> Result<()> {
        let router = &self.topology.router;
        match ends.sink {
            Sink::Xdp => router.ip(&format!("link set {INTERFACE} xdpdrv off")),
            Sink::Stack => tc(router, &format!("qdisc del dev {INTERFACE} clsact")),
        }
    }

    /// Attaches what only sends back where the balancer would be.
    pub fn bounce(&self) -> Result<()> {
        let mut object = Ebpf::load(object::BENCH)?;
        let trivial: &mut Xdp = program(&mut object, "trivial")?.try_into()?;
        trivial.load().context("program trivial")?;
        let pin = self.pins().join("trivial");
        HostProgram::pinned(trivial, pin)?.attach(&self.topology.balancer, "eth0")
    }

    /// Takes that off.
    pub fn stop_bouncing(&self) -> Result<()> {
        self.topology.balancer.ip("link set eth0 xdpdrv off")
    }
}

impl Ends {
    /// Sends so many frames from the router for real, in batches, on the CPU of the calling thread. What it took.
    pub fn send(&self, router: &Namespace, frames: u32, batch: u32) -> Result<Duration> {
        self.send_on(None, router, frames, batch)
    }

    /// As [`Ends::send`], on this CPU and before everything else there.
    pub fn send_on(
        &self,
        cpu: Option<usize>,
        router: &Namespace,
        frames: u32,
        batch: u32,
    ) -> Result<Duration> {
        router.run(|| {
            if let Some(cpu) = cpu {
                take_cpu(cpu)?;
            }
            let live = Live {
                program: self.generator.as_fd(),
                frame: &self.frame,
                batch,
            };
            let start = Instant::now();
            live.send(frames)?;
            Ok(start.elapsed())
        })
    }

    /// Frames that came back since the sink was attached.
    pub fn received(&self) -> Result<u64> {
        let map = self.ebpf.map("RECEIVED").context("no map RECEIVED")?;
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        Ok(counts.get(&0, 0)?.iter().sum())
    }

    /// Frames by how late they came back, in steps of 20 ns; the last is of all that were later.
    pub fn late(&self) -> Result<Vec<u64>> {
        let map = self.ebpf.map("LATE").context("no map LATE")?;
        let counts: Array<_, u64> = Array::try_from(map)?;
        (0..counts.len())
            .map(|bucket| Ok(counts.get(&bucket, 0)?))
            .collect()
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    let program = ebpf.program_mut(name);
    program.with_context(|| format!("no program {name} in the object"))
}

/// A datagram of the first flow, without a checksum (RFC 768), so that other ports need no other.
fn frame(router: &Namespace, balancer: &Namespace) -> Result<Vec<u8>> {
    let from = format!("{CLIENT_V4}:{FIRST_PORT}");
    let to = format!("{VIP_V4}:{PORT}");
    let headers = ETHERNET + 20 + 8;
    let mut frame = Packet::new(Protocol::Udp, &from, &to, LENGTH - headers).frame();
    frame[..6].copy_from_slice(&mac(balancer, "eth0")?);
    frame[6..12].copy_from_slice(&mac(router, INTERFACE)?);
    frame[40..42].copy_from_slice(&[0, 0]);
    Ok(frame)
}

fn link(namespace: &Namespace, interface: &str) -> Result<serde_json::Value> {
    let text = output(
        namespace
            .command("ip")
            .args(["-json", "link", "show", "dev", interface]),
    )?;
    Ok(serde_json::from_str(&text)?)
}

fn index(router: &Namespace) -> Result<u32> {
    let link = link(router, INTERFACE)?;
    let index = link.pointer("/0/ifindex").and_then(|index| index.as_u64());
    Ok(index.context("an interface without an index")?.try_into()?)
}

/// The MAC address of an interface.
pub fn mac(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let link = link(namespace, interface)?;
    let text = link.pointer("/0/address").and_then(|text| text.as_str());
    let text = text.context("an interface without an address")?;
    let mut mac = [0; 6];
    for (byte, hex) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(hex, 16).with_context(|| format!("address {text}"))?;
    }
    Ok(mac)
}

/// Runs `tc` with the words of `arguments`.
fn tc(namespace: &Namespace, arguments: &str) -> Result<()> {
    let mut command = namespace.command("tc");
    output(command.args(arguments.split_whitespace())).map(drop)
}
