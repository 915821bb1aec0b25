//! Outer sources that are a prefix which flows fill: every byte, and that flows differ.

use anyhow::Result;
use lb_common::backend::{BackendEntry, Mode};
use lb_tests::{
    fixture::{NEXT_HOP, assert_forwarded, backend, balancer, flow_hash, ip, v4, v6},
    packet::{Packet, Protocol, encapsulated},
    require,
};
use std::{collections::BTreeSet, net::IpAddr};

/// (prefix, destination) of each outer family.
const TUNNELS: [(&str, &str); 2] = [("172.31.0.0", "10.0.1.7"), ("fd00:1f::", "fd00:1::7")];

/// The source of a flow's packets: its hash's upper half, of which IPv4 has room for the lower 16 bits.
fn filled(prefix: IpAddr, hash: u64) -> IpAddr {
    let bits = (hash >> 32) as u32;
    match prefix {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | (bits & 0xffff)).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | u128::from(bits)).into()),
    }
}

#[test]
fn every_flow_of_ipip_has_its_own_source() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for packet in [v4(Protocol::Tcp), v6(Protocol::Udp)] {
        for (prefix, address) in TUNNELS {
            let entry = BackendEntry {
                flags: BackendEntry::ENTROPY,
                ..backend(Mode::Ipip, prefix, address)
            };
            let balancer = balancer(&packet, &entry)?;
            let mut sources = BTreeSet::new();
            for port in 1..=500 {
                let mut packet: Packet = packet.clone();
                packet.from.set_port(port);
                let hash = flow_hash(&packet);
                let source = filled(ip(prefix), hash);
                let label = (hash >> 44) as u32;
                let expected = encapsulated(&packet, source, ip(address), NEXT_HOP, label);
                assert_forwarded(&balancer, &packet, &expected);
                sources.insert(source);
            }
            // Of 500 random choices among 65,536 two or so meet.
            assert!(sources.len() > 480, "{} sources", sources.len());
        }
    }
    Ok(())
}

/// LOST says nothing of the source, and without the flag it is taken as it is.
#[test]
fn without_the_flag_the_source_is_one_address() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    for (prefix, address) in TUNNELS {
        let packet = v4(Protocol::Tcp);
        let entry = BackendEntry {
            flags: BackendEntry::LOST,
            ..backend(Mode::Ipip, prefix, address)
        };
        let label = (flow_hash(&packet) >> 44) as u32;
        let expected = encapsulated(&packet, ip(prefix), ip(address), NEXT_HOP, label);
        assert_forwarded(&balancer(&packet, &entry)?, &packet, &expected);
    }
    Ok(())
}
