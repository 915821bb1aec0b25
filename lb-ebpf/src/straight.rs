//! The straight way: plain packets to services that ask for nothing special, in steady slots. These are nearly all there are, and
//! what they need is a fraction of what the [`crate::pipeline`] can do.
//!
//! **Invariants.** It goes through the same stages as the pipeline, to one of three ends: the packet is forwarded, it is no service's,
//! or its slot has no backend. All else it leaves to the pipeline, uncounted and as it came. A program that looks on has no straight way: the
//! pipeline tells what it does.

use crate::{
    backend::{self, Backend},
    exit,
    forward::{self, Described, Passenger, ipip, l2},
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
    backend::Mode,
    flow::slot_of,
    header::{EthernetHeader, Inner, PlainV4, PlainV6},
    service::ServiceEntry,
    service_bucket::ServiceBucket,
    verdict::Verdict,
};
use lb_ebpf::packet::{Front, Header, Packet};

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
    // What is not in the first buffer is not plain.
    match send::<PlainV4>(&mut Packet::of::<false>(context)) {
        Ok(action) => Fate::Done(action),
        Err(OTHER_FAMILY) => match v6(context) {
            REFUSED => Fate::Refused,
            OPEN | OTHER_FAMILY => Fate::Open,
            action => Fate::Done(action as u32),
        },
        Err(REFUSED) => Fate::Refused,
        Err(_) => Fate::Open,
    }
}

#[inline(never)]
fn v6(context: *mut xdp_md) -> u64 {
    match send::<PlainV6>(&mut Packet::of::<false>(context)) {
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
        Home::Service(word) if word & ServiceBucket::SPECIAL == 0 => ServiceEntry::of_word(word),
        Home::Service(_) => return Err(OPEN),
        Home::Nobody => {
            stats::count_verdict(Verdict::PassNoService);
            return Ok(xdp_action::XDP_PASS);
        }
        Home::Elsewhere => return Err(OPEN),
    };
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
    let action = if P::IS_V4 {
        forward_v4(packet, &straight, hash, owner, &backend)?
    } else {
        forward::send(packet, &straight, hash, &backend).map_err(|_| OPEN)?
    };
    stats::count_forwarded(service.index, owner, received);
    Ok(action)
}

/// As [`forward::send`], but what most backends do not have is done elsewhere: the stack has no room for it here.
#[inline(always)]
fn forward_v4<P: Plain>(
    packet: &mut Packet,
    straight: &Straight<P>,
    hash: u64,
    owner: u32,
    backend: &Backend,
) -> Result<xdp_action::Type, u64> {
    let exit = exit::find_apart(packet.interface(), backend.interface).map_err(|_| OPEN)?;
    match backend.mode() {
        Some(Mode::Ipip) if backend.has_plain_ends() => {
            ipip::encapsulate_plain(packet, straight, backend, exit).map_err(|_| OPEN)
        }
        Some(Mode::L2) => l2::rewrite(packet, straight, backend, exit).map_err(|_| OPEN),
        Some(Mode::Ipip | Mode::Gue) | None => {
            let front = packet.front(P::LENGTH).ok_or(OPEN)?;
            let inner = P::inner::<EthernetHeader>(&front).ok_or(OPEN)?;
            let ip = Described::new(Tags::None, inner);
            let sent = forward::send_apart(packet.context().ctx, &ip, hash, owner);
            if sent.verdict() == Verdict::Forwarded {
                Ok(sent.exit())
            } else {
                Err(OPEN)
            }
        }
    }
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
    fn inner<Before: Header>(&self, front: &Front) -> Option<Inner> {
        P::inner::<Before>(front)
    }
}
