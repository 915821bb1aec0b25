//! Fixed sizes and the bounds of configurable ones.

/// Slots in a service's table: M of the Maglev paper (section 3.4), a prime, 2^16 + 1.
pub const SLOTS: u32 = 65_537;

/// Highest backend index a slot can name (24 bits). Index 0 means "no backend".
pub const MAX_BACKEND_INDEX: u32 = (1 << 24) - 1;

/// Services a node can hold unless its configuration says otherwise. A service's table is allocated when the
/// service is added (0.5 MiB each), so this bound costs next to nothing by itself.
pub const DEFAULT_SERVICES: u32 = 1_024;

/// Backend entries a node can hold unless its configuration says otherwise (64 bytes each).
pub const DEFAULT_BACKENDS: u32 = 16_384;

/// Upper bound of `limits.services`.
pub const MAX_SERVICES: u32 = 65_536;

/// Upper bound of `limits.backends`: 1 Mi entries are 64 MiB.
pub const MAX_BACKENDS: u32 = 1 << 20;

/// Highest weight of a backend. Weight 0 keeps a backend configured without giving it slots.
pub const MAX_WEIGHT: u16 = 1_000;

/// Flows that a node's flow table is made for unless its configuration says otherwise. All of it is allocated at the start, some
/// 170 bytes a flow.
pub const DEFAULT_FLOWS: u32 = 1 << 18;

/// Lower bound of `limits.flows`: less would save no memory to speak of.
pub const MIN_FLOWS: u32 = 1 << 10;

/// Upper bound of `limits.flows`.
pub const MAX_FLOWS: u32 = 1 << 24;

/// Most interfaces that a node balances on, and so that packets can be redirected to.
pub const MAX_EXITS: u32 = 256;
/// Datagrams whose later fragments are known. All are allocated at the start, some 110 bytes each. Fragments follow one
/// another within milliseconds, so this is enough for hundreds of thousands of datagrams a second.
pub const FRAGMENTS: u32 = 1 << 15;

const _: () = assert!(MAX_BACKENDS <= MAX_BACKEND_INDEX);
