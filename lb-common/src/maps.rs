//! Names of programs, maps and load-time constants in the eBPF object: the contract between `lb-ebpf` and its loader.

/// The XDP program that balances.
pub const PROGRAM: &str = "guideway";
/// The same for interfaces with jumbo frames, which come in several buffers: `xdp.frags`, Linux 5.18.
pub const FRAGS_PROGRAM: &str = "guideway_frags";
/// Memory-mappable array of [`crate::service_bucket::ServiceBucket`]: [`crate::service::ServiceKey`] ->
/// [`crate::service::ServiceEntry`]; a power of two of buckets, and one element before them.
pub const SERVICES: &str = "SERVICES";
/// Trie [`crate::service::PrefixKey`] -> [`crate::service::ServiceEntry`]: services of whole prefixes, and those prefixes;
/// as many as
/// [`SERVICES`] has room for.
pub const SERVICE_PREFIXES: &str = "SERVICE_PREFIXES";
/// Array of maps, service index -> memory-mappable array of [`crate::limits::SLOTS`] slot words (`u64`).
pub const SLOT_TABLES: &str = "SLOT_TABLES";
/// Array of [`crate::backend::BackendEntry`]; `limits.backends` entries, entry 0 unused.
pub const BACKENDS: &str = "BACKENDS";
/// Per-CPU array of `u64` packet counts, indexed by [`crate::verdict::Verdict`]. What is forwarded is counted in [`SERVICE_STATS`]; here
/// the daemon keeps how many packets were forwarded for services that are no more.
pub const VERDICTS: &str = "VERDICTS";
/// Per-CPU array of [`crate::stats::Counter`], indexed by service index.
pub const SERVICE_STATS: &str = "SERVICE_STATS";
/// Per-CPU array of [`crate::stats::Counter`], indexed by backend index.
pub const BACKEND_STATS: &str = "BACKEND_STATS";
/// Memory-mappable array of [`crate::flow_set::FlowSet`]: [`crate::flow_table::FlowKey`] -> [`crate::flow_table::FlowEntry`];
/// [`crate::flow_set::sets`] of `limits.flows`, and one element before them.
pub const FLOWS: &str = "FLOWS";
/// Per-CPU array of `u64` counts, indexed by [`crate::flow_table::FlowEvent`].
pub const FLOW_EVENTS: &str = "FLOW_EVENTS";
/// Device map (hash), interface index -> the interface: those that packets can be redirected to;
/// [`crate::limits::MAX_EXITS`] entries.
pub const EXITS: &str = "EXITS";
/// Hash map, interface index -> the interface's own MAC as a [`crate::backend::NextHop`]: the source of what is redirected to it.
pub const EXIT_MACS: &str = "EXIT_MACS";
/// LRU hash map [`crate::fragment::FragmentKey`] -> [`crate::fragment::FragmentEntry`];
/// [`crate::limits::FRAGMENTS`] entries.
pub const FRAGMENTS: &str = "FRAGMENTS";
/// Per-CPU array of `u64` token buckets ([`crate::rate`]), indexed by [`crate::rate::Answer`].
pub const ANSWERS: &str = "ANSWERS";
/// Hash map [`crate::quic::ServerKey`] -> [`crate::quic::ServerEntry`]; room for `limits.backends`.
pub const QUIC_SERVERS: &str = "QUIC_SERVERS";
/// Every map, in the order in which a loader should name them.
pub const ALL: [&str; 14] = [
    SERVICES,
    SERVICE_PREFIXES,
    SLOT_TABLES,
    BACKENDS,
    VERDICTS,
    SERVICE_STATS,
    BACKEND_STATS,
    FLOWS,
    FLOW_EVENTS,
    EXITS,
    EXIT_MACS,
    FRAGMENTS,
    ANSWERS,
    QUIC_SERVERS,
];

/// Maps that a program which explains shares with the one that forwards: it reads them and writes to none. All others it
/// has for itself, so that what it counts is nobody's traffic.
pub const SHARED_TO_EXPLAIN: [&str; 9] = [
    SERVICES,
    SERVICE_PREFIXES,
    SLOT_TABLES,
    BACKENDS,
    FLOWS,
    FRAGMENTS,
    EXITS,
    EXIT_MACS,
    QUIC_SERVERS,
];

/// Ring buffer of [`crate::trace::Event`]. Each loaded program has its own; that of the one which forwards stays empty.
pub const EVENTS: &str = "EVENTS";
/// Per-CPU array with one [`crate::trace::Scratch`], each program's own.
pub const TRACE_SCRATCH: &str = "TRACE_SCRATCH";
/// Array with one [`crate::trace::Filter`], each program's own.
pub const TRACE_FILTER: &str = "TRACE_FILTER";

/// Load-time constant `u32`: [`crate::trace::OFF`], [`crate::trace::TRACE`] or [`crate::trace::EXPLAIN`].
pub const TRACE: &str = "TRACE";

/// Load-time constant `u64`: seed of the flow hash.
pub const HASH_SEED: &str = "HASH_SEED";

/// Load-time constant `u32`: number of buckets in [`SERVICES`], less one.
pub const SERVICE_MASK: &str = "SERVICE_MASK";

/// Load-time constant `u8`: up to which level the program logs what it drops (aya-log's levels: 0 nothing, 4 debug).
/// A loader that does not want the log must set it to 0, and then the verifier deletes the logging code; unset, all
/// levels are on.
pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

/// Changes whenever the meaning of a map's bytes changes without its shape changing. Kept in the program's rodata
/// and in the pin directory's name, so that a daemon never adopts maps that it would misread.
///
/// Version 1 had steady slots only and no flow table; version 2 had neither flags of services nor mode `gue`. What they had
/// means the same. Up to version 3 [`SERVICES`] was a hash map of the kernel, up to version 4 [`FLOWS`] one with LRU. Up to version 5
/// entries of [`BACKENDS`] had no sum, and forwarded packets were counted in [`VERDICTS`] as well. Up to version 6 keys of IPv4 took three
/// words in [`SERVICES`], and the flags in slots were other bits.
pub const LAYOUT_VERSION: u32 = 7;
