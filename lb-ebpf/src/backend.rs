//! The backends array: where and how a backend's packets are sent.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use lb_common::{
    address::Address,
    backend::{BackendEntry, Mode, NextHop},
    header::{EndsV4, Mac},
    limits::DEFAULT_BACKENDS,
    mtu,
    verdict::Verdict,
};
use lb_ebpf::verifier;

// Memory-mappable arrays start on a page, so each entry is one cache line, as its type promises.
#[btf_map]
static BACKENDS: Array<BackendEntry, { DEFAULT_BACKENDS as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

/// A backend that can be sent to. What not every packet needs is read from its entry when it is needed: kept, it would have to
/// be kept on the stack.
pub struct Backend {
    /// How, if that is a [`Mode`].
    mode: u8,
    /// MAC of the next hop, as the word that it was read as.
    next_hop: u64,
    /// The interface behind which the next hop is.
    pub interface: u32,
    entry: *const BackendEntry,
}

impl Backend {
    /// How.
    #[inline(always)]
    pub fn mode(&self) -> Option<Mode> {
        Mode::from_u8(self.mode)
    }

    /// MAC of the next hop. Each caller has it from the word: what several had would be on the stack for all.
    #[inline(always)]
    pub fn next_hop(&self) -> Mac {
        let word = verifier::hide(self.next_hop);
        // SAFETY: the rest of the word is zero in every entry: `NextHop::zero`.
        unsafe { core::hint::assert_unchecked(u64::from_le(word) >> 48 == 0) };
        NextHop::words_of(word)
    }

    /// Outer destination.
    #[inline(always)]
    pub fn address(&self) -> Address {
        // SAFETY: as in `get`.
        unsafe { (*self.entry).address }
    }

    /// Whether [`Backend::plain_ends`] are those of its packets.
    #[inline(always)]
    pub fn has_plain_ends(&self) -> bool {
        // SAFETY: as in `get`.
        unsafe { (*self.entry).sum != 0 }
    }

    /// Outer source and destination if both are IPv4 and the same for all packets.
    #[inline(always)]
    pub fn plain_ends(&self) -> EndsV4 {
        // SAFETY: as in `get`.
        let entry = unsafe { &*self.entry };
        EndsV4 {
            source: entry.outer_source.v4_word(),
            destination: entry.address.v4_word(),
            sum: entry.sum.into(),
        }
    }

    /// Outer source and destination if both are IPv4 and the source has the flow's entropy.
    #[inline(always)]
    pub fn entropic_ends(&self, flow_hash: u64) -> Option<EndsV4> {
        // SAFETY: as in `get`.
        let (source, destination, flags) = unsafe {
            let entry = &*self.entry;
            (entry.outer_source, entry.address, entry.flags)
        };
        let is_entropic = flags & BackendEntry::ENTROPY != 0;
        (is_entropic && source.is_v4() && destination.is_v4()).then(|| {
            let source = BackendEntry::entropic_v4(source.v4_word(), flow_hash);
            EndsV4::new(source, destination.v4_word())
        })
    }

    /// Whether [`Backend::ends_v6`] can be those of its packets: it must be, if no others are.
    #[inline(always)]
    pub fn check_ends_v6(&self) -> Result<(), Verdict> {
        // SAFETY: as in `get`.
        let entry = unsafe { &*self.entry };
        if entry.outer_source.is_v4() || entry.address.is_v4() {
            return Err(Verdict::DropBadState);
        }
        Ok(())
    }

    /// Outer source and destination if both are IPv6; the source has the flow's entropy if the entry wants that.
    #[inline(always)]
    pub fn ends_v6(&self, flow_hash: u64) -> (Address, Address) {
        // SAFETY: as in `get`.
        let entry = unsafe { &*self.entry };
        let (source, destination) = (entry.outer_source, entry.address);
        if entry.flags & BackendEntry::ENTROPY == 0 {
            (source, destination)
        } else {
            (BackendEntry::entropic_v6(source, flow_hash), destination)
        }
    }

    /// Outer destination port of mode `gue`, network order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        // SAFETY: as in `get`.
        unsafe { (*self.entry).port }
    }

    /// Largest IP packet that the way takes, outer header included.
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        // SAFETY: as in `get`.
        unsafe { (*self.entry).mtu }
    }

    /// Largest IP packet that can be sent to it, without what its mode adds.
    #[inline(always)]
    pub fn inner_mtu(&self) -> u16 {
        // Only what has a mode has been found too large.
        let mode = self.mode().unwrap_or(Mode::L2);
        mtu::inner(self.mtu(), mode, self.address().is_v4())
    }
}

