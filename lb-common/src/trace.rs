//! What a looking-on program says of a packet: one record of what each stage found, with the frame before and after.
//!
//! The same program is loaded in three ways ([`crate::maps::TRACE`]): as it forwards, where the verifier deletes all of
//! this; for `lbctl trace`, in place of the one that forwards; and for `lbctl explain`, beside it and attached nowhere.

use crate::{address::Address, flow_table::FlowEntry};

/// Value of [`crate::maps::TRACE`]: nothing is recorded.
pub const OFF: u32 = 0;
/// Value of [`crate::maps::TRACE`]: packets that the [`Filter`] lets through are recorded.
pub const TRACE: u32 = 1;
/// Value of [`crate::maps::TRACE`]: every packet is recorded, and nothing is written to the flow table.
pub const EXPLAIN: u32 = 2;

/// Bytes of a frame that an event holds at most.
pub const SNAP: usize = 256;

/// What the stages found. A field means something only if its stage is in `stages`. All zero: no stage was reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When the packet came, nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    /// [`Record::SERVICE`]: the flow hash.
    pub hash: u64,
    /// [`Record::SLOT`]: the slot's word.
    pub slot: u64,
    /// [`Record::QUIC`]: the server ID, if the connection ID has one that could be read, as in [`crate::quic::ServerKey::id`].
    pub server_id: u64,
    /// [`Record::IP`]: source address of the packet; from [`Record::FLOW`] on that of the flow.
    pub source: Address,
    /// [`Record::IP`]: destination address, likewise.
    pub destination: Address,
    /// [`Record::ENTRY`]: the entry of the flow table.
    pub entry: FlowEntry,
    /// Which stages were reached.
    pub stages: u32,
    /// Number of the [`crate::verdict::Verdict`].
    pub verdict: u32,
    /// Index of the interface on which the packet came in.
    pub interface: u32,
    /// [`Record::SERVICE`]: index of the service.
    pub service: u32,
    /// [`Record::BACKEND`]: index of the backend.
    pub backend: u32,
    /// Bytes of the frame as it came.
    pub length_in: u32,
    /// Bytes of the frame as it was sent; 0 if it was not.
    pub length_out: u32,
    /// [`Record::FLOW`]: the flow's source port, network byte order.
    pub source_port: u16,
    /// [`Record::FLOW`]: the flow's destination port, network byte order.
    pub destination_port: u16,
    /// [`Record::IP`]: bytes of the IP packet.
    pub ip_length: u16,
    /// [`Record::IP`]: IP protocol number; from [`Record::FLOW`] on that of the flow.
    pub protocol: u8,
    /// [`Record::FLOW`]: 1 for an ICMP error about the flow.
    pub is_error: u8,
    /// [`Record::LOOKED_UP`]: what the packet is for its flow: a [`crate::flow_table::PacketKind`] plus 1; 0: an
    /// ICMP error.
    pub kind: u8,
    /// What was done with the flow table: a [`crate::flow_table::FlowEvent`] plus 1; 0: nothing.
    pub flow_event: u8,
    /// [`Record::QUIC`]: what became of its connection ID: a [`crate::flow_table::FlowEvent`] plus 1.
    pub quic_event: u8,
    /// Always 0.
    pub zero: u8,
    /// [`Record::BACKEND`]: index of the second owner that the packet names; 0: none.
    pub second: u32,
    /// Always 0.
    pub zero2: u32,
}

impl Record {
    /// In `stages`: the IP header was understood.
    pub const IP: u32 = 1;
    /// In `stages`: the flow is known.
    pub const FLOW: u32 = 2;
    /// In `stages`: the flow is a service's.
    pub const SERVICE: u32 = 4;
    /// In `stages`: the slot was read.
    pub const SLOT: u32 = 8;
    /// In `stages`: the flow was looked up in the flow table.
    pub const LOOKED_UP: u32 = 16;
    /// In `stages`: and there is an entry.
    pub const ENTRY: u32 = 32;
    /// In `stages`: a backend was chosen.
    pub const BACKEND: u32 = 64;
    /// In `stages`: it is asked whether its QUIC connection ID names a backend.
    pub const QUIC: u32 = 128;

    /// Whether a stage was reached.
    #[inline(always)]
    pub const fn reached(&self, stage: u32) -> bool {
        self.stages & stage != 0
    }
}

/// A record with the frame as it came and, if it was sent, as it left: the first [`SNAP`] bytes of both.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What the stages found.
    pub record: Record,
    /// The frame as it came; `record.length_in` says how much of it counts.
    pub before: [u8; SNAP],
    /// The frame as it was sent; `record.length_out` says how much of it counts.
    pub after: [u8; SNAP],
}

