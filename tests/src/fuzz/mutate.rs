//! Frames that were right once: fixtures and built frames, with something changed.

use crate::packet::ETHERNET;
use crate::runner::LONGEST;
use fastrand::Rng;

/// Values that are often at a bound of something.
const BOUNDS: [u8; 12] = [0, 1, 4, 5, 6, 8, 17, 0x40, 0x45, 0x60, 0x7f, 0xff];
/// Headers lie within so many bytes from the start.
const HEADERS: usize = 120;

/// Changes a frame in one to four ways.
pub fn mutate(random: &mut Rng, other: &[u8], frame: &mut Vec<u8>) {
    for _ in 0..random.u8(1..=4) {
        if frame.len() <= ETHERNET {
            break;
        }
        // The addresses of the frame say nothing; what is behind them does.
        let end = frame.len().min(HEADERS);
        let at = random.usize(12..end);
        match random.u8(..10) {
            0..3 => frame[at] ^= 1 << random.u8(..8),
            3 => frame[at] = random.u8(..),
            4..6 => frame[at] = BOUNDS[random.usize(..BOUNDS.len())],
            6 => frame.truncate(random.usize(ETHERNET..=frame.len())),
            7 => {
                let length = random.usize(..=64);
                frame.resize(frame.len() + length, 0xa5);
            }
            8 => {
                // The head of this frame and the tail of another.
                frame.truncate(at.max(ETHERNET));
                frame.extend_from_slice(other.get(at..).unwrap_or_default());
            }
            _ => {
                // A word up or down by a little: lengths, ports, offsets.
                if let Some(word) = frame.get_mut(at..at + 2) {
                    let value = u16::from_be_bytes([word[0], word[1]]);
                    let value = value.wrapping_add(random.u16(..9)).wrapping_sub(4);
                    word.copy_from_slice(&value.to_be_bytes());
                }
            }
        }
    }
    frame.truncate(LONGEST);
}

/// Random bytes, with and without a plausible start.
pub fn noise(random: &mut Rng, frame: &mut Vec<u8>) {
    frame.clear();
    let length = random.usize(ETHERNET..200);
    frame.extend((0..length).map(|_| random.u8(..)));
    let ethertypes = [[0x08, 0x00], [0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8]];
    if random.bool() {
        frame[12..ETHERNET].copy_from_slice(&ethertypes[random.usize(..4)]);
    }
    if let Some(version) = frame.get_mut(ETHERNET) {
        *version = [0x45, 0x60, 0x4f, *version][random.usize(..4)];
    }
}
