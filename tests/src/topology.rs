//! The network of tests and demo: namespaces for a client, a router, the balancer and its backends, joined by veth
//! pairs to the router.
//!
//! ```text
//! client 10.1.0.2 ---- 10.1.0.1 router 10.2.0.1 ---- 10.2.0.2 balancer       Layout::Routed
//!                               router 10.3.1.1 ---- 10.3.1.2 backend-1
//!                               router 10.3.2.1 ---- 10.3.2.2 backend-2 ...
//!
//! client 10.1.0.2 ---- 10.1.0.1 router 10.2.0.1 --+- 10.2.0.2 balancer       Layout::Bridged
//!                                                 +- 10.2.0.11 backend-1
//!                                                 +- 10.2.0.12 backend-2 ...
//! ```
//! IPv6 likewise, with `fd00:` in place of `10.`. The router sends the VIPs to the balancer; every backend has
//! them on `lo` and answers past the balancer (DSR). Each host's one interface is `eth0`.

use crate::{netns::Namespace, process::output, session::Session, xdp::HostProgram};
use anyhow::{Context, Result};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

/// The IPv4 address of services.
pub const VIP_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The IPv6 address of services.
pub const VIP_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
/// The client's IPv4 address.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// The client's IPv6 address.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
/// The balancer's IPv4 address.
pub const BALANCER_V4: Ipv4Addr = balancer_v4(1);

/// MTU towards the client, in bytes.
const OUTSIDE: u32 = 1_500;
/// MTU between router, balancer and backends: a full packet from outside fits with an outer IPv6 header (40 bytes).
const INSIDE: u32 = 1_600;

/// The IPv4 address of balancer `number`, from 1, of [`Layout::Routed`]: 10.2.0.2, 10.2.1.2, ...
pub const fn balancer_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, number - 1, 2)
}

/// As [`balancer_v4`], of IPv6: fd00:2::2, fd00:2:1::2, ...
pub const fn balancer_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 2, number as u16 - 1, 0, 0, 0, 0, 2)
}

/// The router's IPv4 address on the link of balancer `number`, from 1.
pub const fn router_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, number - 1, 1)
}

/// As [`router_v4`], of IPv6.
pub const fn router_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 2, number as u16 - 1, 0, 0, 0, 0, 1)
}

/// The router's interface to balancer `number`, from 1.
pub fn port(number: u8) -> String {
    match number {
        1 => "balancer".into(),
        _ => format!("balancer-{number}"),
    }
}

/// How the balancer reaches the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Each backend on a subnet of its own behind the router, with a decapsulator: for mode `ipip`.
    Routed,
    /// All on one Ethernet segment, a bridge on the router: for mode `l2`.
    Bridged,
}

/// One backend.
#[derive(Debug)]
pub struct Backend {
    /// Its name: `backend-1`, ...
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Where it runs.
    pub namespace: Namespace,
}

/// The namespaces, joined. Dropping it takes the network down.
#[derive(Debug)]
pub struct Topology {
    /// Where requests come from.
    pub client: Namespace,
    /// Joins all the others.
    pub router: Namespace,
    /// Where `lbd` runs.
    pub balancer: Namespace,
    /// The backends, in order of number.
    pub backends: Vec<Backend>,
}

impl Topology {
    /// Builds the network with `backends` backends, 1 to 200.
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn create(session: &Session, layout: Layout, backends: u8) -> Result<Self> {
        let namespace = |role: &str| -> Result<Namespace> {
            let namespace = Namespace::create(&session.namespace(role))?;
            // No duplicate address detection: addresses are usable at once.
            namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            namespace.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
            Ok(namespace)
        };
        let topology = Self {
            client: namespace("client")?,
            router: namespace("router")?,
            balancer: namespace("balancer")?,
            backends: (1..=backends)
                .map(|number| {
                    let name = format!("backend-{number}");
                    let (v4, v6) = backend_addresses(layout, number);
                    Ok(Backend {
                        v4,
                        v6,
                        namespace: namespace(&name)?,
                        name,
                    })
                })
                .collect::<Result<_>>()?,
        };
        let pins = session.pins();
        fs::create_dir_all(&pins).with_context(|| format!("cannot create {}", pins.display()))?;
        let pass = HostProgram::pass(&pins)?;
        let decapsulator = HostProgram::decapsulator(&pins)?;
        topology.join_client()?;
        topology.join_balancer(&topology.balancer, "balancer", 0, layout, &pass)?;
        for (vip, balancer) in [
            (format!("{VIP_V4}/32"), BALANCER_V4.to_string()),
            (format!("{VIP_V6}/128"), "fd00:2::2".into()),
        ] {
            topology
                .router
                .ip(&format!("route add {vip} via {balancer}"))?;
        }
        for (backend, number) in topology.backends.iter().zip(1..) {
            topology.join_backend(layout, backend, number, &decapsulator)?;
        }
        Ok(topology)
    }

