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
    fn halves_of_a_word_are_its_two_16_bit_words() {
        assert_eq!(halves(0x1234_5678), 0x1234 + 0x5678);
    }
}
