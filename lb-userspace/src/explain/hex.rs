//! Bytes as hexadecimal text.

use std::fmt::Write as _;

/// Two digits a byte.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of a text of two digits each.
///
/// # Errors
/// What is wrong with it.
pub fn decode(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err("has an odd number of digits".into());
    }
    let digit = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .ok_or_else(|| format!("has {:?}, which is no hexadecimal digit", char::from(digit)))
    };
    let byte = |pair: &[u8]| match pair {
        [high, low] => Ok((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => Ok(0),
    };
    digits.chunks_exact(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&bytes)), Ok(bytes));
        assert_eq!(encode(&[0, 0xaf, 0x10]), "00af10");
        assert_eq!(decode("00AF10"), Ok(vec![0, 0xaf, 0x10]));
        assert!(decode("0").is_err() && decode("0g").is_err() && decode("é").is_err());
    }
}