    /// Adds balancer `number`, 2 to 16, behind the router: see [`balancer_v4`] for its address, which is that of IPv6 likewise.
    /// No packets go to it before [`Topology::spread`].
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn add_balancer(&self, session: &Session, number: u8) -> Result<Namespace> {
        let name = port(number);
        let balancer = Namespace::create(&session.namespace(&name))?;
        let pass = HostProgram::pass(&session.pins())?;
        self.join_balancer(&balancer, &name, number - 1, Layout::Routed, &pass)?;
        Ok(balancer)
    }

    /// Spreads flows to the VIPs over the first `balancers` balancers by their 5-tuples (ECMP).
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn spread(&self, balancers: u8) -> Result<()> {
        self.hash_by_ports()?;
        let (mut v4, mut v6) = (String::new(), String::new());
        for number in 1..=balancers {
            v4 += &format!(" nexthop via {}", balancer_v4(number));
            v6 += &format!(" nexthop via {}", balancer_v6(number));
        }
        self.router.ip(&format!("route replace {VIP_V4}/32{v4}"))?;
        self.router.ip(&format!("route replace {VIP_V6}/128{v6}"))
    }

    /// Takes the router's own routes to the VIPs away: BGP is to bring them. With several, flows are spread by their 5-tuples.
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn forget_vips(&self) -> Result<()> {
        self.hash_by_ports()?;
        self.router.ip(&format!("route del {VIP_V4}/32"))?;
        self.router.ip(&format!("-6 route del {VIP_V6}/128"))
    }

    fn hash_by_ports(&self) -> Result<()> {
        let key = |family| format!("net/{family}/fib_multipath_hash_policy");
        let mut families = ["ipv4", "ipv6"].into_iter();
        families.try_for_each(|family| self.router.sysctl(&key(family), "1"))
    }

    /// Joins router and balancer of [`Layout::Routed`] by two network cards of this machine, between which there is a wire
    /// outside of it, in place of the veth.
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn join_by_cards(&self, router: &str, balancer: &str) -> Result<()> {
        let port = port(1);
        self.router.ip(&format!("link del {port}"))?;
        for (card, namespace, name) in [
            (router, &self.router, port.as_str()),
            (balancer, &self.balancer, "eth0"),
        ] {
            let host = namespace.name();
            output(Command::new("ip").args(["link", "set", card, "netns", host, "name", name]))?;
            namespace.ip(&format!("link set {name} mtu {INSIDE} up"))?;
        }
        self.address_balancer(&self.balancer, &port, 0)
    }

