//! IPv6 extension headers: what is behind them is balanced, within bounds; the rest passes as it came.

use anyhow::Result;
use lb_common::{backend::BackendEntry, slot::Slot, verdict::Verdict};
use lb_tests::{
    fixture::{
        BACKEND, NEXT_HOP, SERVICE, assert_forwarded, assert_forwarded_in_all_modes,
        assert_refused, balancer, flow_hash, ip, key, tunnel, v6,
    },
    packet::{ETHERNET, Packet, Protocol, VLAN, encapsulated, flag::SYN},
    prog_run::Balancer,
    require,
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// An extension header: its number and its bytes.
type Extension = (u8, Vec<u8>);

/// An options or routing header of this many bytes, a multiple of 8; no segments are left.
fn extension(number: u8, bytes: usize) -> Extension {
    let mut all = vec![0; bytes];
    all[1] = (bytes / 8 - 1) as u8;
    // Padding (RFC 8200, section 4.2), or the type and the data of a routing header.
    all[2] = 1;
    all[4..].fill(0xab);
    (number, all)
}

/// An authentication header of this many bytes, a multiple of 4.
fn authentication(bytes: usize) -> Extension {
    let mut all = vec![0xab; bytes];
    all[1] = (bytes / 4 - 2) as u8;
    (AUTHENTICATION, all)
}

/// A fragment header; the offset is in units of 8 bytes.
fn fragment(offset: u16, more: bool) -> Extension {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    (FRAGMENT, vec![0, 0xff, high, low, 1, 2, 3, 4])
}

fn with(packet: &Packet, extensions: &[Extension]) -> Packet {
    Packet {
        extensions: extensions.to_vec(),
        ..packet.clone()
    }
}

#[test]
fn the_ports_are_found_behind_extension_headers() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let hop_by_hop = || extension(HOP_BY_HOP, 8);
    let chains = [
        vec![hop_by_hop()],
        vec![extension(DESTINATION, 24)],
        vec![extension(ROUTING, 40)],
        vec![authentication(24)],
        vec![authentication(20)],
        // First and last fragment at once: a whole packet (RFC 6946).
        vec![fragment(0, false)],
        vec![
            hop_by_hop(),
            extension(DESTINATION, 8),
            extension(ROUTING, 24),
            fragment(0, false),
            authentication(24),
            extension(DESTINATION, 16),
        ],
    ];
    for (number, chain) in chains.iter().enumerate() {
        for protocol in Protocol::ALL {
            let packet = Packet {
                tags: vec![(VLAN, 7); number % 3],
                padding: number,
                ..with(&v6(protocol), chain)
            };
            assert_forwarded_in_all_modes(&packet, &packet, flow_hash(&packet));
        }
    }
    Ok(())
}

#[test]
fn no_more_than_six_headers_and_256_bytes_are_followed() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v6(Protocol::Tcp);
    let balancer = balancer(&packet, &tunnel())?;
    for tags in 0..=2 {
        let packet = Packet {
            tags: vec![(VLAN, 1); tags],
            ..packet.clone()
        };
        for chain in [
            vec![extension(DESTINATION, 8); 6],
            vec![extension(DESTINATION, 256)],
            vec![authentication(256)],
            vec![extension(HOP_BY_HOP, 128), extension(DESTINATION, 128)],
        ] {
            let packet = with(&packet, &chain);
            let expected = encapsulated(&packet, ip("10.0.0.2"), ip("10.0.1.7"), NEXT_HOP, 0);
            assert_forwarded(&balancer, &packet, &expected);
        }
        for chain in [
            vec![extension(DESTINATION, 8); 7],
            vec![extension(DESTINATION, 8); 40],
            vec![extension(DESTINATION, 264)],
            vec![extension(DESTINATION, 1_024)],
            vec![authentication(260)],
            vec![extension(HOP_BY_HOP, 128), extension(DESTINATION, 136)],
        ] {
            let frame = with(&packet, &chain).frame();
            let what = format!("{} headers", chain.len());
            assert_refused(&balancer, &what, &frame, Verdict::PassExtensionHeaders);
        }
    }
    Ok(())
}

/// While segments are left the destination is but a stop on the way (RFC 8200, section 4.4).
#[test]
fn a_packet_that_is_to_be_routed_on_passes() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v6(Protocol::Tcp);
    let balancer = balancer(&packet, &tunnel())?;
    for segments in [1, 255] {
        let mut routing = extension(ROUTING, 24);
        routing.1[3] = segments;
        for chain in [
            vec![routing.clone()],
            vec![extension(HOP_BY_HOP, 8), routing.clone()],
        ] {
            let frame = with(&packet, &chain).frame();
            let verdict = Verdict::PassExtensionHeaders;
            assert_refused(&balancer, "segments left", &frame, verdict);
        }
    }
    Ok(())
}

