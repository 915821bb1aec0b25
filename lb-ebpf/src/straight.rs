//! The straight way: plain packets to services that ask for nothing special, in steady slots. These are nearly all there are, and
//! what they need is a fraction of what the [`crate::pipeline`] can do.
//!
//! **Invariants.** It goes through the same stages as the pipeline, to one of three ends: the packet is forwarded, it is no service's,
//! or its slot has no backend. All else it leaves to the pipeline, uncounted and as it came. A program that looks on has no straight way: the
//! pipeline tells what it does.

use crate::{
    backend, forward,
    parse::{
        Flow, Ip,
        plain::{self, NotPlain},
    },
    pipeline::flow_hash,
    service::{self, Home},
    slot, stats, trace,
};
use aya_ebpf::bindings::{xdp_action, xdp_md};
use lb_common::{flow::slot_of, service::ServiceEntry, verdict::Verdict};
use lb_ebpf::packet::Packet;

/// What has become of a packet.
pub enum Fate {
    /// It has been forwarded, or is no service's, and has been counted: XDP is to do this.
    Done(xdp_action::Type),
    /// Its slot has no backend. It has not been counted.
    Refused,
    /// The pipeline has it.
    Open,
}

/// The numbers by which functions that are called say that nothing is [`Fate::Done`]. Actions of ours are below.
const OPEN: u32 = xdp_action::XDP_ABORTED;
const REFUSED: u32 = 5;
const OTHER_FAMILY: u32 = 6;

/// Sends the packet to the backend of its flow, if that is straight.
#[inline(always)]
pub fn balance(context: *mut xdp_md) -> Fate {
    if !trace::is_off() {
        return Fate::Open;
    }
    let fate = match v4(context) {
        OTHER_FAMILY => v6(context),
        fate => fate,
    };
    match fate {
        REFUSED => Fate::Refused,
        OPEN | OTHER_FAMILY => Fate::Open,
        action => Fate::Done(action),
    }
}

#[inline(never)]
fn v4(context: *mut xdp_md) -> u32 {
    // What is not in the first buffer is not plain.
    let packet = Packet::of::<false>(context);
    match plain::v4(&packet) {
        Ok((ip, flow)) => send(packet, &ip, &flow),
        Err(NotPlain::OtherFamily) => OTHER_FAMILY,
        Err(NotPlain::Other) => OPEN,
    }
}

#[inline(never)]
fn v6(context: *mut xdp_md) -> u32 {
    let packet = Packet::of::<false>(context);
    match plain::v6(&packet) {
        Ok((ip, flow)) => send(packet, &ip, &flow),
        Err(NotPlain::OtherFamily | NotPlain::Other) => OPEN,
    }
}

#[inline(always)]
fn send(mut packet: Packet, ip: &Ip, flow: &Flow) -> u32 {
    let received = packet.length() as u64;
    let service = match service::at_home(flow) {
        Home::Service(service) => service,
        Home::Nobody => {
            stats::count_verdict(Verdict::PassNoService);
            return xdp_action::XDP_PASS;
        }
        Home::Elsewhere => return OPEN,
    };
    if service.flags & (ServiceEntry::HASH | ServiceEntry::QUIC) != 0 {
        return OPEN;
    }
    let hash = flow_hash(ip.is_v4, flow, 0);
    let Ok(slot) = slot::get(service.index, slot_of(hash)) else {
        return OPEN;
    };
    let owner = slot.new_owner();
    if slot.is_tracked() {
        return OPEN;
    }
    if owner == 0 {
        return REFUSED;
    }
    let Ok(backend) = backend::get(owner) else {
        return OPEN;
    };
    let Ok(action) = forward::send(&mut packet, ip, hash, &backend) else {
        return OPEN;
    };
    stats::count_forwarded(service.index, owner, received);
    stats::count_verdict(Verdict::Forwarded);
    action
}
