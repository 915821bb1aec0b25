//! The frame: the one place that turns packet pointers into values, each time after a bounds check.
//!
//! **Invariants.** No reference into the frame leaves this module but [`Front`], which ends where the frame changes: moving the
//! head invalidates nothing.
//! Whoever has looked at a frame and not called a method that takes `&mut self` has not changed it.

use crate::{verifier, words};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use core::marker::PhantomData;
use lb_common::{
    flow_table::TcpFlags,
    gue::{GueHeader, GueOverIpv4, GueOverIpv6, SecondV4, SecondV6, SecondWord, UdpHeader},
    header::{
        DoubleTaggedHeader, EthernetHeader, ExtensionHeader, FragmentId, IcmpHeader, Ipv4Header,
        Ipv6Header, Mac, PlainV4, PlainV6, Ports, TaggedHeader, VlanTag, Words,
    },
};

/// A header that can be read from any bytes and written to any place.
///
/// # Safety
/// The type has no padding and is valid for every bit pattern.
pub unsafe trait Header: Copy {
    /// Its length in bytes.
    const LENGTH: usize = size_of::<Self>();
}

// SAFETY: `repr(C)`, integers only, sizes asserted beside the definition.
unsafe impl Header for EthernetHeader {}
// SAFETY: as above.
unsafe impl Header for VlanTag {}
// SAFETY: as above.
unsafe impl Header for TaggedHeader {}
// SAFETY: as above.
unsafe impl Header for DoubleTaggedHeader {}
// SAFETY: as above.
unsafe impl Header for Ipv4Header {}
// SAFETY: as above.
unsafe impl Header for Ipv6Header {}
// SAFETY: as above.
unsafe impl Header for PlainV4 {}
// SAFETY: as above.
unsafe impl Header for PlainV6 {}
// SAFETY: as above.
unsafe impl Header for ExtensionHeader {}
// SAFETY: as above.
unsafe impl Header for FragmentId {}
// SAFETY: as above.
unsafe impl Header for Words {}
// SAFETY: as above.
unsafe impl Header for Ports {}
// SAFETY: as above.
unsafe impl Header for IcmpHeader {}
// SAFETY: as above.
unsafe impl Header for TcpFlags {}
// SAFETY: as above.
unsafe impl Header for GueOverIpv4 {}
// SAFETY: as above.
unsafe impl Header for GueOverIpv6 {}
// SAFETY: as above.
unsafe impl Header for UdpHeader {}
// SAFETY: as above.
unsafe impl Header for GueHeader {}
// SAFETY: half words.
unsafe impl Header for Mac {}
// SAFETY: a half word.
unsafe impl Header for u16 {}
// SAFETY: bytes.
unsafe impl Header for [u8; 0] {}
// SAFETY: bytes.
unsafe impl Header for [u8; 2] {}
// SAFETY: bytes.
unsafe impl Header for [u8; 4] {}
// SAFETY: bytes.
unsafe impl Header for [u8; 8] {}
// SAFETY: bytes.
unsafe impl Header for [u8; 48] {}
// SAFETY: as above.
unsafe impl Header for SecondWord {}
// SAFETY: as above.
unsafe impl Header for SecondV4 {}
// SAFETY: as above.
unsafe impl Header for SecondV6 {}

/// A header at an even address, which is all that may be asked of one in a frame: frames start on even addresses and
/// all that precedes a header (14 bytes of Ethernet, VLAN tags, IPv4 options and IPv6 extension headers in words) is of even length. Without knowing even
/// that, the compiler would assemble every field from bytes.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
struct Even<T: Header>(T);

/// A header right behind another.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub struct Pair<A: Header, B: Header>(pub A, pub B);

// SAFETY: packed, and headers are of even length.
unsafe impl<A: Header, B: Header> Header for Pair<A, B> {}

