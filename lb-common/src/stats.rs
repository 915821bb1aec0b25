//! Counter values.

/// Packets and bytes of a service or a backend on one CPU. Bytes are those of the frame as received.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, Ethernet header included, before encapsulation.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);