/// Which packets are traced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// What the source address is under `mask`.
    pub source: Address,
    /// Bits of the source address that count; none: any source, and packets without one.
    pub mask: Address,
    /// A bit for each verdict that counts, by number.
    pub verdicts: u64,
    /// Index of the service that counts, [`Filter::ANY_SERVICE`] for any and none.
    pub service: u32,
    /// One packet in so many is looked at; 0 and 1: all.
    pub sample: u32,
    /// Events in a second on a CPU at most.
    pub limit: u32,
    /// Always 0.
    pub zero: u32,
}

impl Filter {
    /// In `service`: any service, and none.
    pub const ANY_SERVICE: u32 = u32::MAX;

    /// Whether a packet of this record is to be traced.
    #[inline(always)]
    pub const fn wants(&self, record: &Record) -> bool {
        if self.verdicts >> (record.verdict & 63) & 1 == 0 {
            return false;
        }
        if self.service != Self::ANY_SERVICE
            && !(record.reached(Record::SERVICE) && record.service == self.service)
        {
            return false;
        }
        let (address, mask, wanted) = (&record.source.0, &self.mask.0, &self.source.0);
        (address[0] & mask[0] == wanted[0])
            & (address[1] & mask[1] == wanted[1])
            & (address[2] & mask[2] == wanted[2])
            & (address[3] & mask[3] == wanted[3])
    }
}

/// Where a CPU writes its record until the packet is done, and what it keeps between packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// The packet at hand.
    pub event: Event,
    /// Events that were to be sent and could not be: over the limit, or the ring buffer was full.
    pub lost: u64,
    /// The second of CLOCK_MONOTONIC that `sent` counts in.
    pub second: u64,
    /// Events sent in that second.
    pub sent: u32,
    /// Whether the packet at hand is looked at.
    pub active: u32,
}

const _: () = assert!(size_of::<Record>() == 8 * 4 + 16 * 2 + 24 + 4 * 7 + 12 + 8);
const _: () = assert!(size_of::<Event>() == size_of::<Record>() + 2 * SNAP);
const _: () = assert!(size_of::<Filter>() == 56);
const _: () = assert!(crate::verdict::Verdict::COUNT <= u64::BITS);
const _: () = assert!(size_of::<Scratch>() == size_of::<Event>() + 24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Verdict;
    use core::net::IpAddr;

    fn record(source: &str, verdict: Verdict, service: Option<u32>) -> Record {
        Record {
            source: Address::from(source.parse::<IpAddr>().unwrap()),
            verdict: verdict as u32,
            service: service.unwrap_or_default(),
            stages: if service.is_some() {
                Record::IP | Record::SERVICE
            } else {
                Record::IP
            },
            ..Record::default()
        }
    }

    #[test]
    fn every_part_of_a_filter_must_agree() {
        let all = Filter {
            verdicts: u64::MAX,
            service: Filter::ANY_SERVICE,
            ..Filter::default()
        };
        let ten = |bits: &str| Address::from(bits.parse::<IpAddr>().unwrap());
        let prefix = Filter {
            source: ten("10.0.0.0"),
            mask: Address([u32::MAX, u32::MAX, u32::MAX, 0xff_u32.to_le()]),
            ..all
        };
        let www = Filter { service: 0, ..all };
        let drops = Filter {
            verdicts: 1 << Verdict::DropNoBackend as u32,
            ..all
        };
        for (filter, wanted, unwanted) in [
            (all, record("::", Verdict::PassNotIp, None), None),
            (
                prefix,
                record("10.9.9.9", Verdict::Forwarded, None),
                Some(record("11.0.0.1", Verdict::Forwarded, None)),
            ),
            (
                prefix,
                record("10.0.0.0", Verdict::Forwarded, None),
                Some(record("::a00:0", Verdict::Forwarded, None)),
            ),
            (
                www,
                record("::1", Verdict::Forwarded, Some(0)),
                Some(record("::1", Verdict::PassNoService, None)),
            ),
            (
                www,
                record("::1", Verdict::Forwarded, Some(0)),
                Some(record("::1", Verdict::Forwarded, Some(1))),
            ),
            (
                drops,
                record("::1", Verdict::DropNoBackend, Some(0)),
                Some(record("::1", Verdict::Forwarded, Some(0))),
            ),
        ] {
            assert!(filter.wants(&wanted), "{filter:?} {wanted:?}");
            assert!(
                !unwanted.is_some_and(|record| filter.wants(&record)),
                "{filter:?} {unwanted:?}"
            );
        }
    }
}
