//! The world that fuzzing happens in: services of both families and protocols, exact ports and any, slots of every kind,
//! backends of every mode, behind two interfaces, and with everything wrong that can be.

use crate::{
    fixture::{backend, ip, v4, v6},
    network::OTHER,
    packet::{Packet, Protocol},
    world::{Slots, World},
};
use lb_common::{
    backend::{BackendEntry, Mode, NextHop},
    service::ServiceEntry,
    slot::Slot,
};

/// Backends from index 1; one more index is named by slots but has no entry.
pub const BACKENDS: u32 = 23;

/// Config rotation and length of server IDs of a service.
pub const QUIC: (u8, u8) = (2, 2);
/// The same of another.
pub const LONG_QUIC: (u8, u8) = (0, 8);

impl World {
    /// Each backend has its index for a server ID, one is of an earlier use of its index, and one has no entry.
    fn servers(self) -> Self {
        (1..=BACKENDS + 1).fold(self, |world, index| {
            let generation = if index == 5 { 1 } else { 40 + index };
            world.server(index.into(), index, generation)
        })
    }
}

/// MAC of the other interface.
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 7, 7];

/// What is in the maps. The services of the fixtures are among them, so that mutated fixtures reach backends.
pub fn world() -> World {
    let mut world = World::default().exit(OTHER, OTHER_MAC);
    for index in 1..=BACKENDS {
        world = world.backend(index, &entry(index));
    }
    let to = |packet: Packet, address: &str| Packet {
        to: format!("{address}:443").parse().expect("an address"),
        ..packet
    };
    let (tcp4, udp4) = (v4(Protocol::Tcp), v4(Protocol::Udp));
    let (tcp6, udp6) = (v6(Protocol::Tcp), v6(Protocol::Udp));
    let spread = Slots::Spread(8);
    let mixed = Slots::Mixed(BACKENDS + 1);
    let moved = Slots::All(Slot::moved(2, 6, false));
    let settled = Slots::All(Slot::moved(3, 7, true));
    // Both owners in mode `gue`: 4 and 10 over IPv4, 5 and 17 over IPv6.
    let second = [
        Slots::All(Slot::moved(4, 10, false)),
        Slots::All(Slot::moved(5, 17, false)),
        Slots::All(Slot::moved(10, 4, true)),
    ];
    world
        .service(&tcp4, 443, spread)
        .service(&udp4, 443, mixed)
        .quic(QUIC.0, QUIC.1)
        .servers()
        .service(&tcp6, 443, mixed)
        .service(&udp6, 443, spread)
        // Any port of the same addresses, and of others.
        .service(&tcp4, 0, mixed)
        .service(&udp6, 0, mixed)
        .service(&to(tcp4.clone(), "203.0.113.8"), 0, moved)
        .service(&to(udp4.clone(), "203.0.113.8"), 0, settled)
        .service(&to(tcp6.clone(), "[2001:db8:f::8]"), 0, moved)
        .service(&to(udp6.clone(), "[2001:db8:f::8]"), 0, settled)
        .quic(LONG_QUIC.0, LONG_QUIC.1)
        .servers()
        // Flows of a client that have one slot, exact and any port.
        .service(&to(tcp4.clone(), "203.0.113.10"), 443, spread)
        .flags(ServiceEntry::HASH_SOURCE)
        .service(&to(udp4.clone(), "203.0.113.10"), 0, mixed)
        .flags(ServiceEntry::HASH_SOURCE_PORT)
        .service(&to(tcp6.clone(), "[2001:db8:f::10]"), 0, mixed)
        .flags(ServiceEntry::HASH_SOURCE_PORT)
        .service(&to(udp6.clone(), "[2001:db8:f::10]"), 443, spread)
        .flags(ServiceEntry::HASH_SOURCE)
        // Prefixes around them, one in another, with ports and without.
        .service(&to(tcp4.clone(), "203.0.113.0"), 443, mixed)
        .within(24)
        .service(&to(tcp4.clone(), "203.0.113.0"), 0, spread)
        .within(25)
        .service(&to(udp4.clone(), "203.0.0.0"), 0, spread)
        .within(16)
        .pingable_all()
        .service(&to(tcp6.clone(), "[2001:db8:f::]"), 443, spread)
        .within(64)
        .flags(ServiceEntry::HASH_SOURCE)
        .pingable_all()
        .service(&to(udp6.clone(), "[2001:db8::]"), 0, mixed)
        .within(32)
        .service(&to(udp6.clone(), "[2001:db8:f::]"), 443, moved)
        .within(61)
        .pingable(&tcp4)
        .pingable(&to(udp6.clone(), "[2001:db8:f::8]"))
        .service(&to(tcp4.clone(), "203.0.113.7"), 0, second[0])
        .service(&to(tcp6.clone(), "[2001:db8:f::7]"), 0, second[1])
        .service(&to(udp4.clone(), "203.0.113.7"), 0, second[2])
        .service(&to(udp6.clone(), "[2001:db8:f::7]"), 0, second[1])
        .service(&to(tcp4, "203.0.113.9"), 443, Slots::All(Slot::EMPTY))
        .service(&to(udp4, "203.0.113.9"), 443, Slots::Missing)
        .service(
            &to(tcp6, "[2001:db8:f::9]"),
            443,
            Slots::All(Slot::tracked(BACKENDS + 1)),
        )
        .service(
            &to(udp6, "[2001:db8:f::9]"),
            443,
            Slots::All(Slot::tracked(0)),
        )
}

/// The entry of a backend: the first eight are reached in each way, the others are harder to reach.
fn entry(index: u32) -> BackendEntry {
    let (v4, v6) = (format!("10.9.0.{index}"), format!("fd00:9::{index}"));
    let entry = match index % 6 {
        0 => backend(Mode::L2, "0.0.0.0", &v4),
        1 | 2 => backend(Mode::Ipip, "10.0.0.2", &v4),
        3 => backend(Mode::Ipip, "fd00::2", &v6),
        4 => backend(Mode::Gue, "10.0.0.2", &v4),
        _ => backend(Mode::Gue, "fd00::2", &v6),
    };
    let entry = BackendEntry {
        generation: 40 + index,
        mtu: [1_500, 9_000, 1_500, 2_000][(index / 4) as usize % 4],
        port: 6_080_u16.to_be(),
        ..entry
    };
    let filled = |source: &str, entry| BackendEntry {
        outer_source: ip(source).into(),
        flags: BackendEntry::ENTROPY,
        ..entry
    };
    match index {
        2 | 13 => filled("172.31.0.0", entry),
        3 | 15 => filled("fd00:1f::", entry),
        4 => filled("10.0.0.2", entry),
        6..=8 | 17 => BackendEntry {
            interface: OTHER,
            ..entry
        },
        9 | 10 => BackendEntry { mtu: 600, ..entry },
        11 => BackendEntry { mtu: 0, ..entry },
        12 => BackendEntry {
            next_hop: NextHop::default(),
            ..entry
        },
        14 | 16 => BackendEntry {
            interface: OTHER + 1,
            ..entry
        },
        18 => BackendEntry { mode: 0, ..entry },
        19 => BackendEntry { mode: 4, ..entry },
        20 | 21 => BackendEntry {
            flags: BackendEntry::LOST,
            ..entry
        },
        // Tunnels between two families.
        22 => BackendEntry {
            outer_source: ip("fd00::2").into(),
            ..entry
        },
        23 => BackendEntry {
            outer_source: ip("10.0.0.2").into(),
            ..entry
        },
        _ => entry,
    }
}
