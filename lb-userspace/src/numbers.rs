//! Hash maps by number, for what planning looks up for each backend and slot. A multiplication takes the place of the standard
//! library's hash, which guards against keys that somebody chooses: these are indexes, and hashes already.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

/// A map by number. Its order is arbitrary, but the same in every run.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;
/// A set of numbers, likewise.
pub type NumberSet<K> = HashSet<K, BuildHasherDefault<Spread>>;

/// 2^64 over the golden ratio, odd: its multiples are spread evenly.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        // The low bits of a product depend on the low bits of the number alone, the high ones on all of them.
        let product = u128::from(self.0 ^ number) * u128::from(GOLDEN);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_and_far_apart_are_all_found() {
        for step in [1_u64, 1 << 16, 1 << 32, 1 << 40] {
            let map: NumberMap<u64, u64> = (0..1_000).map(|n| (n * step, n)).collect();
            assert!((0..1_000).all(|n| map.get(&(n * step)) == Some(&n)));
            let low: NumberSet<u64> = map
                .keys()
                .map(|key| {
                    let mut hash = Spread::default();
                    hash.write_u64(*key);
                    hash.finish() & 0xfff
                })
                .collect();
            assert!(
                low.len() > 700,
                "step {step}: {} of 1,000 differ",
                low.len()
            );
        }
    }
}