    /// Gives the balancer a second interface, `eth1`, 10.5.0.2 and fd00:5::2, and the way to the backends of
    /// [`Layout::Routed`] by it. That by `eth0` stays, as the worse one.
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn add_back_side(&self, session: &Session) -> Result<()> {
        let balancer = self.balancer.name();
        self.router.ip(&format!(
            "link add back mtu {INSIDE} type veth peer name eth1 mtu {INSIDE} netns {balancer}"
        ))?;
        self.router.ip("link set back up")?;
        self.balancer.ip("link set eth1 up")?;
        HostProgram::pass(&session.pins())?.attach(&self.router, "back")?;
        let v4 = |host| Ipv4Addr::new(10, 5, 0, host);
        let v6 = |host| Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, host);
        address(&self.router, "back", v4(1), v6(1))?;
        address(&self.balancer, "eth1", v4(2), v6(2))?;
        self.restore_back_side()
    }

    /// Adds the way to the backends by `eth1`, which is lost when that goes down.
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn restore_back_side(&self) -> Result<()> {
        self.balancer
            .ip("address replace fd00:5::2/64 dev eth1 nodad")?;
        self.balancer.ip("route replace 10.3.0.0/16 via 10.5.0.1")?;
        self.balancer.ip("route replace fd00:3::/32 via fd00:5::1")
    }

    /// Adds a second balancer to the segment of [`Layout::Bridged`], 10.2.0.3 and fd00:2::3. The router asks the segment who has
    /// the VIPs from now on. As with a network card, a balancer gets no frames for the address of somebody whom the segment
    /// does not know.
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn add_balancer_on_segment(&self, session: &Session) -> Result<Namespace> {
        let balancer = Namespace::create(&session.namespace("balancer-2"))?;
        let pass = HostProgram::pass(&session.pins())?;
        self.join_port("balancer-2", &balancer, &pass)?;
        self.router.ip("link set balancer-2 master segment")?;
        let (v4, v6) = (
            Ipv4Addr::new(10, 2, 0, 3),
            Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 3),
        );
        address(&balancer, "eth0", v4, v6)?;
        default_route(&balancer, "10.2.0.1", "fd00:2::1", INSIDE)?;
        for port in ["balancer", "balancer-2"] {
            let mut bridge = self.router.command("bridge");
            output(bridge.args(["link", "set", "dev", port, "flood", "off"]))?;
        }
        for vip in [format!("{VIP_V4}/32"), format!("{VIP_V6}/128")] {
            self.router.ip(&format!("route del {vip}"))?;
            self.router.ip(&format!("route add {vip} dev segment"))?;
        }
        Ok(balancer)
    }

    /// Makes the network of [`Layout::Routed`] one of jumbo frames: an MTU of 9,000 bytes towards the client, of 9,100 inside,
    /// where an outer header is added. Backends take packets out of their tunnels in the network stack then.
    ///
    /// # Errors
    /// What the kernel or a command refuses.
    pub fn grow_to_jumbo_frames(&self, session: &Session) -> Result<()> {
        const JUMBO_OUTSIDE: u32 = 9_000;
        const JUMBO_INSIDE: u32 = 9_100;
        let decapsulator = HostProgram::decapsulator(&session.pins())?;
        let grow = |namespace: &Namespace, interface: &str, mtu: u32| {
            namespace.ip(&format!("link set {interface} mtu {mtu}"))
        };
        grow(&self.router, "client", JUMBO_OUTSIDE)?;
        grow(&self.client, "eth0", JUMBO_OUTSIDE)?;
        grow(&self.balancer, "eth0", JUMBO_INSIDE)?;
        grow(&self.router, "balancer", JUMBO_INSIDE)?;
        for (namespace, mtu) in [
            (&self.client, JUMBO_OUTSIDE),
            (&self.balancer, JUMBO_INSIDE),
        ] {
            widen_default_route(namespace, mtu)?;
        }
        for Backend {
            name, namespace, ..
        } in &self.backends
        {
            namespace.ip("link set eth0 xdpdrv off")?;
            grow(namespace, "eth0", JUMBO_INSIDE)?;
            grow(&self.router, name, JUMBO_INSIDE)?;
            decapsulator.attach_generic(namespace, "eth0")?;
            widen_default_route(namespace, JUMBO_OUTSIDE)?;
        }
        Ok(())
    }

    /// Leaves the network in place when this value is dropped.
    pub fn keep(&mut self) {
        for namespace in [&mut self.client, &mut self.router, &mut self.balancer] {
            namespace.keep();
        }
        for backend in &mut self.backends {
            backend.namespace.keep();
        }
    }

    fn join_client(&self) -> Result<()> {
        self.router.sysctl("net/ipv4/ip_forward", "1")?;
        self.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.connect("client", &self.client, OUTSIDE)?;
        address(
            &self.router,
            "client",
            Ipv4Addr::new(10, 1, 0, 1),
            Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1),
        )?;
        address(&self.client, "eth0", CLIENT_V4, CLIENT_V6)?;
        default_route(&self.client, "10.1.0.1", "fd00:1::1", OUTSIDE)
    }

    /// Joins a balancer with the router's interface `port`, on 10.2.SUBNET.0/24 and fd00:2:SUBNET::/64.
    fn join_balancer(
        &self,
        balancer: &Namespace,
        port: &str,
        subnet: u8,
        layout: Layout,
        pass: &HostProgram,
    ) -> Result<()> {
        self.join_port(port, balancer, pass)?;
        let segment = match layout {
            Layout::Routed => port,
            Layout::Bridged => {
                self.router
                    .ip(&format!("link add segment mtu {INSIDE} type bridge"))?;
                self.router.ip("link set segment up")?;
                self.router.ip(&format!("link set {port} master segment"))?;
                "segment"
            }
        };
        self.address_balancer(balancer, segment, subnet)
    }

    /// Gives a balancer and the router's interface to it their addresses.
    fn address_balancer(&self, balancer: &Namespace, port: &str, subnet: u8) -> Result<()> {
        let v4 = |host| Ipv4Addr::new(10, 2, subnet, host);
        let v6 = |host| Ipv6Addr::new(0xfd00, 2, subnet.into(), 0, 0, 0, 0, host);
        address(&self.router, port, v4(1), v6(1))?;
        address(balancer, "eth0", v4(2), v6(2))?;
        default_route(balancer, &v4(1).to_string(), &v6(1).to_string(), INSIDE)
    }

    /// Joins a balancer with the router's interface `port`, without addresses.
    fn join_port(&self, port: &str, balancer: &Namespace, pass: &HostProgram) -> Result<()> {
        self.connect(port, balancer, INSIDE)?;
        // A veth takes the frames that its peer sends by XDP_TX only if it has a native program itself.
        pass.attach(&self.router, port)?;
        // A checksum left for a network card to fill in would be buried under the outer header unfilled.
        let mut ethtool = self.router.command("ethtool");
        output(ethtool.args(["-K", port, "tx", "off"])).map(drop)
    }

    fn join_backend(
        &self,
        layout: Layout,
        backend: &Backend,
        number: u8,
        decapsulator: &HostProgram,
    ) -> Result<()> {
        let Backend {
            name,
            v4,
            v6,
            namespace,
        } = backend;
        self.connect(name, namespace, INSIDE)?;
        address(namespace, "eth0", *v4, *v6)?;
        match layout {
            Layout::Routed => {
                let (router_v4, router_v6) = (
                    Ipv4Addr::new(10, 3, number, 1),
                    Ipv6Addr::new(0xfd00, 3, number.into(), 0, 0, 0, 0, 1),
                );
                address(&self.router, name, router_v4, router_v6)?;
                default_route(
                    namespace,
                    &router_v4.to_string(),
                    &router_v6.to_string(),
                    OUTSIDE,
                )?;
                decapsulator.attach(namespace, "eth0")?;
            }
            Layout::Bridged => {
                self.router.ip(&format!("link set {name} master segment"))?;
                default_route(namespace, "10.2.0.1", "fd00:2::1", OUTSIDE)?;
            }
        }
        // Never tell the segment about the VIP: requests for it are the balancer's.
        for (key, value) in [
            ("arp_ignore", "1"),
            ("arp_announce", "2"),
            ("rp_filter", "0"),
        ] {
            namespace.sysctl(&format!("net/ipv4/conf/all/{key}"), value)?;
        }
        namespace.sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
        namespace.ip(&format!("address add {VIP_V4}/32 dev lo"))?;
        namespace.ip(&format!("address add {VIP_V6}/128 dev lo"))
    }

    /// Joins a host's `eth0` with an interface of the router.
    fn connect(&self, port: &str, host: &Namespace, mtu: u32) -> Result<()> {
        let peer = host.name();
        self.router.ip(&format!(
            "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}"
        ))?;
        self.router.ip(&format!("link set {port} up"))?;
        host.ip("link set eth0 up")
    }
}

