//! Fragments: where the later ones of a datagram go, which have no ports.

use crate::address::Address;

/// Key of the fragments map: what the fragments of a datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address: a service's.
    pub destination: Address,
    /// Identification as it lies in the packet, network byte order: 16 bits of IPv4 (RFC 791), 32 of IPv6 (RFC 8200).
    pub id: u32,
    /// Protocol number of IPv4, widened, host byte order. 0 for IPv6, where a fragment may name another one than the first
    /// does, and where reassembly does not ask for it (RFC 8200, section 4.5).
    pub protocol: u32,
}

/// What the first fragment of a datagram told about the later ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentEntry {
    /// Flow hash of the datagram: outer headers of all its fragments have the same entropy.
    pub hash: u64,
    /// Index of the backend that got the first fragment; 0: nobody did, since the datagram is for no service.
    pub backend: u32,
    /// [`crate::backend::BackendEntry::generation`] of that backend then: an entry of an earlier use of the index counts for
    /// nothing.
    pub generation: u32,
    /// Index of the service that the fragments are counted for.
    pub service: u32,
    /// When the first fragment came: seconds of CLOCK_MONOTONIC, cut to 32 bits.
    pub seen: u32,
}

/// Later fragments follow an entry for this many seconds: identifications are used again, and a datagram that is not whole
/// by then never will be.
pub const FRAGMENT_SECONDS: u32 = 30;

impl FragmentEntry {
    /// Whether later fragments still follow the entry, at a moment in seconds of CLOCK_MONOTONIC.
    #[inline(always)]
    pub const fn is_fresh(&self, now: u32) -> bool {
        now.saturating_sub(self.seen) <= FRAGMENT_SECONDS
    }
}

const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<FragmentEntry>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_age() {
        let entry = FragmentEntry {
            seen: 1_000,
            ..FragmentEntry::default()
        };
        for (now, fresh) in [(999, true), (1_000, true), (1_030, true), (1_031, false)] {
            assert_eq!(entry.is_fresh(now), fresh, "{now}");
        }
    }
}