#[test]
fn what_is_behind_them_and_not_tcp_or_udp_passes() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = with(&v6(Protocol::Tcp), &[extension(DESTINATION, 8)]);
    let balancer = balancer(&packet, &tunnel())?;
    for protocol in (0..=255).filter(|number| ![0, 6, 17, 43, 44, 51, 60].contains(number)) {
        let mut frame = packet.frame();
        frame[ETHERNET + 40] = protocol;
        let what = format!("protocol {protocol}");
        assert_refused(&balancer, &what, &frame, Verdict::PassNotTcpUdp);
    }
    Ok(())
}

#[test]
fn fragments_are_treated_as_those_of_ipv4() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = v6(Protocol::Udp);
    let exact = balancer(&packet, &tunnel())?;
    let mut any_port = Balancer::load()?;
    any_port.add_service(key(&packet, 0), SERVICE, |_| BACKEND)?;
    let mut other = packet.clone();
    other.to = "[2001:db8:f::2]:443".parse()?;
    let (ours, pass) = (Verdict::DropFragment, Verdict::PassFragment);

    for chain in [
        vec![fragment(1, true)],
        vec![fragment(0x1fff, false)],
        vec![extension(HOP_BY_HOP, 8), fragment(1, false)],
        // All that is known of a later fragment is what is in front of the fragmented part.
        vec![fragment(1, false), extension(DESTINATION, 8)],
    ] {
        let what = format!("{chain:02x?}");
        let (frame, stranger) = (with(&packet, &chain).frame(), with(&other, &chain).frame());
        assert_refused(&exact, &what, &frame, ours);
        assert_refused(&any_port, &what, &frame, ours);
        assert_refused(&exact, &what, &stranger, pass);
        assert_refused(&any_port, &what, &stranger, pass);
    }
    for chain in [
        vec![fragment(0, true)],
        vec![fragment(0, true), extension(DESTINATION, 8)],
        vec![extension(HOP_BY_HOP, 8), fragment(0, true)],
    ] {
        let packet = with(&packet, &chain);
        let expected = encapsulated(&packet, ip("10.0.0.2"), ip("10.0.1.7"), NEXT_HOP, 0);
        assert_forwarded(&exact, &packet, &expected);
        let stranger = with(&other, &chain).frame();
        assert_refused(&exact, &format!("{chain:02x?}"), &stranger, pass);
    }
    let mut frame = with(&packet, &[fragment(1, false)]).frame();
    frame[ETHERNET + 40] = 58;
    assert_refused(&any_port, "ICMPv6", &frame, Verdict::PassNotTcpUdp);
    Ok(())
}

/// A payload length that ends within the headers or the ports: bytes after it are padding.
#[test]
fn packets_that_end_within_their_headers() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let chain = [
        extension(HOP_BY_HOP, 8),
        extension(DESTINATION, 16),
        authentication(12),
        fragment(0, false),
    ];
    let packet = with(&v6(Protocol::Tcp), &chain);
    let balancer = balancer(&packet, &tunnel())?;
    let whole = packet.frame();
    for length in 0..8 + 16 + 12 + 8 + 4_usize {
        let mut frame = whole.clone();
        frame[ETHERNET + 4..][..2].copy_from_slice(&(length as u16).to_be_bytes());
        let what = format!("{length} bytes of payload");
        assert_refused(&balancer, &what, &frame, Verdict::PassTruncated);
        frame.truncate(ETHERNET + 40 + length);
        assert_refused(&balancer, &what, &frame, Verdict::PassTruncated);
    }
    for length in ETHERNET..whole.len() {
        let verdict = if length < ETHERNET + 40 {
            Verdict::PassTruncated
        } else {
            Verdict::PassMalformed
        };
        assert_refused(&balancer, "cut off", &whole[..length], verdict);
    }
    Ok(())
}

#[test]
fn flags_are_read_behind_extension_headers() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let packet = with(&v6(Protocol::Tcp), &[extension(DESTINATION, 16)]);
    let mut balancer = balancer(&packet, &tunnel())?;
    let newer = BackendEntry {
        address: ip("10.0.1.8").into(),
        ..tunnel()
    };
    balancer.set_backend(BACKEND + 1, &newer)?;
    let slot = Slot::moved(BACKEND + 1, BACKEND, false);
    balancer.add_service_of_slots(key(&packet, 443), SERVICE, |_| slot)?;
    let syn = Packet {
        flags: SYN,
        from: "[2001:db8:c::9]:40001".parse()?,
        ..packet.clone()
    };
    for (packet, address) in [(syn, "10.0.1.8"), (packet, "10.0.1.7")] {
        let expected = encapsulated(&packet, ip("10.0.0.2"), ip(address), NEXT_HOP, 0);
        assert_eq!(balancer.run(&packet.frame())?.frame, expected);
    }
    Ok(())
}