impl Backend {
    /// Its address of the family of `other`.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6.into(),
        }
    }
}

fn backend_addresses(layout: Layout, number: u8) -> (Ipv4Addr, Ipv6Addr) {
    match layout {
        Layout::Routed => (
            Ipv4Addr::new(10, 3, number, 2),
            Ipv6Addr::new(0xfd00, 3, number.into(), 0, 0, 0, 0, 2),
        ),
        Layout::Bridged => {
            let host = 10 + number;
            (
                Ipv4Addr::new(10, 2, 0, host),
                Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, host.into()),
            )
        }
    }
}

fn address(namespace: &Namespace, interface: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    namespace.ip(&format!("address add {v4}/24 dev {interface}"))?;
    namespace.ip(&format!("address add {v6}/64 dev {interface} nodad"))
}

/// Packets of more than `mtu` bytes are not sent along it.
fn default_route(namespace: &Namespace, v4: &str, v6: &str, mtu: u32) -> Result<()> {
    namespace.ip(&format!("route add default via {v4} mtu {mtu}"))?;
    namespace.ip(&format!("route add default via {v6} mtu {mtu}"))
}

/// Gives the default routes of both families another MTU.
fn widen_default_route(namespace: &Namespace, mtu: u32) -> Result<()> {
    for family in ["-4", "-6"] {
        let mut show = namespace.command("ip");
        show.args([family, "route", "show", "default"]);
        let text = output(&mut show)?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "via");
        let gateway = words.nth(1).context("no default route")?;
        namespace.ip(&format!(
            "{family} route replace default via {gateway} mtu {mtu}"
        ))?;
    }
    Ok(())
}
