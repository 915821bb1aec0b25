//! Runs packets through the real XDP programs with BPF_PROG_TEST_RUN: the kernel's verifier, JIT and maps, no network.
//!
//! **Invariant.** Every program object is loaded with maps of its own, so tests run in parallel.

use crate::counters::Counters;
use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuValues, RingBuf,
        lpm_trie::Key, xdp::DevMapHash,
    },
    programs::{ProgramFd, SchedClassifier, Xdp},
    util::nr_cpus,
};
use lb_common::{
    backend::{BackendEntry, NextHop},
    decap, flow_set,
    flow_table::{FlowEntry, FlowKey},
    fragment::{FragmentEntry, FragmentKey},
    limits::SLOTS,
    maps,
    quic::{ServerEntry, ServerKey},
    rate::Answer,
    service::{PrefixKey, ServiceEntry, ServiceKey},
    service_bucket::ServiceBucket,
    slot::Slot,
    trace::{self, Event, Filter, Scratch},
};
use lb_userspace::dataplane::{Buckets, FlowTable, object};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    num::NonZeroUsize,
    os::fd::{AsFd as _, BorrowedFd},
    ptr::NonNull,
};

/// `lo`, on which every packet comes in unless a test says otherwise; test runs need an interface that exists.
pub const INTERFACE: u32 = 1;
/// Seed of the flow hash in all tests.
pub const SEED: u64 = 0x5eed_0f7e_57f1_0e55;

const SERVICES: u32 = 32;
/// Buckets of the services map.
pub const SERVICE_BUCKETS: u32 = ServiceBucket::count(2 * SERVICES);
const BACKENDS: u32 = 256;
const FLOWS: u32 = 1 << 14;
/// Bytes: room for some 90 events.
const EVENTS: u32 = 1 << 16;
const FRAGMENTS: u32 = 1 << 12;
/// BPF_F_MMAPABLE of the kernel's bpf.h: the program's inner maps have it, so ours must.
const MMAPABLE: u32 = 1 << 10;

/// What XDP does with a packet: values of `enum xdp_action` in the kernel's bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAction {
    /// XDP_DROP.
    Drop,
    /// XDP_PASS.
    Pass,
    /// XDP_TX.
    Tx,
    /// XDP_REDIRECT.
    Redirect,
}

impl TryFrom<u32> for XdpAction {
    type Error = anyhow::Error;

    fn try_from(value: u32) -> Result<Self> {
        match value {
            1 => Ok(Self::Drop),
            2 => Ok(Self::Pass),
            3 => Ok(Self::Tx),
            4 => Ok(Self::Redirect),
            other => {
                bail!("the program answered {other}, which is none of drop, pass, TX and redirect")
            }
        }
    }
}

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's answer.
    pub action: XdpAction,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// The balancer, loaded but not attached.
pub struct Balancer {
    ebpf: Ebpf,
    program: &'static str,
    flows: FlowTable,
}

impl Balancer {
    /// Loads the program with empty maps and logging off.
    pub fn load() -> Result<Self> {
        Self::with_flows(FLOWS)
    }

    /// Loads the program for jumbo frames with empty maps and logging off.
    pub fn for_jumbo_frames() -> Result<Self> {
        Self::of(maps::FRAGS_PROGRAM, FLOWS, trace::OFF)
    }

    /// Loads the program with a flow table of this many entries.
    pub fn with_flows(flows: u32) -> Result<Self> {
        Self::of(maps::PROGRAM, flows, trace::OFF)
    }

    /// Loads the program with maps for so many services and backends.
    pub fn with_limits(services: u32, backends: u32) -> Result<Self> {
        Self::sized(maps::PROGRAM, FLOWS, trace::OFF, services, backends)
    }

    /// Loads the program as one that traces ([`trace::TRACE`]) or explains ([`trace::EXPLAIN`]).
    pub fn looking(trace: u32) -> Result<Self> {
        Self::of(maps::PROGRAM, FLOWS, trace)
    }

    fn of(program: &'static str, flows: u32, trace: u32) -> Result<Self> {
        Self::sized(program, flows, trace, SERVICES, BACKENDS)
    }

