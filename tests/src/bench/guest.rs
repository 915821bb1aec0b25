//! What runs in a guest whose time is counted instructions: packets through the balancer, through IPVS and through plain
//! forwarding, on the same wire. Prints figures as lines, which `vm` reads.

use super::{
    figure::Figure,
    pktgen::Pktgen,
    wire::{self, Ends, FLOWS, PORT, Sink, Wire},
};
use crate::{process::output, topology::VIP_V4};
use anyhow::{Result, ensure};
use std::{fs, thread, time::Duration};

/// Begins a line with a figure: then its name, unit and samples.
pub const LINE: &str = "figure: ";

/// Frames that are made before the first of them is sent on, as many as a network card's driver takes at once.
const BATCH: u32 = 64;

/// What is between the frames and their way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    /// A program that only answers XDP_TX.
    Bare,
    /// The balancer.
    Lb,
    /// IPVS with its Maglev scheduler, tunnels.
    Ipvs,
    /// The kernel's routing.
    Forward,
}

impl Between {
    const ALL: [Self; 4] = [Self::Bare, Self::Lb, Self::Ipvs, Self::Forward];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Lb => "lb",
            Self::Ipvs => "ipvs",
            Self::Forward => "forward",
        }
    }
}

/// What the wire is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Veth,
    /// Two virtio-net cards.
    Cards,
}

impl Link {
    const ALL: [Self; 2] = [Self::Veth, Self::Cards];

    fn wire(self) -> Result<Wire> {
        match self {
            Self::Veth => Wire::create(),
            Self::Cards => Wire::of_cards(),
        }
    }

    /// Frames of a run: each flow so many times. Those of cards take more time to emulate.
    fn frames(self) -> u32 {
        match self {
            Self::Veth => 2 * FLOWS,
            Self::Cards => FLOWS,
        }
    }

    /// The cheapest for frames of this origin.
    fn sink(self, between: Between) -> Sink {
        match (self, between) {
            (Self::Veth, Between::Bare | Between::Lb) | (Self::Cards, _) => Sink::Xdp,
            (Self::Veth, Between::Ipvs | Between::Forward) => Sink::Stack,
        }
    }
}

/// Measures everything `rounds` times and prints it.
pub fn run(rounds: usize) -> Result<()> {
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")?;
    ensure!(
        jit.trim() == "1",
        "bpf_jit_enable is {jit}: programs would be interpreted"
    );
    Link::ALL
        .into_iter()
        .try_for_each(|link| measure_all(link, rounds))
}

fn measure_all(link: Link, rounds: usize) -> Result<()> {
    let mut wire = link.wire()?;
    let balancer = &wire.topology.balancer;
    for (key, value) in [
        ("ip_forward", "1"),
        ("conf/all/rp_filter", "0"),
        ("conf/eth0/rp_filter", "0"),
        ("conf/all/send_redirects", "0"),
        ("conf/eth0/send_redirects", "0"),
    ] {
        balancer.sysctl(&format!("net/ipv4/{key}"), value)?;
    }
    for between in Between::ALL {
        println!("measuring {} on {link:?}", between.name());
        set_up(&mut wire, between)?;
        let ends = wire.ends(link.sink(between), 0)?;
        for (generator, figure) in measure(&wire, &ends, link, between, rounds)? {
            let name = format!("vm.{generator}.{}", between.name());
            println!("{}", line(&name, &figure));
        }
        wire.take_off(ends)?;
    }
    Ok(())
}

/// The line of a figure.
fn line(name: &str, figure: &Figure) -> String {
    let samples: Vec<String> = figure.samples().iter().map(f64::to_string).collect();
    format!("{LINE}{name} {} {}", figure.unit, samples.join(" "))
}

/// The figure in a line that has one, wherever it starts.
pub fn parse(text: &str) -> Option<(String, Figure)> {
    let (_, rest) = text.split_once(LINE)?;
    let mut words = rest.split_whitespace();
    let (name, unit) = (words.next()?, words.next()?);
    let samples: Vec<f64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    (!samples.is_empty()).then(|| (name.into(), Figure::new(samples, unit)))
}

