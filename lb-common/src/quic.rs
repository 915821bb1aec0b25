//! QUIC connection IDs that name a server, in plain: draft-ietf-quic-load-balancers-19, sections 3 and 4, over the headers that
//! all versions of QUIC have (RFC 8999, section 5).
//!
//! A connection ID's first octet has three bits of config rotation, then five that mean nothing here; the server ID follows.

use crate::service::ServiceEntry;

/// Config rotation that says that a connection ID names no server.
pub const UNROUTABLE: u8 = 7;

/// Octets of a server ID at most; the draft allows 15.
pub const MAX_SERVER_ID: u8 = 8;

/// In the first byte of a packet: it has a long header.
pub const LONG_HEADER: u8 = 0x80;

/// Where the length of the destination connection ID is in a long header, in bytes; the ID follows it.
pub const LONG_ID_LENGTH: usize = 5;

/// Where the destination connection ID is in a short header, in bytes.
pub const SHORT_ID: usize = 1;

/// How the connection IDs of a service are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QuicConfig {
    /// Config rotation of the IDs that name a server: 0 to 6.
    pub config_rotation: u8,
    /// Octets of a server ID: 1 to [`MAX_SERVER_ID`].
    pub server_id_length: u8,
}

impl ServiceEntry {
    const ROTATION_SHIFT: u32 = 12;
    const LENGTH_SHIFT: u32 = 8;

    /// The bits of `flags` for a service whose packets go by their connection IDs.
    pub const fn quic_flags(config: QuicConfig) -> u32 {
        Self::QUIC
            | (config.config_rotation as u32 & 7) << Self::ROTATION_SHIFT
            | (config.server_id_length as u32 & 15) << Self::LENGTH_SHIFT
    }

    /// How connection IDs are read, by these `flags`.
    #[inline(always)]
    pub const fn quic_config(flags: u32) -> QuicConfig {
        QuicConfig {
            config_rotation: (flags >> Self::ROTATION_SHIFT & 7) as u8,
            server_id_length: (flags >> Self::LENGTH_SHIFT & 15) as u8,
        }
    }
}

/// Key of the map of servers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerKey {
    /// Index of the service.
    pub service: u32,
    /// Octets of the server ID.
    pub length: u32,
    /// The server ID as a number, its first octet the highest. Host byte order.
    pub id: u64,
}

/// The backend that has a server ID.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerEntry {
    /// Index of the backend.
    pub backend: u32,
    /// [`crate::backend::BackendEntry::generation`] of that backend: an entry of an earlier use of the index counts for nothing.
    pub generation: u32,
}

/// The server ID that ends a window of eight bytes. `length` is 1 to [`MAX_SERVER_ID`].
#[inline(always)]
pub const fn server_id(window: [u8; 8], length: u8) -> u64 {
    let unused = 64_u32.wrapping_sub(8 * length as u32) & 63;
    u64::from_be_bytes(window) << unused >> unused
}

const _: () = assert!(size_of::<ServerKey>() == 16);
const _: () = assert!(size_of::<ServerEntry>() == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_hold_every_config_and_nothing_else_of_the_entry() {
        let others =
            ServiceEntry::HASH_SOURCE | ServiceEntry::HASH_SOURCE_PORT | ServiceEntry::ECHO;
        for config_rotation in 0..UNROUTABLE {
            for server_id_length in 1..=MAX_SERVER_ID {
                let config = QuicConfig {
                    config_rotation,
                    server_id_length,
                };
                let flags = ServiceEntry::quic_flags(config);
                assert_eq!(ServiceEntry::quic_config(flags), config);
                assert_eq!(ServiceEntry::quic_config(flags | others), config);
                assert_eq!(flags & others, 0);
                assert_ne!(flags & ServiceEntry::QUIC, 0);
            }
        }
    }

    #[test]
    fn a_server_id_is_the_end_of_its_window() {
        let window = [1, 2, 3, 4, 5, 6, 7, 0xf8];
        for (length, id) in [
            (1, 0xf8),
            (2, 0x07f8),
            (3, 0x06_07f8),
            (7, 0x02_0304_0506_07f8),
            (8, 0x0102_0304_0506_07f8),
        ] {
            assert_eq!(server_id(window, length), id, "{length}");
        }
    }
}