/// The backend with this index, if its entry is in use and its next hop is known.
#[inline(always)]
pub fn get(index: u32) -> Result<Backend, Verdict> {
    let entry = BACKENDS.get_ptr(index).ok_or(Verdict::DropBadState)?;
    // SAFETY: an element of an array map stays where it is while the program runs. The daemon may change the fields
    // that BackendEntry's invariant names: the next hop is read as the one word it is written as, and is none while the rest
    // changes. A packet that has read it just before may get an outer source that is torn, or not the one of the sum, so that
    // its outer checksum is wrong and it is lost: one packet on each CPU, and nothing else.
    let (mode, word, interface) = unsafe {
        let word = (&raw const (*entry).next_hop).cast::<u64>().read_volatile();
        ((*entry).mode, word, (*entry).interface)
    };
    if word == 0 {
        let _ = Mode::from_u8(mode).ok_or(Verdict::DropBadState)?;
        return Err(Verdict::DropNoNextHop);
    }
    Ok(Backend {
        mode,
        next_hop: word,
        interface,
        entry,
    })
}

/// Whether flows that were recorded for this use of an index still go there: it is in use, by the same backend, and its
/// flows have not been given up.
#[inline(always)]
pub fn keeps_flows(index: u32, generation: u32) -> bool {
    let Some(entry) = BACKENDS.get_ptr(index) else {
        return false;
    };
    // SAFETY: as in `get`; each field is read on its own, and an entry that is cleared meanwhile is one that `get` refuses.
    let (mode, flags, current) = unsafe { ((*entry).mode, (*entry).flags, (*entry).generation) };
    Mode::from_u8(mode).is_some() && flags & BackendEntry::LOST == 0 && current == generation
}

/// The generation of an entry in use, to be recorded with its flows.
#[inline(always)]
pub fn generation(index: u32) -> Result<u32, Verdict> {
    let entry = BACKENDS.get_ptr(index).ok_or(Verdict::DropBadState)?;
    // SAFETY: as in `get`.
    let (mode, generation) = unsafe { ((*entry).mode, (*entry).generation) };
    let _ = Mode::from_u8(mode).ok_or(Verdict::DropBadState)?;
    Ok(generation)
}

/// The second owner that a packet for `first` names: `second`, if packets for it could be handed on to it. Both are in
/// mode `gue`, their addresses are of one family, and `second` has a next hop and its flows are not given up. Else 0,
/// nobody.
///
/// For rare packets only.
#[inline(always)]
pub fn second(first: u32, second: u32) -> u32 {
    let (Some(first), Some(entry)) = (BACKENDS.get_ptr(first), BACKENDS.get_ptr(second)) else {
        return 0;
    };
    // SAFETY: as in `get`.
    let (first, mode, flags, address, port, word) = unsafe {
        (
            ((*first).mode, (*first).address),
            (*entry).mode,
            (*entry).flags,
            (*entry).address,
            (*entry).port,
            (&raw const (*entry).next_hop).cast::<u64>().read_volatile(),
        )
    };
    // Without a branch: it is one state to the verifier.
    let modes = (first.0 ^ Mode::Gue as u8) | (mode ^ Mode::Gue as u8);
    let families = is_set(first.1.distance_to_v4()) ^ is_set(address.distance_to_v4());
    let is_there = is_set(word) & is_set(port.into()) & !u64::from(flags & BackendEntry::LOST);
    let is_wrong = is_set(u64::from(modes) | families | (is_there ^ 1));
    second & (is_wrong as u32).wrapping_sub(1)
}

/// 1 if any bit is set, else 0; calculated, as BPF knows no other way to make a number of a condition than a branch.
#[inline(always)]
fn is_set(bits: u64) -> u64 {
    verifier::hide(bits | bits.wrapping_neg()) >> 63
}

/// Address and UDP port, in network order, by which a second owner is named.
#[inline(always)]
pub fn name(index: u32) -> Option<(Address, u16)> {
    let entry = BACKENDS.get_ptr(index)?;
    // SAFETY: as in `get`.
    Some(unsafe { ((*entry).address, (*entry).port) })
}
