//! Second chance: a packet that names another owner of its flow, for which this host has no socket, goes on to that one.
//!
//! **Invariants.** Only what [`crate::policy`] has let through comes here. What is handed on names nobody any more, so it
//! is handed on once: no loop is possible. Whatever cannot be understood is delivered, as it would be without this.

use crate::{
    policy,
    socket::{self, Flow},
    tunnel::{Frame, Inner, Tunnel},
};
use aya_ebpf::{bindings::bpf_fib_lookup, helpers::generated::bpf_fib_lookup as look_up};
use lb_common::{
    address::Address,
    decap::Reason,
    gue::{GueOverIpv4, GueOverIpv6, SecondV4, SecondV6, SecondWord},
    header::{EthernetHeader, PROTOCOL_UDP},
};
use lb_ebpf::packet::Header;

/// The other owner of a packet's flow.
pub struct Second {
    /// Its address, of the outer packet's family.
    pub address: Address,
    /// Its UDP port, network order.
    pub port: u16,
    /// Bytes that name it.
    pub length: usize,
}

/// Where a packet that is handed on leaves.
pub struct Way {
    /// Index of the interface.
    pub interface: u32,
    /// Its MAC and the next hop's; `None` where the kernel's tables do not say.
    pub macs: Option<([u8; 6], [u8; 6])>,
}

/// A frame that can be handed on.
pub trait HandOn: Frame {
    /// What the program answers to the kernel.
    type Answer;

    /// Index of the interface that it came in on.
    fn interface(&self) -> u32;

    /// Takes away the bytes that name `second` and writes `outer` in the place of the outer headers.
    fn replace<T: Header>(&mut self, second: &Second, outer: T) -> Option<()>;

    /// Sends it.
    fn send(&mut self, way: &Way) -> Option<Self::Answer>;
}

/// The owner that the packet has to be handed on to; `None`: it is delivered. With the reason under which it is counted.
#[inline(always)]
pub fn owner<F: Frame>(frame: &F, tunnel: &Tunnel, inner: &Inner) -> (Option<Second>, Reason) {
    let Some(second) = named(frame, tunnel) else {
        return (None, tunnel.reason);
    };
    let offset = EthernetHeader::LENGTH + tunnel.outer_length;
    let takes = match Flow::of(frame, offset, inner) {
        Some(flow) => socket::takes(frame, &flow, inner),
        None => true,
    };
    if takes {
        (None, Reason::Kept)
    } else {
        (Some(second), Reason::HandedOn)
    }
}

/// The second owner that a packet names, if it can be handed on to it.
#[inline(always)]
fn named<F: Frame>(frame: &F, tunnel: &Tunnel) -> Option<Second> {
    if !policy::gives_second_chances() || tunnel.ttl <= 1 {
        return None;
    }
    let second = if tunnel.outer_is_v4 {
        let offset = EthernetHeader::LENGTH + GueOverIpv4::LENGTH;
        let second: SecondV4 = sized(frame, tunnel, offset)?;
        check(second.word, 4)?;
        Second {
            address: Address::from_v4_word(second.address),
            port: second.word.port,
            length: SecondV4::LENGTH,
        }
    } else {
        let offset = EthernetHeader::LENGTH + GueOverIpv6::LENGTH;
        let second: SecondV6 = sized(frame, tunnel, offset)?;
        check(second.word, 16)?;
        if second.address.is_v4() {
            return None;
        }
        Second {
            address: second.address,
            port: second.word.port,
            length: SecondV6::LENGTH,
        }
    };
    let is_own = second.address == tunnel.destination || policy::is_own(&second.address);
    (!is_own && second.address.is_of_one_host()).then_some(second)
}

/// What is at `offset`, if it is all that GUE's header counts.
#[inline(always)]
fn sized<F: Frame, T: Header>(frame: &F, tunnel: &Tunnel, offset: usize) -> Option<T> {
    if tunnel.surplus != T::LENGTH {
        return None;
    }
    frame.load(offset)
}

#[inline(always)]
fn check(word: SecondWord, length: u8) -> Option<()> {
    (word.kind == SecondWord::KIND && word.length == length && word.port != 0).then_some(())
}

/// Sends the packet on.
#[inline(always)]
pub fn hand_on<F: HandOn>(frame: &mut F, tunnel: &Tunnel, second: &Second) -> Option<F::Answer> {
    let way = way(frame, tunnel, second);
    if tunnel.outer_is_v4 {
        let outer: GueOverIpv4 = frame.load(EthernetHeader::LENGTH)?;
        let outer = outer.handed_on(second.address.v4_word(), second.port)?;
        frame.replace(second, outer)?;
    } else {
        let outer: GueOverIpv6 = frame.load(EthernetHeader::LENGTH)?;
        let outer = outer.handed_on(second.address, second.port)?;
        frame.replace(second, outer)?;
    }
    frame.send(&way)
}

/// The way to the second owner, as the kernel would forward the packet. A host that forwards nothing is not told one.
#[inline(always)]
fn way<F: HandOn>(frame: &F, tunnel: &Tunnel, second: &Second) -> Way {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const FOUND: i64 = 0;
    const NO_NEIGHBOUR: i64 = 7;
    // SAFETY: the type is one of integers and unions of them; all of it being 0 is a value.
    let mut request: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    let interface = frame.interface();
    request.l4_protocol = PROTOCOL_UDP;
    request.ifindex = interface;
    if tunnel.outer_is_v4 {
        request.family = AF_INET;
        // DSCP alone: a route that asks for ECN bits does not exist.
        request.__bindgen_anon_2.tos = tunnel.traffic_class & !3;
        request.__bindgen_anon_3.ipv4_src = tunnel.source.v4_word();
        request.__bindgen_anon_4.ipv4_dst = second.address.v4_word();
    } else {
        request.family = AF_INET6;
        request.__bindgen_anon_3.ipv6_src = tunnel.source.0;
        request.__bindgen_anon_4.ipv6_dst = second.address.0;
    }
    let length = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: context and request live; the helper writes no more than the request.
    let found = unsafe { look_up(frame.context(), &raw mut request, length, 0) } as i64;
    let is_known = found == FOUND || found == NO_NEIGHBOUR;
    Way {
        interface: if is_known { request.ifindex } else { interface },
        macs: (found == FOUND).then_some((request.smac, request.dmac)),
    }
}
