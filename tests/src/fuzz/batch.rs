//! A batch: its packets one by one through the program and the model, then the counters, the flow table and what is known of
//! fragments.

use super::{
    BATCH, build,
    difference::{self, Difference},
    mutate,
    pool::Pool,
    world,
};
use crate::{
    counters::Counters,
    model::{Expected, Model},
    prog_run::{Balancer, XdpAction},
    runner::Runner,
    world::World,
};
use anyhow::{Result, bail};
use fastrand::Rng;
use lb_common::{
    flow_table::{FlowEntry, FlowKey},
    fragment::{FragmentEntry, FragmentKey},
    rate::ANSWERS_AT_ONCE,
    verdict::Action,
};
use lb_userspace::dataplane::clock;
use std::{collections::BTreeMap, os::fd::AsFd as _};

/// A flow table.
pub type Flows = BTreeMap<FlowKey, FlowEntry>;

/// What is known of fragments.
pub type Fragments = BTreeMap<FragmentKey, FragmentEntry>;

/// What a batch begins with.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The flow table.
    pub flows: Flows,
    /// What is known of fragments.
    pub fragments: Fragments,
    /// Whether all answers have been given.
    pub silent: bool,
}

/// The program and the model, side by side.
pub struct Bench<'a> {
    balancer: Balancer,
    model: Model,
    runner: Runner,
    pool: Pool,
    corpus: &'a [Vec<u8>],
}

impl<'a> Bench<'a> {
    /// Both, with the fuzzer's world; frames of `corpus` are mutated. `balancer` is empty.
    pub fn new(balancer: Balancer, corpus: &'a [Vec<u8>]) -> Result<Self> {
        Self::of(&world(), balancer, corpus)
    }

    /// Both, with this world.
    pub fn of(world: &World, balancer: Balancer, corpus: &'a [Vec<u8>]) -> Result<Self> {
        Ok(Self {
            balancer: world.install_in(balancer)?,
            model: Model::new(world),
            runner: Runner::default(),
            pool: Pool::new(world),
            corpus,
        })
    }

    /// The same program beside a model of another world, in which it must be found wrong.
    pub fn with_model_of(mut self, world: &World) -> Self {
        self.model = Model::new(world);
        self
    }

    /// Sends a batch; gives what it counted. An error describes the first difference.
    pub fn send(&mut self, seed: u64, batch: u64) -> Result<Counters> {
        // Seeds that differ by a bit give unlike numbers: fastrand scrambles what it draws, not what it starts with.
        let scrambled = seed ^ batch.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Rng::with_seed(scrambled);
        let start = self.pool.start(&mut random, seconds());
        self.reset(&start)?;
        let before = self.balancer.counters()?;
        let mut counted = Counters::default();
        let mut answers = 0;
        let mut frame = Vec::new();
        for number in 0..BATCH {
            self.draw(&mut random, &mut frame);
            let expected = self.model.packet(&frame, seconds());
            let fd = self.balancer.program_fd()?.as_fd();
            let (action, out) = self.runner.run(fd, &frame)?;
            if action != code(expected.action) || out != expected.frame {
                let found = format!("packet {number} of the batch");
                return Err(self.describe(&found, &frame, &start));
            }
            expected.count(frame.len(), &mut counted);
            if expected.verdict.action() == Action::Answer {
                answers += 1;
                if answers % (ANSWERS_AT_ONCE / 2) == 0 {
                    self.balancer.set_answers(!start.silent)?;
                }
            }
        }
        let real = self.balancer.counters()?.since(&before);
        let differing = self.differing()?;
        if real != counted || !differing.is_empty() {
            return Err(self.trace(scrambled, &start, &differing));
        }
        Ok(counted)
    }

    /// The next frame: built, mutated or noise.
    fn draw(&self, random: &mut Rng, frame: &mut Vec<u8>) {
        let other = &self.corpus[random.usize(..self.corpus.len())];
        match random.u8(..100) {
            0..4 => mutate::noise(random, frame),
            4..24 => {
                let fixture = &self.corpus[random.usize(..self.corpus.len())];
                frame.clone_from(fixture);
                mutate::mutate(random, other, frame);
            }
            choice => {
                let (flow, second) = (self.pool.flow(random), self.pool.flow(random));
                build::frame(random, &flow, &second, frame);
                if choice >= 90 {
                    mutate::mutate(random, other, frame);
                }
            }
        }
    }

