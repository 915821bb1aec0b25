//! The interface that a packet leaves by: the one it came in on, or another of the node's.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{DevMapHash, HashMap},
    macros::btf_map,
};
use lb_common::{backend::NextHop, header::Mac, limits::MAX_EXITS, verdict::Verdict};

#[btf_map]
static EXITS: DevMapHash<{ MAX_EXITS as usize }> = DevMapHash::new();

#[btf_map]
static EXIT_MACS: HashMap<u32, NextHop, { MAX_EXITS as usize }> = HashMap::new();

/// The way out of a packet that is sent on.
#[derive(Clone, Copy)]
pub enum Exit {
    /// Back through the interface that it came in on.
    Back,
    /// Through another, whose MAC this is. The kernel knows which; it acts on that only if the program asks for it.
    Across(Mac),
}

/// The way from interface `from` to interface `to`.
#[inline(always)]
pub fn find(from: u32, to: u32) -> Result<Exit, Verdict> {
    if from == to {
        return Ok(Exit::Back);
    }
    // SAFETY: the value is copied at once. A MAC that changes at this moment is read half old, half new, and spoils the
    // source of one frame.
    let own = unsafe { EXIT_MACS.get(to) }
        .copied()
        .ok_or(Verdict::DropWrongInterface)?;
    EXITS
        .redirect(to, 0)
        .map_err(|_| Verdict::DropWrongInterface)?;
    Ok(Exit::Across(own.words()))
}

impl Exit {
    /// The source MAC of the frame, which was sent to `destination`.
    #[inline(always)]
    pub fn source(self, destination: Mac) -> Mac {
        match self {
            Self::Back => destination,
            Self::Across(own) => own,
        }
    }

    /// What XDP is to do.
    #[inline(always)]
    pub fn action(self) -> xdp_action::Type {
        match self {
            Self::Back => xdp_action::XDP_TX,
            Self::Across(_) => xdp_action::XDP_REDIRECT,
        }
    }
}
