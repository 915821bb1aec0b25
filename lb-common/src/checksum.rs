//! The Internet checksum (RFC 1071) over 16-bit words as they lie in memory: byte order does not matter to a
//! one's-complement sum as long as it is the same for all words.

/// Folds a sum of 16-bit words and complements it: the value of the checksum field.
#[inline(always)]
pub const fn finish(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Sum of the two 16-bit halves of a word.
#[inline(always)]
pub const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// As [`finish`], of a sum of 32-bit words, 2^16 at the most.
#[inline(always)]
pub const fn finish_words(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    // At most 2^32 + 2^16 - 2 by now, of which the carry leaves less than 2^16 below.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// As [`finish_words`], of a sum that fits in 32 bits.
#[inline(always)]
pub const fn finish_small(sum: u64) -> u16 {
    // The product has in bits 32 to 47 the sum of both halves and what they carried when they were added in bits 16 to 31.
    !(sum.wrapping_mul(0x1_0001_0001) >> 32) as u16
}

/// The checksum of data in which the word `old` became `new` (RFC 1624, equation 3).
#[inline(always)]
pub const fn replaced(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u32 + !old as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_rfc_1071() {
        // Section 3: the words 0001, f203, f4f5, f6f7 sum to ddf2 after folding.
        let sum = 0x0001 + 0xf203 + 0xf4f5 + 0xf6f7;
        assert_eq!(finish(sum), !0xddf2);
    }

    #[test]
    fn words_of_32_bits_sum_to_the_same() {
        assert_eq!(finish_words(0x0001_f203 + 0xf4f5_f6f7), !0xddf2);
        assert_eq!(finish_words(0xffff_ffff * 300 + 1), !1);
        assert_eq!(finish_words(0xffff_ffff << 16), 0);
        for carry in [1, 2, 0x7fff, 0xffff] {
            for low in [
                0,
                1,
                0xffff,
                0x1_0000,
                0xfffe_ffff,
                0xffff_0000,
                0xffff_ffff,
            ] {
                let expected = !((carry + low - 1) % 0xffff + 1) as u16;
                assert_eq!(
                    finish_words(carry << 32 | low),
                    expected,
                    "{carry:x} {low:x}"
                );
            }
        }
    }

    #[test]
    fn a_small_sum_is_finished_by_a_product() {
        let halves = [0, 1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff];
        for (high, low) in halves
            .iter()
            .flat_map(|high| halves.map(|low| (*high, low)))
        {
            let found = finish_small(u64::from(high << 16 | low));
            assert_eq!(found, finish(high + low), "{high:x} {low:x}");
        }
    }

    #[test]
    fn a_replaced_word_changes_the_checksum_as_a_new_sum_would() {
        for (old, new) in [(0x5555, 0x3285), (0, 0xffff), (0xffff, 0), (8, 0), (7, 7)] {
            let before = finish(0xcd7a + old);
            assert_eq!(
                replaced(before, old as u16, new as u16),
                finish(0xcd7a + new),
                "{old:x} {new:x}"
            );
        }
        // RFC 1624, section 4: the example that other equations get wrong.
        assert_eq!(replaced(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn halves_of_a_word_are_its_two_16_bit_words() {
        assert_eq!(halves(0x1234_5678), 0x1234 + 0x5678);
    }
}
