//! The bytes of a connection. Each depends on the connection and on its place in the stream, so that a lost, doubled,
//! displaced or foreign byte is seen; the server's answer depends on the place, too.

/// Bytes of the greeting with which a server says who it is: its name, filled up with line ends.
pub(super) const GREETING: usize = 16;

/// Byte `position` of what connection `id` sends.
pub(super) fn sent(id: u64, position: u64) -> u8 {
    // Products with odd constants (Knuth, The Art of Computer Programming, 6.4): their high bits depend on all of the input.
    let id = id.wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(32);
    let mixed = (id ^ position).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// What a server answers to `byte` as byte `position` of its connection.
pub(super) fn answered(byte: u8, position: u64) -> u8 {
    byte.rotate_left(3) ^ (position as u8).wrapping_mul(0x1d) ^ 0xa5
}

/// The greeting of a server.
pub(super) fn greeting(name: &str) -> [u8; GREETING] {
    let mut bytes = [b'\n'; GREETING];
    bytes
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(to, from)| *to = from);
    bytes
}

/// The name in a greeting.
pub(super) fn name(greeting: &[u8]) -> String {
    String::from_utf8_lossy(greeting).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_displaced_or_foreign_piece_differs() {
        let piece = |id, from: u64| -> Vec<u8> {
            (from..from + 64)
                .map(|at| answered(sent(id, at), at))
                .collect()
        };
        for from in [0, 1, 255, 4_096] {
            assert_eq!(piece(3, from), piece(3, from));
            assert_ne!(piece(3, from), piece(3, from + 1));
            assert_ne!(piece(3, from), piece(3, from + 256));
            assert_ne!(piece(3, from), piece(4, from));
        }
        // The same bytes at another place are answered otherwise.
        assert_ne!(answered(9, 0), answered(9, 1));
    }

    #[test]
    fn a_greeting_names_the_server() {
        assert_eq!(name(&greeting("backend-3")), "backend-3");
        assert_eq!(greeting("a name that is too long for it").len(), GREETING);
    }
}
