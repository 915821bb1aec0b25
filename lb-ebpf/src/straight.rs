//! The straight way: plain packets to services that ask for nothing special, in steady slots. These are nearly all there are, and
//! what they need is a fraction of what the [`crate::pipeline`] can do.
//!
//! **Invariants.** It goes through the same stages as the pipeline, to one of three ends: the packet is forwarded, it is no service's,
//! or its slot has no backend. All else it leaves to the pipeline, uncounted and as it came. A program that looks on has no straight way: the
//! pipeline tells what it does.

use crate::{
    backend,
    forward::{self, Passenger},
    parse::{
        Tags,
        plain::{NotPlain, Plain},
    },
    pipeline::flow_hash,
    service::{self, Home},
    slot, stats, trace,
};
use aya_ebpf::bindings::{xdp_action, xdp_md};
use core::marker::PhantomData;
use lb_common::{
    flow::slot_of,
    header::{EthernetHeader, Inner, PlainV4, PlainV6},
    service::ServiceEntry,
    verdict::Verdict,
};
use lb_ebpf::packet::{Front, Header as _, Packet};

/// What has become of a packet.
pub enum Fate {
    /// It has been forwarded, or is no service's, and has been counted: XDP is to do this.
    Done(xdp_action::Type),
    /// Its slot has no backend. It has not been counted.
    Refused,
    /// The pipeline has it.
    Open,
}

/// The numbers that say that nothing is [`Fate::Done`]. Actions of XDP are below.
const OPEN: u64 = 8;
const REFUSED: u64 = 9;
const OTHER_FAMILY: u64 = 10;

/// Sends the packet to the backend of its flow, if that is straight.
#[inline(always)]
pub fn balance(context: *mut xdp_md) -> Fate {
    if !trace::is_off() {
        return Fate::Open;
    }
    let mut fate = v4(context);
    if fate < OPEN {
        return Fate::Done(fate as u32);
    }
    if fate == OTHER_FAMILY {
        fate = v6(context);
    }
    match fate {
        REFUSED => Fate::Refused,
        OPEN | OTHER_FAMILY => Fate::Open,
        action => Fate::Done(action as u32),
    }
}

#[inline(never)]
fn v4(context: *mut xdp_md) -> u64 {
    run::<PlainV4>(context)
}

#[inline(never)]
fn v6(context: *mut xdp_md) -> u64 {
    run::<PlainV6>(context)
}

#[inline(always)]
fn run<P: Plain>(context: *mut xdp_md) -> u64 {
    // What is not in the first buffer is not plain.
    let mut packet = Packet::of::<false>(context);
    match send::<P>(&mut packet) {
        Ok(action) => action.into(),
        Err(other) => other,
    }
}

/// Whether it is done, and else what is.
#[inline(always)]
fn send<P: Plain>(packet: &mut Packet) -> Result<xdp_action::Type, u64> {
    let front = packet.front(P::LENGTH).ok_or(OPEN)?;
    let length = match P::length(&front, packet) {
        Ok(length) => length,
        Err(NotPlain::OtherFamily) => return Err(OTHER_FAMILY),
        Err(NotPlain::Other) => return Err(OPEN),
    };
    let received = packet.length() as u64;
    let service = match service::at_home(&P::flow(&front).ok_or(OPEN)?) {
        Home::Service(service) => service,
        Home::Nobody => {
            stats::count_verdict(Verdict::PassNoService);
            return Ok(xdp_action::XDP_PASS);
        }
        Home::Elsewhere => return Err(OPEN),
    };
    if service.flags & (ServiceEntry::HASH | ServiceEntry::QUIC) != 0 {
        return Err(OPEN);
    }
    let mut hash = 0;
    let number = || {
        hash = P::flow(&front).map_or(0, |flow| flow_hash(P::IS_V4, &flow, 0));
        slot_of(hash)
    };
    let slot = slot::get(service.index, number).map_err(|_| OPEN)?;
    if slot.is_tracked() {
        return Err(OPEN);
    }
    let owner = slot.new_owner();
    if owner == 0 {
        return Err(REFUSED);
    }
    let backend = backend::get(owner).map_err(|_| OPEN)?;
    let straight = Straight::<P> {
        length,
        of: PhantomData,
    };
    let action = forward::send(packet, &straight, hash, &backend).map_err(|_| OPEN)?;
    stats::count_forwarded(service.index, owner, received);
    Ok(action)
}

/// A plain packet on its way. All but its length is read again where it is needed.
struct Straight<P> {
    length: u16,
    of: PhantomData<P>,
}

impl<P: Plain> Passenger for Straight<P> {
    const READ: usize = P::LENGTH - EthernetHeader::LENGTH;

    #[inline(always)]
    fn tags(&self) -> Tags {
        Tags::None
    }

    #[inline(always)]
    fn length(&self) -> u16 {
        self.length
    }

    #[inline(always)]
    fn inner(&self, front: &Front, offset: usize) -> Option<Inner> {
        P::inner(front, offset)
    }
}
