//! Files whose every byte is known: what a large download is compared with.
//!
//! Word i (64 bits, little endian) is i times an odd constant, so that no two words are equal and a lost, doubled or
//! displaced piece shows at its first byte.

use anyhow::{Result, ensure};
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

const WORD: usize = 8;

fn word(i: u64) -> [u8; WORD] {
    // 2^64 divided by the golden ratio, made odd (Knuth, The Art of Computer Programming, 6.4).
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

/// Writes a file of `bytes` bytes, a multiple of 8.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, bytes: u64) -> Result<()> {
    ensure!(
        bytes.is_multiple_of(WORD as u64),
        "{bytes} is no multiple of {WORD}"
    );
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for i in 0..bytes / WORD as u64 {
        file.write_all(&word(i))?;
    }
    Ok(file.flush()?)
}

/// Compares a stream, piece by piece, with the pattern.
#[derive(Debug, Default)]
pub struct Checker {
    position: u64,
}

impl Checker {
    /// Checks the next piece of the stream.
    ///
    /// # Errors
    /// When a byte differs, with its position.
    pub fn check(&mut self, mut piece: &[u8]) -> Result<()> {
        while !piece.is_empty() {
            let expected = word(self.position / WORD as u64);
            let expected = &expected[self.position as usize % WORD..];
            let length = expected.len().min(piece.len());
            let (head, tail) = piece.split_at(length);
            ensure!(
                head == &expected[..length],
                "the download differs from the file at byte {} or soon after",
                self.position
            );
            self.position += length as u64;
            piece = tail;
        }
        Ok(())
    }

    /// Bytes checked so far.
    pub fn position(&self) -> u64 {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checker_takes_the_file_in_any_pieces_and_notices_a_wrong_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write(&path, 4_000).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for size in [1, 3, 8, 17, 4_000] {
            let mut checker = Checker::default();
            bytes
                .chunks(size)
                .try_for_each(|piece| checker.check(piece))
                .unwrap();
            assert_eq!(checker.position(), 4_000);
        }
        for wrong in [0, 7, 8, 3_999] {
            let mut bytes = bytes.clone();
            bytes[wrong] ^= 1;
            assert!(Checker::default().check(&bytes).is_err(), "byte {wrong}");
        }
    }
}
