//! The same program once more, loaded to look on: beside the attached one with the maps it forwards by.
//!
//! **Invariant.** Loading changes nothing: maps that the program would write to are its own, unless it is to take the
//! attached one's place.

use super::{
    aya::Settings,
    loader::{self, Loaded},
    pins::Generation,
};
use anyhow::{Context as _, Result};
use aya::{
    TestRun as _, TestRunOptions,
    maps::{Array, MapData, PerCpuArray, RingBuf},
};
use lb_common::{
    maps,
    trace::{self, Event, Filter, Scratch},
};
use std::os::fd::{AsFd as _, OwnedFd};

/// Room for events of one packet.
const ONE: u32 = 4_096;
/// Room for some 1,500 events.
const MANY: u32 = 1 << 20;
/// The largest outer headers, and more.
const GROWTH: usize = 128;
/// Shortest frame that the kernel runs: an Ethernet header.
pub const SHORTEST: usize = 14;
/// What to do when a program cannot be loaded.
const HINT: &str = "Linux 5.18 or newer is needed for this";

/// What loads the program to look on; can be sent to another thread, as the verifier takes its time.
#[derive(Clone, Debug)]
pub struct Loader {
    pub(super) settings: Settings,
    pub(super) generation: Generation,
}

impl Loader {
    /// Loads the program that explains. It is never attached.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn explainer(&self) -> Result<Explainer> {
        let mut loader =
            loader::with_pins(&self.settings, &self.generation, &maps::SHARED_TO_EXPLAIN);
        loader.override_global(maps::TRACE, &trace::EXPLAIN, true);
        loader.map_max_entries(maps::EVENTS, ONE);
        // What is counted is looked at by nobody.
        loader.map_max_entries(maps::SERVICE_STATS, 1);
        loader.map_max_entries(maps::BACKEND_STATS, 1);
        let mut loaded = loader::load_program(&mut loader, &self.settings).context(HINT)?;
        let events = RingBuf::try_from(loader::take(&mut loaded.ebpf, maps::EVENTS)?)?;
        Ok(Explainer { loaded, events })
    }

    /// Loads the program that traces what `filter` wants, to take the attached one's place.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn tracer(&self, filter: &Filter) -> Result<Tracer> {
        let mut loader = loader::with_pins(&self.settings, &self.generation, &maps::ALL);
        loader.override_global(maps::TRACE, &trace::TRACE, true);
        loader.map_max_entries(maps::EVENTS, MANY);
        let mut loaded = loader::load_program(&mut loader, &self.settings).context(HINT)?;
        let mut filters: Array<MapData, Filter> =
            Array::try_from(loader::take(&mut loaded.ebpf, maps::TRACE_FILTER)?)?;
        filters.set(0, filter, 0)?;
        let events = RingBuf::try_from(loader::take(&mut loaded.ebpf, maps::EVENTS)?)?;
        let scratch = PerCpuArray::try_from(loader::take(&mut loaded.ebpf, maps::TRACE_SCRATCH)?)?;
        Ok(Tracer {
            loaded,
            events,
            scratch,
        })
    }
}

/// What became of a packet that was explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// What the stages found.
    pub event: Event,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// The program that explains.
pub struct Explainer {
    loaded: Loaded,
    events: RingBuf<MapData>,
}

impl Explainer {
    /// Runs a frame as if it had come in on the interface with this index, in this network namespace.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run(&mut self, frame: &[u8], interface: u32) -> Result<Explained> {
        while self.events.next().is_some() {}
        let mut out = vec![0; frame.len() + GROWTH];
        // `struct xdp_md` of the kernel's bpf.h: data, data_end, data_meta, ingress_ifindex, and two more.
        let length = u32::try_from(frame.len()).context("the frame is too long")?;
        let fields = [0, length, 0, interface, 0, 0];
        let context: Vec<u8> = fields
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect();
        let result = self
            .loaded
            .program()?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .with_context(|| {
                format!(
                    "the kernel does not run a frame of {length} bytes on interface index {interface}; it runs 14 to \
                     some 3,500 bytes, on interfaces that exist"
                )
            })?;
        out.truncate(result.data_size_out as usize);
        let event = self
            .events
            .next()
            .and_then(|bytes| event(&bytes))
            .context("the program ran and recorded nothing, which is a defect")?;
        Ok(Explained { event, frame: out })
    }
}

/// The program that traces.
pub struct Tracer {
    loaded: Loaded,
    events: RingBuf<MapData>,
    scratch: PerCpuArray<MapData, Scratch>,
}

impl Tracer {
    /// The next event that has come, if there is one.
    pub fn take(&mut self) -> Option<Event> {
        self.events.next().and_then(|bytes| event(&bytes))
    }

    /// Events that were over the limit, or that the ring buffer had no room for.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.scratch.get(&0, 0)?.iter().map(|cpu| cpu.lost).sum())
    }

    /// The program, to be attached: a descriptor and its id.
    pub(super) fn program(&mut self) -> Result<(OwnedFd, u32)> {
        let program = self.loaded.program()?;
        let fd = program.fd()?.as_fd().try_clone_to_owned()?;
        Ok((fd, program.info()?.id()))
    }
}

/// The event in an element of the ring buffer.
fn event(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: as many bytes are there; an event is plain data, valid for every bit pattern.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}