/// What a frame begins with, for as long as it is not changed: bytes that are known to be there, so that reading costs no comparison.
/// To read a field again takes one instruction, to keep it on the stack two: so each is read when it is needed.
#[derive(Clone, Copy)]
pub struct Front<'a> {
    start: usize,
    length: usize,
    of: PhantomData<&'a Packet>,
}

impl Front<'_> {
    /// The header at `offset`; `None` if it is not all in front.
    #[inline(always)]
    pub fn read<T: Header>(&self, offset: usize) -> Option<T> {
        // SAFETY: `pointer` checked that it is there, and the frame is as it was; `T: Header` is valid for every bit pattern.
        self.pointer::<T>(offset)
            .map(|pointer| unsafe { pointer.read().0 })
    }

    /// The header right behind another, in words; a type that begins with an Ethernet header.
    #[inline(always)]
    pub fn read_words<Before: Header, T: Header>(&self) -> Option<T> {
        // SAFETY: as in `read`.
        self.pointer::<Pair<Before, T>>(0)
            .map(|pointer| unsafe { words::read::<Before, T>(pointer.cast()) })
    }

    /// The word that is `AT` bytes behind a header, as it lies there.
    #[inline(always)]
    pub fn word<Before: Header, const AT: usize>(&self) -> Option<u32> {
        // SAFETY: as in `read`.
        self.pointer::<Pair<Before, [u8; 4]>>(AT)
            .map(|_| unsafe { words::load::<Before, AT>(self.start as *const u16) })
    }

    /// The compiler knows all three numbers.
    #[inline(always)]
    fn pointer<T: Header>(&self, offset: usize) -> Option<*mut Even<T>> {
        let is_there = offset + T::LENGTH <= self.length;
        is_there.then_some((self.start + offset) as *mut Even<T>)
    }
}

/// A [`Front`] that can be written to.
pub struct FrontMut<'a>(Front<'a>);

impl<'a> FrontMut<'a> {
    /// As it is now.
    #[inline(always)]
    pub fn read(&self) -> &Front<'a> {
        &self.0
    }

    /// Writes `header` at the start of the frame, in words; a type that begins with an Ethernet header. `None`, and nothing written,
    /// if it is longer than the front.
    #[inline(always)]
    pub fn write_words<T: Header>(&mut self, header: T) -> Option<()> {
        // SAFETY: as in `Front::read`; the frame is ours alone while the program runs.
        self.0
            .pointer::<T>(0)
            .map(|pointer| unsafe { words::write(pointer.cast(), header) })
    }

    /// Writes the first 48 bytes, as they lie in memory. `None`, and nothing written, if the front is shorter.
    #[inline(always)]
    pub fn write_doubles(&mut self, doubles: [u64; 6]) -> Option<()> {
        // SAFETY: as in `write_words`.
        self.0
            .pointer::<[u8; 48]>(0)
            .map(|pointer| unsafe { words::write_doubles(pointer.cast(), doubles) })
    }

    /// Writes a MAC address at `offset`.
    #[inline(always)]
    pub fn write_mac(&mut self, offset: usize, mac: Mac) -> Option<()> {
        // SAFETY: as in `write_words`.
        self.0
            .pointer::<Mac>(offset)
            .map(|pointer| unsafe { pointer.write(Even(mac)) })
    }
}

/// The frame that an XDP program was called for.
pub struct Packet {
    context: XdpContext,
    in_frags: bool,
}

impl Packet {
    /// The frame of `context`.
    #[inline(always)]
    pub fn new(context: XdpContext) -> Self {
        Self {
            context,
            in_frags: false,
        }
    }

    /// The frame of `context`, of a program in section `xdp.frags`. Its headers are in the first buffer; the rest may be in
    /// others, which nothing here looks at.
    #[inline(always)]
    pub fn in_frags(context: XdpContext) -> Self {
        Self {
            context,
            in_frags: true,
        }
    }