    fn sized(
        program: &'static str,
        flows: u32,
        trace: u32,
        services: u32,
        backends: u32,
    ) -> Result<Self> {
        let buckets = ServiceBucket::count(2 * services);
        let mut ebpf = EbpfLoader::new()
            .override_global(maps::HASH_SEED, &SEED, true)
            .override_global(maps::LOG_LEVEL, &0_u8, true)
            .override_global(maps::TRACE, &trace, true)
            .map_max_entries(maps::EVENTS, EVENTS)
            .override_global(maps::SERVICE_MASK, &(buckets - 1), true)
            .map_max_entries(maps::SERVICES, buckets + 1)
            .map_max_entries(maps::SERVICE_PREFIXES, 2 * services)
            .map_max_entries(maps::SLOT_TABLES, services)
            .map_max_entries(maps::SERVICE_STATS, services)
            .map_max_entries(maps::BACKENDS, backends)
            .map_max_entries(maps::BACKEND_STATS, backends)
            .map_max_entries(maps::QUIC_SERVERS, backends)
            .map_max_entries(maps::FLOWS, 1 + flow_set::sets(flows))
            .map_max_entries(maps::FRAGMENTS, FRAGMENTS)
            .load(object::BALANCER)
            .context("loading the balancer")?;
        program_mut(&mut ebpf, program)?
            .load()
            .context("the verifier refused the balancer")?;
        let flows = FlowTable::open(ebpf.map(maps::FLOWS).context("no flow table")?)?;
        Ok(Self {
            ebpf,
            program,
            flows,
        })
    }

    /// Says what a program that traces is to record.
    pub fn set_filter(&mut self, filter: &Filter) -> Result<()> {
        let mut map: Array<_, Filter> =
            Array::try_from(map_mut(&mut self.ebpf, maps::TRACE_FILTER)?)?;
        Ok(map.set(0, filter, 0)?)
    }

