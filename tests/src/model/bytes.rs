//! Fields out of byte slices, where they are, if they are there.

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d`.
pub type Address = [u8; 16];

/// A byte.
pub fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Two bytes in network order.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// An IPv4 address.
pub fn address_v4(bytes: &[u8], at: usize) -> Option<Address> {
    let four = bytes.get(at..at + 4)?;
    let mut address = [0; 16];
    address[10..12].fill(0xff);
    address[12..].copy_from_slice(four);
    Some(address)
}

/// An IPv6 address.
pub fn address_v6(bytes: &[u8], at: usize) -> Option<Address> {
    bytes.get(at..at + 16)?.try_into().ok()
}

/// Whether it stands for an IPv4 address.
pub fn is_v4(address: &Address) -> bool {
    address[..10].iter().all(|byte| *byte == 0) && address[10..12] == [0xff, 0xff]
}

/// An address out of a map.
pub fn address(address: &lb_common::address::Address) -> Address {
    let mut bytes = [0; 16];
    for (number, word) in address.0.iter().enumerate() {
        bytes[number * 4..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