    /// The frame of a context, of a program in section `xdp.frags` or not.
    #[inline(always)]
    pub fn of<const FRAGS: bool>(context: *mut xdp_md) -> Self {
        Self {
            context: XdpContext::new(context),
            in_frags: FRAGS,
        }
    }

    /// Whether the program is in section `xdp.frags`.
    #[inline(always)]
    pub fn is_in_frags(&self) -> bool {
        self.in_frags
    }

    /// Bytes of the frame, Ethernet header included.
    #[inline(always)]
    pub fn length(&self) -> usize {
        if self.in_frags {
            // SAFETY: the kernel gave us this context; the helper reads lengths alone.
            return unsafe { bpf_xdp_get_buff_len(self.context.ctx) } as usize;
        }
        // Hidden, so that the compiler does not calculate with the end of the frame, which the verifier forbids.
        verifier::hide((self.context.data_end() - self.context.data()) as u64) as usize
    }

    /// Index of the interface on which the frame came in.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    /// The context, for helpers that log or ask the kernel.
    #[inline(always)]
    pub fn context(&self) -> &XdpContext {
        &self.context
    }

    /// The header at `offset` bytes from the start of the frame; `None` where the frame ends before it does.
    #[inline(always)]
    pub fn read<T: Header>(&self, offset: usize) -> Option<T> {
        // SAFETY: `pointer` checked the bounds; `T: Header` is valid for every bit pattern.
        self.pointer::<T>(offset)
            .map(|pointer| unsafe { pointer.read().0 })
    }

    /// Writes `header` at `offset` bytes from the start of the frame; `None`, and nothing written, where the frame
    /// ends before it does.
    #[inline(always)]
    pub fn write<T: Header>(&mut self, offset: usize, header: T) -> Option<()> {
        // SAFETY: `pointer` checked the bounds; the frame is ours alone while the program runs.
        self.pointer::<T>(offset)
            .map(|pointer| unsafe { pointer.write(Even(header)) })
    }

    /// The first `length` bytes, a number that the compiler knows; `None` where the frame ends before.
    #[inline(always)]
    pub fn front(&self, length: usize) -> Option<Front<'_>> {
        let start = self.context.data();
        (start + length <= self.context.data_end()).then_some(Front {
            start,
            length,
            of: PhantomData,
        })
    }

    /// As [`Packet::front`], to be written to.
    #[inline(always)]
    pub fn front_mut(&mut self, length: usize) -> Option<FrontMut<'_>> {
        self.front(length).map(FrontMut)
    }

    /// Moves the start of the frame by `bytes`: down to make room if negative, up to cut if positive. `None`, and
    /// nothing moved, where there is no room. New bytes at the start are undefined until written.
    #[inline(always)]
    pub fn move_head(&mut self, bytes: i32) -> Option<()> {
        // SAFETY: the kernel gave us this context, and no pointer into the frame outlives a method of this type.
        let status = unsafe { bpf_xdp_adjust_head(self.context.ctx, bytes) };
        (status == 0).then_some(())
    }

    /// Cuts the end of the frame so that `length` bytes are left, at most as many as there are. `None`, and nothing cut, where
    /// the kernel does not allow it.
    #[inline(always)]
    pub fn truncate(&mut self, length: usize) -> Option<()> {
        let surplus = self.length() as i32 - length as i32;
        // SAFETY: as in `move_head`.
        let status = unsafe { bpf_xdp_adjust_tail(self.context.ctx, -surplus) };
        (status == 0).then_some(())
    }

    /// The bounds check that the verifier wants to see before every access. `offset` must have a bound that the
    /// verifier can see: a constant, or a masked value.
    #[inline(always)]
    fn pointer<T: Header>(&self, offset: usize) -> Option<*mut Even<T>> {
        let start = self.context.data() + offset;
        if start + T::LENGTH > self.context.data_end() {
            return None;
        }
        Some(start as *mut Even<T>)
    }
}