fn set_up(wire: &mut Wire, between: Between) -> Result<()> {
    match between {
        Between::Bare => wire.bounce(),
        Between::Lb => {
            wire.stop_bouncing()?;
            wire.balance()
        }
        Between::Ipvs => {
            wire.stop()?;
            let balancer = &wire.topology.balancer;
            balancer.ip(&format!("address add {VIP_V4}/32 dev lo"))?;
            ipvs(wire, &format!("-A -u {VIP_V4}:{PORT} -s mh -b mh-port"))?;
            Wire::backends().try_for_each(|address| {
                let host = format!("-r {address}:{PORT} -i");
                ipvs(wire, &format!("-a -u {VIP_V4}:{PORT} {host}"))
            })
        }
        Between::Forward => {
            ipvs(wire, "-C")?;
            let balancer = &wire.topology.balancer;
            balancer.ip(&format!("address del {VIP_V4}/32 dev lo"))?;
            balancer.ip(&format!("route add {VIP_V4}/32 via 10.2.0.1"))
        }
    }
}

fn ipvs(wire: &Wire, arguments: &str) -> Result<()> {
    let mut command = wire.topology.balancer.command("ipvsadm");
    output(command.args(arguments.split_whitespace())).map(drop)
}

/// What generators of this wire come to, by their names.
fn measure(
    wire: &Wire,
    ends: &Ends,
    link: Link,
    between: Between,
    rounds: usize,
) -> Result<Vec<(&'static str, Figure)>> {
    let (router, balancer) = (&wire.topology.router, &wire.topology.balancer);
    let pktgen = Pktgen::new(router, wire::mac(balancer, "eth0")?)?;
    let frames = link.frames();
    let by_pktgen = repeat(rounds, || per_frame(ends, frames, || pktgen.send(frames)))?;
    match link {
        Link::Veth => {
            let live = live(wire, ends, between, frames, rounds)?;
            Ok(vec![("pktgen", by_pktgen), ("live", live)])
        }
        Link::Cards => Ok(vec![("virtio", by_pktgen)]),
    }
}

fn live(wire: &Wire, ends: &Ends, between: Between, frames: u32, rounds: usize) -> Result<Figure> {
    // A veth takes frames of XDP for its peer only if that polls, for a program or for GRO.
    let gro = |state: &str| match between {
        Between::Lb => Ok(()),
        Between::Bare | Between::Ipvs | Between::Forward => {
            let mut ethtool = wire.topology.balancer.command("ethtool");
            output(ethtool.args(["-K", "eth0", "gro", state])).map(drop)
        }
    };
    gro("on")?;
    let router = &wire.topology.router;
    let figure = repeat(rounds, || {
        per_frame(ends, frames, || ends.send(router, frames, BATCH))
    })?;
    gro("off")?;
    Ok(figure)
}

/// So many runs after one that does not count: it fills tables.
fn repeat(rounds: usize, run: impl Fn() -> Result<f64>) -> Result<Figure> {
    let samples: Vec<f64> = (0..=rounds).map(|_| run()).collect::<Result<_>>()?;
    let counted = samples.into_iter().skip(1).collect();
    Ok(Figure::new(counted, "ns"))
}

/// Nanoseconds for each frame that came back, of which there are as many as were sent.
fn per_frame(ends: &Ends, frames: u32, send: impl FnOnce() -> Result<Duration>) -> Result<f64> {
    let before = ends.received()?;
    let took = send()?;
    thread::sleep(Duration::from_millis(50));
    let received = ends.received()? - before;
    ensure!(
        received * 1_000 > u64::from(frames) * 999,
        "of {frames} frames only {received} came back"
    );
    Ok(took.as_nanos() as f64 / received as f64)
}

#[cfg(test)]
mod tests {
    use super::{Figure, line, parse};

    #[test]
    fn a_printed_figure_is_read_in_a_guest_s_output() {
        let text = line("vm.live.lb", &Figure::new(vec![3.5, 1.0, 2.0], "ns"));
        let (name, figure) = parse(&format!("[6.12] {text}")).unwrap();
        assert_eq!((name.as_str(), figure.unit.as_str()), ("vm.live.lb", "ns"));
        assert_eq!(figure.samples(), [1.0, 2.0, 3.5]);
        for text in ["figure: a ns", "figure: a ns x", "a ns 1"] {
            assert!(parse(text).is_none(), "{text}");
        }
    }
}