    /// What a program that looks on has recorded since this was asked last.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let mut ring = RingBuf::try_from(map_mut(&mut self.ebpf, maps::EVENTS)?)?;
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            ensure!(
                bytes.len() == size_of::<Event>(),
                "an event of {} bytes",
                bytes.len()
            );
            // SAFETY: as many bytes are there; an event is plain data, valid for every bit pattern.
            events.push(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() });
        }
        Ok(events)
    }

    /// Events that were wanted and could not be recorded.
    pub fn lost_events(&self) -> Result<u64> {
        let map = self.ebpf.map(maps::TRACE_SCRATCH).context("no scratch")?;
        let map: PerCpuArray<_, Scratch> = PerCpuArray::try_from(map)?;
        Ok(map.get(&0, 0)?.iter().map(|cpu| cpu.lost).sum())
    }

    /// Writes a backend entry.
    pub fn set_backend(&mut self, index: u32, entry: &BackendEntry) -> Result<()> {
        let mut map: Array<_, BackendEntry> =
            Array::try_from(map_mut(&mut self.ebpf, maps::BACKENDS)?)?;
        Ok(map.set(index, entry.sealed(), 0)?)
    }

    /// Adds a service under `index` with a slot table in which `owner` says who owns each slot.
    pub fn add_service(
        &mut self,
        key: ServiceKey,
        index: u32,
        owner: impl Fn(u32) -> u32,
    ) -> Result<()> {
        self.add_service_of_slots(key, index, |slot| Slot::steady(owner(slot)))
    }

    /// Adds a service under `index` with a table of these slots, or gives the one that it has other slots.
    pub fn add_service_of_slots(
        &mut self,
        key: ServiceKey,
        index: u32,
        slot: impl Fn(u32) -> Slot,
    ) -> Result<()> {
        let outer = map_mut(&mut self.ebpf, maps::SLOT_TABLES)?;
        let mut tables: ArrayOfMaps<_, Array<MapData, u64>> = ArrayOfMaps::try_from(&mut *outer)?;
        tables.set(index, &Array::create(SLOTS, MMAPABLE)?, 0)?;
        // aya gives no descriptor of a map that it created, but one of a map that it finds.
        let tables: ArrayOfMaps<_, MapData> = ArrayOfMaps::try_from(&*outer)?;
        let words: Vec<u64> = (0..SLOTS).map(|number| slot(number).0).collect();
        fill(tables.get(&index, 0)?.fd().as_fd(), &words).context("filling a slot table")?;
        self.add_service_without_table(key, index)
    }

    /// Adds a service that has no slot table: a defect that the program must survive.
    pub fn add_service_without_table(&mut self, key: ServiceKey, index: u32) -> Result<()> {
        let flags = ServiceEntry::prefix_flags(key.prefix);
        let address = ServiceEntry { index: 0, flags };
        self.put_service(key.its_address(), address)?;
        self.put_service(key, ServiceEntry { index, flags })
    }

    /// Writes an entry of the services map, or of the map of prefixes.
    pub fn put_service(&mut self, key: ServiceKey, entry: ServiceEntry) -> Result<()> {
        let Some((bits, inner)) = key.in_prefixes() else {
            return self.services()?.put(&key, &entry);
        };
        let map = map_mut(&mut self.ebpf, maps::SERVICE_PREFIXES)?;
        let mut prefixes: LpmTrie<_, PrefixKey, ServiceEntry> = LpmTrie::try_from(map)?;
        prefixes.insert(&Key::new(bits, inner), entry, 0)?;
        // Once too often if it is there already: the program looks for nothing in vain.
        self.services()?.count_other(1)
    }

    /// Removes an entry of the services map or of the map of prefixes; a service's table stays.
    pub fn remove_service(&mut self, key: ServiceKey) -> Result<()> {
        let Some((bits, inner)) = key.in_prefixes() else {
            return self.services()?.remove(&key);
        };
        let map = map_mut(&mut self.ebpf, maps::SERVICE_PREFIXES)?;
        let mut prefixes: LpmTrie<_, PrefixKey, ServiceEntry> = LpmTrie::try_from(map)?;
        prefixes.remove(&Key::new(bits, inner))?;
        self.services()?.count_other(-1)
    }

    /// All services that have one address.
    pub fn service_entries(&self) -> Result<BTreeMap<ServiceKey, ServiceEntry>> {
        Ok(self.services()?.entries().collect())
    }

    fn services(&self) -> Result<Buckets> {
        Buckets::open(self.ebpf.map(maps::SERVICES).context("no services map")?)
    }

    /// Gives a backend a server ID.
    pub fn set_server(&mut self, key: &ServerKey, entry: &ServerEntry) -> Result<()> {
        let map = map_mut(&mut self.ebpf, maps::QUIC_SERVERS)?;
        let mut servers: HashMap<_, ServerKey, ServerEntry> = HashMap::try_from(map)?;
        Ok(servers.insert(key, entry, 0)?)
    }

    /// Takes a server ID away.
    pub fn remove_server(&mut self, key: &ServerKey) -> Result<()> {
        let map = map_mut(&mut self.ebpf, maps::QUIC_SERVERS)?;
        let mut servers: HashMap<_, ServerKey, ServerEntry> = HashMap::try_from(map)?;
        Ok(servers.remove(key)?)
    }

    /// Everything that is known of fragments.
    pub fn fragments(&self) -> Result<BTreeMap<FragmentKey, FragmentEntry>> {
        let map = self.ebpf.map(maps::FRAGMENTS);
        let map = map.context("the object has no fragments map")?;
        let fragments: HashMap<_, FragmentKey, FragmentEntry> = HashMap::try_from(map)?;
        Ok(fragments.iter().collect::<Result<_, _>>()?)
    }

    /// Puts an entry into the fragments map.
    pub fn set_fragment(&mut self, key: &FragmentKey, entry: &FragmentEntry) -> Result<()> {
        let map = map_mut(&mut self.ebpf, maps::FRAGMENTS)?;
        let mut fragments: HashMap<_, FragmentKey, FragmentEntry> = HashMap::try_from(map)?;
        Ok(fragments.insert(key, entry, 0)?)
    }

    /// Removes an entry that is in the fragments map.
    pub fn remove_fragment(&mut self, key: &FragmentKey) -> Result<()> {
        let map = map_mut(&mut self.ebpf, maps::FRAGMENTS)?;
        let mut fragments: HashMap<_, FragmentKey, FragmentEntry> = HashMap::try_from(map)?;
        Ok(fragments.remove(key)?)
    }

    /// Fills the buckets of answers of every CPU, or empties them for as long as the program is there.
    pub fn set_answers(&mut self, given: bool) -> Result<()> {
        let map = map_mut(&mut self.ebpf, maps::ANSWERS)?;
        let mut buckets: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        // A bucket is the moment up to which answers are paid for.
        let bucket = if given { 0 } else { u64::MAX / 2 };
        for answer in 0..Answer::COUNT {
            let cpus = vec![bucket; nr_cpus().map_err(|(_, error)| error)?];
            buckets.set(answer, PerCpuValues::try_from(cpus)?, 0)?;
        }
        Ok(())
    }

    /// Changes one slot of a service that has a table.
    pub fn set_slot(&mut self, index: u32, number: u32, slot: Slot) -> Result<()> {
        let outer = map_mut(&mut self.ebpf, maps::SLOT_TABLES)?;
        let tables: ArrayOfMaps<_, Array<MapData, u64>> = ArrayOfMaps::try_from(outer)?;
        Ok(tables.get(&index, 0)?.set(number, slot.0, 0)?)
    }

    /// Lets packets be redirected to an interface that exists, and whose MAC is taken to be this.
    pub fn set_exit(&mut self, interface: u32, mac: [u8; 6]) -> Result<()> {
        self.set_exit_mac(interface, mac)?;
        self.set_exit_device(interface)
    }

    /// Half of [`Balancer::set_exit`]: the MAC.
    pub fn set_exit_mac(&mut self, interface: u32, mac: [u8; 6]) -> Result<()> {
        let mut macs: HashMap<_, u32, NextHop> =
            HashMap::try_from(map_mut(&mut self.ebpf, maps::EXIT_MACS)?)?;
        Ok(macs.insert(interface, NextHop::new(mac), 0)?)
    }

    /// The other half: the interface.
    pub fn set_exit_device(&mut self, interface: u32) -> Result<()> {
        let mut exits = DevMapHash::try_from(map_mut(&mut self.ebpf, maps::EXITS)?)?;
        Ok(exits.insert(interface, interface, None, 0)?)
    }

    /// The flow table, as the daemon uses it.
    pub const fn flow_table(&self) -> &FlowTable {
        &self.flows
    }

    /// What the flow table knows of a flow.
    pub fn flow(&self, key: &FlowKey) -> Result<Option<FlowEntry>> {
        self.flows.get(key)
    }

    /// Everything that the flow table knows.
    pub fn flows(&self) -> Result<BTreeMap<FlowKey, FlowEntry>> {
        let mut flows = BTreeMap::new();
        let mut twice = None;
        self.flows.scan(&mut |key, entry| {
            if flows.insert(*key, *entry).is_some() {
                twice = Some(*key);
            }
        });
        ensure!(twice.is_none(), "{twice:?} has two entries");
        Ok(flows)
    }

    /// Puts an entry into the flow table.
    pub fn set_flow(&mut self, key: &FlowKey, entry: &FlowEntry) -> Result<()> {
        ensure!(
            self.flows.insert(key, entry)?,
            "no place is free for {key:?}"
        );
        Ok(())
    }

    /// Removes an entry that is in the flow table.
    pub fn remove_flow(&mut self, key: &FlowKey) -> Result<()> {
        ensure!(self.flows.remove(&[*key])? == 1, "{key:?} is not known");
        Ok(())
    }

    /// All counters.
    pub fn counters(&self) -> Result<Counters> {
        Counters::read(&self.ebpf)
    }

    /// Sends a frame through the program as if it came in on [`INTERFACE`].
    pub fn run(&self, frame: &[u8]) -> Result<Outcome> {
        run(program(&self.ebpf, self.program)?, frame)
    }

    /// Sends a frame through the program and says which counters moved as well.
    pub fn run_counted(&self, frame: &[u8]) -> Result<(Outcome, Counters)> {
        let before = Counters::read(&self.ebpf)?;
        let outcome = self.run(frame)?;
        Ok((outcome, Counters::read(&self.ebpf)?.since(&before)))
    }

    /// The program, for who runs it with a call of his own.
    pub fn program_fd(&self) -> Result<&ProgramFd> {
        Ok(program(&self.ebpf, self.program)?.fd()?)
    }
}

