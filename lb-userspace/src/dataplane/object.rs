//! The eBPF programs, compiled by `build.rs` and carried inside the binary. aya parses them in place, so they are
//! aligned as ELF files have to be.

/// The balancer: XDP program `guideway` and its maps.
pub static BALANCER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf"));

/// The decapsulator for backends whose kernel has no tunnel interface: XDP program `decap`, and `pass`,
/// which only passes.
pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

/// What measures XDP programs: `wrap`, `trivial` and `encapsulate`. The daemon has no use for it, and the linker leaves it out.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));

/// Both ends of a wire to measure on: `generate`, `count` and `count_tc`. Left out likewise.
pub static LIVE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/live"));
