//! The interface that a packet leaves by: the one it came in on, or another of the node's.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{DevMapHash, HashMap},
    macros::btf_map,
};
use lb_common::{backend::NextHop, header::Mac, limits::MAX_EXITS, verdict::Verdict};
use lb_ebpf::packet::FrontMut;

#[btf_map]
static EXITS: DevMapHash<{ MAX_EXITS as usize }> = DevMapHash::new();

#[btf_map]
static EXIT_MACS: HashMap<u32, NextHop, { MAX_EXITS as usize }> = HashMap::new();

/// The way out of a packet that is sent on, as a word: 0, back through the interface that it came in on; else through another,
/// whose MAC this is, with [`ACROSS`]. The kernel knows which; it acts on that only if the program asks for it.
#[derive(Clone, Copy)]
pub struct Exit(u64);

const ACROSS: u64 = 1 << 63;
/// What [`across`] returns if there is no way.
const NOWHERE: u64 = 0;

/// The way from interface `from` to interface `to`.
#[inline(always)]
pub fn find(from: u32, to: u32) -> Result<Exit, Verdict> {
    way(from, to, across)
}

/// As [`find`], for who has little room on the stack.
#[inline(always)]
pub fn find_apart(from: u32, to: u32) -> Result<Exit, Verdict> {
    #[inline(never)]
    fn apart(to: u32) -> u64 {
        across(to)
    }
    way(from, to, apart)
}

#[inline(always)]
fn way(from: u32, to: u32, across: impl FnOnce(u32) -> u64) -> Result<Exit, Verdict> {
    if from == to {
        return Ok(Exit(0));
    }
    match across(to) {
        NOWHERE => Err(Verdict::DropWrongInterface),
        word => Ok(Exit(word)),
    }
}

/// The word of the way through another interface.
#[inline(always)]
fn across(to: u32) -> u64 {
    // SAFETY: the value is copied at once. A MAC that changes at this moment is read half old, half new, and spoils the
    // source of one frame.
    let own = unsafe { EXIT_MACS.get(to) }.copied();
    match (own, EXITS.redirect(to, 0)) {
        (Some(own), Ok(_)) => own.word() | ACROSS,
        (Some(_), Err(_)) | (None, _) => NOWHERE,
    }
}

impl Exit {
    /// Bytes of a frame before its source's MAC address: that of its destination.
    const SOURCE: usize = size_of::<Mac>();

    /// Gives the frame the source that it has to have on another interface. Returns what XDP is to do.
    #[inline(always)]
    pub fn leave(self, front: &mut FrontMut) -> Option<xdp_action::Type> {
        match self.0 {
            0 => Some(xdp_action::XDP_TX),
            own => {
                front.write_mac(Self::SOURCE, NextHop::words_of(own))?;
                Some(xdp_action::XDP_REDIRECT)
            }
        }
    }
}
