//! Flows: of packets, and in the flow table.

use super::{
    Model,
    bytes::{self, Address},
    icmp,
    parse::{self, Ip},
};
use crate::prog_run::SEED;
use lb_common::{
    flow_table::{FlowEntry, FlowKey},
    verdict::Verdict,
};
use std::collections::BTreeMap;
use xxhash_rust::xxh64::xxh64;

/// The flow that a packet is about, as the client's packets have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

impl Flow {
    /// As it is in the program's flow table.
    pub fn of_key(key: &FlowKey) -> Self {
        Self {
            source: bytes::address(&key.source),
            destination: bytes::address(&key.destination),
            source_port: u16::from_be(key.source_port),
            destination_port: u16::from_be(key.destination_port),
            protocol: key.protocol as u8,
        }
    }

    /// The hash for a service with these flags. Where it is the client that is hashed (its address in 16 bytes, its port in 4,
    /// or 0), the low 32 bits are of that.
    pub fn hash_by(&self, flags: u32, four: bool) -> u64 {
        const SOURCE_PORT: u32 = 2;
        let hash = self.hash(four);
        let port = match flags & 3 {
            0 => return hash,
            SOURCE_PORT => self.source_port.to_be_bytes(),
            _ => [0; 2],
        };
        let mut client = self.source.to_vec();
        client.extend_from_slice(&[port[0], port[1], 0, 0]);
        let slot = xxh64(&client, SEED) as u32;
        (hash & !0xffff_ffff) + u64::from(slot)
    }

    /// xxHash64 over the tuple in network order, the protocol in 32 bits.
    fn hash(&self, four: bool) -> u64 {
        let skipped = if four { 12 } else { 0 };
        let mut tuple = Vec::with_capacity(40);
        tuple.extend_from_slice(&self.source[skipped..]);
        tuple.extend_from_slice(&self.destination[skipped..]);
        tuple.extend_from_slice(&self.source_port.to_be_bytes());
        tuple.extend_from_slice(&self.destination_port.to_be_bytes());
        tuple.extend_from_slice(&[0, 0, 0, self.protocol]);
        xxh64(&tuple, SEED)
    }
}

/// The flow of a packet, and whether the packet is an ICMP error about it.
pub fn flow(frame: &[u8], ip: &Ip) -> Result<(Flow, bool), Verdict> {
    if ip.protocol != parse::TCP && ip.protocol != parse::UDP {
        return Ok((icmp::quoted(frame, ip)?, true));
    }
    let ports = ip.payload(frame);
    let port = |at| bytes::be16(ports, at).ok_or(Verdict::PassTruncated);
    let flow = Flow {
        source: ip.source,
        destination: ip.destination,
        source_port: port(0)?,
        destination_port: port(2)?,
        protocol: ip.protocol,
    };
    Ok((flow, false))
}

impl Model {
    /// Replaces the flow table.
    pub fn set_flows(&mut self, flows: &BTreeMap<FlowKey, FlowEntry>) {
        let all = flows.iter().map(|(key, entry)| (Flow::of_key(key), *entry));
        self.flows = all.collect();
    }

    /// What is different in the program's flow table. A moment may be a second or two later than here: the clock goes on.
    pub fn differing_flows(&self, real: &BTreeMap<FlowKey, FlowEntry>) -> Vec<String> {
        let mut differing = Vec::new();
        for (key, entry) in real {
            let expected = self.flows.get(&Flow::of_key(key));
            let same = expected.is_some_and(|expected| {
                let later = entry.seen.abs_diff(expected.seen);
                later <= 2
                    && FlowEntry {
                        seen: entry.seen,
                        ..*expected
                    } == *entry
            });
            if !same {
                differing.push(format!("{key:?}: {entry:?} instead of {expected:?}"));
            }
        }
        if real.len() < self.flows.len() {
            differing.push(format!(
                "{} flows instead of {}",
                real.len(),
                self.flows.len()
            ));
        }
        differing
    }
}