/// The decapsulator, loaded but not attached.
pub struct Decapsulator {
    ebpf: Ebpf,
}

/// For which packets a decapsulator is; empty lists: for all.
#[derive(Clone, Debug, Default)]
pub struct DecapRules {
    /// Outer destinations.
    pub hosts: Vec<IpAddr>,
    /// Prefixes of outer sources: bits and bytes of the IPv4-mapped address.
    pub sources: Vec<(u32, [u8; 16])>,
    /// Inner destinations.
    pub vips: Vec<IpAddr>,
    /// Whether packets are handed on.
    pub second_chance: bool,
}

impl Decapsulator {
    /// Loads the programs, for all packets.
    pub fn load() -> Result<Self> {
        Self::with_rules(&DecapRules::default())
    }

    /// Loads the programs, for some packets.
    pub fn with_rules(rules: &DecapRules) -> Result<Self> {
        let check = |bit, wanted| if wanted { bit } else { 0 };
        let checks = check(decap::CHECK_HOST, !rules.hosts.is_empty())
            | check(decap::CHECK_SOURCE, !rules.sources.is_empty())
            | check(decap::CHECK_VIP, !rules.vips.is_empty())
            | check(decap::SECOND_CHANCE, rules.second_chance);
        let mut ebpf = EbpfLoader::new()
            .override_global(decap::CHECKS, &checks, true)
            .load(object::DECAP)
            .context("loading the decapsulator")?;
        program_mut(&mut ebpf, decap::XDP_PROGRAM)?
            .load()
            .context("the verifier refused the decapsulator")?;
        let program = ebpf.program_mut(decap::TC_PROGRAM);
        let program: &mut SchedClassifier = program.context("no program for tc")?.try_into()?;
        program.load().context("the verifier refused it for tc")?;
        let mut addresses: HashMap<_, decap::LocalKey, u8> =
            HashMap::try_from(map_mut(&mut ebpf, decap::ADDRESSES)?)?;
        for (kind, list) in [
            (decap::OF_HOST, &rules.hosts),
            (decap::OF_SERVICE, &rules.vips),
        ] {
            for address in list {
                let address = (*address).into();
                addresses.insert(decap::LocalKey { address, kind }, 0, 0)?;
            }
        }
        let mut sources: LpmTrie<_, [u8; 16], u8> =
            LpmTrie::try_from(map_mut(&mut ebpf, decap::SOURCES)?)?;
        for (bits, bytes) in &rules.sources {
            sources.insert(&Key::new(*bits, *bytes), 0, 0)?;
        }
        Ok(Self { ebpf })
    }

