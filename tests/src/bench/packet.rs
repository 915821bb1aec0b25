//! What a packet costs: the program under BPF_PROG_TEST_RUN, called by a wrapper that undoes what it did and varies the flow
//! (`lb-ebpf/src/bin/bench.rs`). The wrapper's own cost is measured with the same frame, in turn with the program's, and
//! subtracted.

use super::figure::{Figure, Figures};
use crate::{
    fixture::{backend, key, v4, v6},
    fixtures::icmp,
    packet::{Packet, Protocol, flag},
    prog_run::{Balancer, XdpAction},
    runner::Runner,
};
use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::ProgramArray,
    programs::{ProgramFd, Xdp},
};
use lb_common::{
    backend::{BackendEntry, Mode},
    slot::Slot,
};
use lb_userspace::dataplane::object;
use std::os::fd::AsFd as _;

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs of each case, after one that does not count.
    pub rounds: usize,
    /// Packets of a run. A case with more flows than that, and less than two million, takes as many packets as flows.
    pub repeats: u32,
    /// Whether each packet costs one more look-up in an LRU map, to see `--compare` find that.
    pub slow_down: bool,
}

impl Default for Effort {
    /// A minute in all.
    fn default() -> Self {
        Self {
            rounds: 9,
            repeats: 1 << 20,
            slow_down: false,
        }
    }
}

impl Effort {
    /// Less exact, in some seconds.
    pub const QUICK: Self = Self {
        rounds: 7,
        repeats: 1 << 16,
        slow_down: false,
    };
}

/// What is measured.
#[derive(Clone, Copy)]
enum Measured {
    /// The balancer.
    Balancer,
    /// What encapsulation takes at the least.
    Floor,
}

/// Entries of the flow table: twice the flows of the largest case.
const FLOWS: u32 = 1 << 21;
const MILLION: u32 = 1_000_000;
/// So many flows that none comes twice.
const ALWAYS_NEW: u32 = 1 << 30;
const PROGRAMS: &str = "PROGRAM";

/// A frame, and how often it comes as another flow.
pub(super) struct Case {
    pub(super) name: String,
    measured: Measured,
    frame: Vec<u8>,
    is_v6: bool,
    pub(super) flows: u32,
    /// Services with ports in a row, from 1,000 on, that the flows are spread over.
    pub(super) services: u32,
    action: XdpAction,
}

/// A wrapper for a case, and what was measured.
pub(super) struct Wrapped {
    case: Case,
    ebpf: Ebpf,
    /// What calls the trivial program, and what calls the one that is measured.
    wrappers: [ProgramFd; 2],
    with_target: Vec<f64>,
    with_trivial: Vec<f64>,
}

/// Measures all cases in turn, round by round, so that what disturbs a round disturbs all.
pub fn run(effort: Effort) -> Result<Figures> {
    let balancer = balancer()?;
    measure(effort, cases(), |_| Ok(&balancer))
}