    /// Lets both begin with this.
    fn reset(&mut self, start: &Start) -> Result<()> {
        for key in self.balancer.flows()?.keys() {
            self.balancer.remove_flow(key)?;
        }
        for key in self.balancer.fragments()?.keys() {
            self.balancer.remove_fragment(key)?;
        }
        for (key, entry) in &start.flows {
            self.balancer.set_flow(key, entry)?;
        }
        for (key, entry) in &start.fragments {
            self.balancer.set_fragment(key, entry)?;
        }
        self.balancer.set_answers(!start.silent)?;
        self.model.set_flows(&start.flows);
        self.model.set_fragments(&start.fragments);
        self.model.set_silent(start.silent);
        Ok(())
    }

    /// What is different in the flow table and in what is known of fragments.
    fn differing(&self) -> Result<Vec<String>> {
        let flows = self.model.differing_flows(&self.balancer.flows()?);
        let fragments = self.model.differing_fragments(&self.balancer.fragments()?);
        Ok([flows, fragments].concat())
    }

    /// Sends a batch again and finds the packet from which on counters or flows differ.
    fn trace(&mut self, scrambled: u64, start: &Start, differing: &[String]) -> anyhow::Error {
        match self.find(scrambled, start) {
            Ok(Some((number, frame))) => {
                let found = format!("packet {number} of the batch, in what it counts or leaves");
                self.describe(&found, &frame, start)
            }
            Ok(None) => anyhow::anyhow!(
                "counters or flows of a batch differ, but those of no packet in it when it is sent again: {differing:?}"
            ),
            Err(error) => error.context("tracing a difference"),
        }
    }

    fn find(&mut self, scrambled: u64, start: &Start) -> Result<Option<(u64, Vec<u8>)>> {
        let mut random = Rng::with_seed(scrambled);
        // Drawn again and dropped: what follows is to be drawn as it was.
        let _ = self.pool.start(&mut random, seconds());
        self.reset(start)?;
        let mut frame = Vec::new();
        for number in 0..BATCH {
            self.draw(&mut random, &mut frame);
            self.balancer.set_answers(!start.silent)?;
            if self.differs(&frame)?.is_some() {
                return Ok(Some((number, frame)));
            }
        }
        Ok(None)
    }

    /// What differs when a frame is sent now: action, bytes, counters, flow table, fragments.
    pub fn differs(&mut self, frame: &[u8]) -> Result<Option<Difference>> {
        let expected = self.model.packet(frame, seconds());
        let before = self.balancer.counters()?;
        let fd = self.balancer.program_fd()?.as_fd();
        let (action, out) = self.runner.run(fd, frame)?;
        let (action, out) = (action, out.to_vec());
        let counters = self.balancer.counters()?.since(&before);
        let tables = self.differing()?;
        let mut counted = Counters::default();
        expected.count(frame.len(), &mut counted);
        let same = action == code(expected.action) && out == expected.frame;
        if same && counted == counters && tables.is_empty() {
            return Ok(None);
        }
        Ok(Some(Difference {
            frame: frame.to_vec(),
            expected,
            counted,
            action,
            out,
            counters,
            tables,
        }))
    }

    /// Describes a difference at a frame, the smallest that shows it alone.
    fn describe(&mut self, found: &str, frame: &[u8], start: &Start) -> anyhow::Error {
        let alone = difference::shrink(frame, |frame| {
            self.reset(start)?;
            self.differs(frame)
        });
        match alone {
            Ok(Some(difference)) => anyhow::anyhow!("{found}: {difference}"),
            Ok(None) => anyhow::anyhow!(
                "{found}, but not when it is sent alone: {}",
                difference::decoded(frame)
            ),
            Err(error) => error.context(format!("{found}: {}", difference::decoded(frame))),
        }
    }

    /// Sends one frame with nothing known of flows or fragments; an error describes what differs.
    pub fn send_one(&mut self, frame: &[u8]) -> Result<Expected> {
        self.reset(&Start::default())?;
        match self.differs(frame)? {
            Some(difference) => bail!("{difference}"),
            None => {
                self.reset(&Start::default())?;
                Ok(self.model.packet(frame, seconds()))
            }
        }
    }
}

/// As `enum xdp_action` has it.
fn code(action: XdpAction) -> u32 {
    match action {
        XdpAction::Drop => 1,
        XdpAction::Pass => 2,
        XdpAction::Tx => 3,
        XdpAction::Redirect => 4,
    }
}

fn seconds() -> u32 {
    clock::seconds(clock::monotonic())
}