    /// Sends a frame through the XDP program.
    pub fn run(&self, frame: &[u8]) -> Result<Outcome> {
        run(program(&self.ebpf, decap::XDP_PROGRAM)?, frame)
    }

    /// Sends a frame through the XDP program and says under which reason it was counted.
    pub fn run_counted(&self, frame: &[u8]) -> Result<(Outcome, Vec<decap::Reason>)> {
        let before = self.counts()?;
        let outcome = self.run(frame)?;
        Ok((outcome, self.moved(&before)?))
    }

    /// Sends a frame through the program for traffic control. Returns its answer (`TC_ACT_*`), the frame, and under which
    /// reason it was counted.
    pub fn run_tc(&self, frame: &[u8]) -> Result<(u32, Vec<u8>, Vec<decap::Reason>)> {
        let before = self.counts()?;
        let program = self.ebpf.program(decap::TC_PROGRAM);
        let program: &SchedClassifier = program.context("no program for tc")?.try_into()?;
        let mut out = vec![0; frame.len() + 96];
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out, self.moved(&before)?))
    }

    fn counts(&self) -> Result<Vec<u64>> {
        let map = self.ebpf.map(decap::COUNTS).context("no counts")?;
        let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map)?;
        let count = |reason: &decap::Reason| -> Result<u64> {
            Ok(counts.get(&(*reason as u32), 0)?.iter().sum())
        };
        decap::Reason::ALL.iter().map(count).collect()
    }

    fn moved(&self, before: &[u64]) -> Result<Vec<decap::Reason>> {
        let after = self.counts()?;
        let each = decap::Reason::ALL.into_iter().zip(after.iter().zip(before));
        Ok(each
            .flat_map(|(reason, (after, before))| {
                std::iter::repeat_n(reason, (after - before) as usize)
            })
            .collect())
    }
}

/// Stores `words` in an array map through its memory: one call of the kernel instead of 65,537.
fn fill(map: BorrowedFd<'_>, words: &[u64]) -> Result<()> {
    let length = NonZeroUsize::new(size_of_val(words)).context("nothing to store")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice, of a map that holds as many words; nobody else
    // has it, and it is gone before this function returns.
    unsafe {
        let base = mmap(None, length, protection, MapFlags::MAP_SHARED, map, 0)?;
        base.cast::<u64>()
            .copy_from_nonoverlapping(NonNull::from(&words[0]), words.len());
        munmap(base, length.get())?;
    }
    Ok(())
}

fn run(program: &Xdp, frame: &[u8]) -> Result<Outcome> {
    // Room for the largest outer header with a second owner.
    let mut out = vec![0; frame.len() + 96];
    let context = xdp_md(frame.len());
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        })
        .with_context(|| format!("running a frame of {} bytes", frame.len()))?;
    out.truncate(result.data_size_out as usize);
    let action = result.return_value.try_into()?;
    Ok(Outcome { action, frame: out })
}

/// `struct xdp_md` of the kernel's bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
fn xdp_md(length: usize) -> Vec<u8> {
    let fields: [u32; 6] = [0, length as u32, 0, INTERFACE, 0, 0];
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    let program = ebpf
        .program(name)
        .with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn program_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name)
        .with_context(|| format!("the object has no map {name}"))
}