/// Measures cases in turn, each with the balancer that `balancer` names for it.
pub(super) fn measure<'a>(
    effort: Effort,
    cases: Vec<Case>,
    balancer: impl Fn(&Case) -> Result<&'a Balancer>,
) -> Result<Figures> {
    let mut runner = Runner::default();
    let mut bench = Ebpf::load(object::BENCH).context("loading what measures")?;
    let (trivial, floor) = (
        loaded(&mut bench, "trivial")?,
        loaded(&mut bench, "encapsulate")?,
    );
    let mut cases = cases
        .into_iter()
        .map(|case| Wrapped::new(case, effort.slow_down))
        .collect::<Result<Vec<_>>>()?;
    let mut bare = Vec::new();
    let frame = v4(Protocol::Tcp).frame();
    for round in 0..=effort.rounds {
        let (_, nanoseconds) = runner.time(trivial.as_fd(), &frame, effort.repeats)?;
        // The first round fills caches and the flow table.
        if round > 0 {
            bare.push(f64::from(nanoseconds));
        }
        for case in &mut cases {
            let target = match case.case.measured {
                Measured::Balancer => balancer(&case.case)?.program_fd()?,
                Measured::Floor => &floor,
            };
            let repeats = effort.repeats.max(case.case.flows.min(2 * MILLION));
            case.measure(&mut runner, target, &trivial, repeats, round > 0)?;
        }
    }
    let bare = Figure::new(bare, "ns");
    let mut figures: Figures = cases
        .into_iter()
        .map(|wrapped| wrapped.figure(bare.min()))
        .collect();
    figures.insert("packet.trivial_tx".into(), bare);
    Ok(figures)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// A program of the object, once it is loaded.
fn loaded(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program = xdp(ebpf, name)?;
    program
        .load()
        .with_context(|| format!("the verifier refused {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

impl Wrapped {
    fn new(case: Case, slow_down: bool) -> Result<Self> {
        let mut start = [0_u16; 8];
        for (word, bytes) in start.iter_mut().zip(case.frame.as_chunks::<2>().0) {
            *word = u16::from_ne_bytes(*bytes);
        }
        let mut ebpf = EbpfLoader::new()
            .override_global("FLOWS", &case.flows, true)
            .override_global("IS_V6", &u32::from(case.is_v6), true)
            .override_global("SERVICES", &case.services, true)
            .override_global("START", &start, true)
            .load(object::BENCH)
            .context("loading what measures")?;
        let plain = loaded(&mut ebpf, "wrap")?;
        let with_target = if slow_down {
            loaded(&mut ebpf, "wrap_and_look_up")?
        } else {
            plain.try_clone()?
        };
        Ok(Self {
            case,
            ebpf,
            wrappers: [plain, with_target],
            with_target: Vec::new(),
            with_trivial: Vec::new(),
        })
    }

    fn measure(
        &mut self,
        runner: &mut Runner,
        target: &ProgramFd,
        trivial: &ProgramFd,
        repeats: u32,
        counts: bool,
    ) -> Result<()> {
        let [plain, wrapper] = &self.wrappers;
        for (program, wrap, action, samples) in [
            (trivial, plain, XdpAction::Tx, &mut self.with_trivial),
            (target, wrapper, self.case.action, &mut self.with_target),
        ] {
            let map = self.ebpf.map_mut(PROGRAMS).context("no map of programs")?;
            ProgramArray::try_from(map)?.set(0, program, 0)?;
            let (answer, nanoseconds) = runner.time(wrap.as_fd(), &self.case.frame, repeats)?;
            let answer = XdpAction::try_from(answer)?;
            ensure!(answer == action, "{}: {answer:?}", self.case.name);
            if counts {
                samples.push(nanoseconds.into());
            }
        }
        Ok(())
    }

    /// The samples without the wrapper's share; `bare` is the trivial program without it.
    fn figure(self, bare: f64) -> (String, Figure) {
        let wrapper = Figure::new(self.with_trivial, "ns").min() - bare;
        let samples = self.with_target.into_iter();
        let samples = samples.map(|sample| sample - wrapper).collect();
        (self.case.name, Figure::new(samples, "ns"))
    }
}

/// Services by port, each with a backend of its own.
const STEADY: u16 = 1_000;
const TRACKED: u16 = 1_001;
const L2: u16 = 1_002;
const GUE: u16 = 1_003;
const EMPTY: u16 = 1_004;
const NOT_OURS: u16 = 2_000;

fn balancer() -> Result<Balancer> {
    let mut balancer = Balancer::with_flows(FLOWS)?;
    for (port, mode) in [
        (STEADY, Mode::Ipip),
        (TRACKED, Mode::Ipip),
        (L2, Mode::L2),
        (GUE, Mode::Gue),
        (EMPTY, Mode::Ipip),
    ] {
        for (family, packet) in [(0, v4(Protocol::Tcp)), (1, v6(Protocol::Tcp))] {
            let index = u32::from(port - STEADY) * 2 + family + 1;
            let (source, address) = if family == 0 {
                ("10.0.0.2", "10.0.1.7")
            } else {
                ("fd00::2", "fd00:1::7")
            };
            let entry = BackendEntry {
                port: lb_common::gue::DEFAULT_PORT.to_be(),
                ..backend(mode, source, address)
            };
            balancer.set_backend(index, &entry)?;
            let slot = match port {
                TRACKED => Slot::tracked(index),
                EMPTY => Slot::steady(0),
                _ => Slot::steady(index),
            };
            for protocol in Protocol::ALL {
                let packet = Packet {
                    protocol,
                    ..packet.clone()
                };
                let table = index + 12 * u32::from(protocol == Protocol::Udp);
                balancer.add_service_of_slots(key(&packet, port), table, |_| slot)?;
            }
        }
    }
    Ok(balancer)
}

fn cases() -> Vec<Case> {
    let tcp = v4(Protocol::Tcp);
    let syn = Packet {
        flags: flag::SYN,
        ..tcp.clone()
    };
    let forwarded =
        |name: &str, packet: &Packet, port, flows| case(name, packet, port, flows, XdpAction::Tx);
    let mut cases = Vec::new();
    for flows in [1, 1_000, 64_000, MILLION] {
        let name = format!("tcp4.established.{flows}");
        cases.push(forwarded(&name, &tcp, STEADY, flows));
    }
    for flows in [1, MILLION] {
        cases.push(forwarded(&format!("tcp4.syn.{flows}"), &syn, STEADY, flows));
        let name = format!("tcp6.established.{flows}");
        cases.push(forwarded(&name, &v6(Protocol::Tcp), STEADY, flows));
    }
    cases.push(forwarded("udp4.1", &v4(Protocol::Udp), STEADY, 1));
    cases.push(forwarded("l2.tcp4.1", &tcp, L2, 1));
    cases.push(forwarded("gue.tcp4.1", &tcp, GUE, 1));
    cases.push(forwarded("gue.tcp6.1", &v6(Protocol::Tcp), GUE, 1));
    for flows in [1, 64_000, MILLION] {
        cases.push(forwarded(
            &format!("tracked.hit.{flows}"),
            &tcp,
            TRACKED,
            flows,
        ));
    }
    cases.push(forwarded("tracked.new", &syn, TRACKED, ALWAYS_NEW));
    let to_steady = |packet: &Packet| {
        let mut packet = packet.clone();
        packet.to.set_port(STEADY);
        packet
    };
    let error = icmp::error(&to_steady(&tcp));
    cases.push(Case {
        frame: error.frame(),
        ..case("icmp_error", &tcp, STEADY, 1, XdpAction::Tx)
    });
    cases.push(case("pass", &tcp, NOT_OURS, 1, XdpAction::Pass));
    cases.push(case("drop", &tcp, EMPTY, 1, XdpAction::Drop));
    cases.push(Case {
        measured: Measured::Floor,
        ..forwarded("encapsulate", &tcp, STEADY, 1)
    });
    cases
}

pub(super) fn case(name: &str, packet: &Packet, port: u16, flows: u32, action: XdpAction) -> Case {
    let mut packet = packet.clone();
    packet.to.set_port(port);
    // Frames of 64 bytes or a little more: every byte that is there is in a cache line that is touched anyway.
    packet.payload.truncate(6);
    Case {
        name: format!("packet.{name}"),
        measured: Measured::Balancer,
        frame: packet.frame(),
        is_v6: packet.to.is_ipv6(),
        flows,
        services: 1,
        action,
    }
}
