//! How many answers a CPU gives: a token bucket in one word.

/// What the balancer answers by itself, each with a bucket of its own on every CPU.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The size that fits, to who sent what is too large.
    TooBig = 0,
    /// An echo reply.
    Echo = 1,
}

impl Answer {
    /// Kinds of answers: buckets of a CPU.
    pub const COUNT: u32 = 2;
}

/// Answers of each kind that a CPU gives per second, in the long run.
pub const ANSWERS_PER_SECOND: u64 = 1_000;
/// Answers that it gives at once after a silence.
pub const ANSWERS_AT_ONCE: u64 = 100;

/// Nanoseconds that an answer costs.
const PRICE: u64 = 1_000_000_000 / ANSWERS_PER_SECOND;

/// The bucket after an answer at `now`, or nothing if it is empty. `spent` is the bucket before: the moment up to which all
/// answers are paid for. Both in nanoseconds of CLOCK_MONOTONIC; a bucket of 0 is full.
#[inline(always)]
pub const fn take(spent: u64, now: u64) -> Option<u64> {
    let full = now.saturating_sub(PRICE * ANSWERS_AT_ONCE);
    let from = if spent > full { spent } else { full };
    let paid = from + PRICE;
    if paid > now { None } else { Some(paid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// How many answers are given at this moment.
    fn drain(bucket: &mut u64, now: u64) -> u64 {
        let mut taken = 0;
        while let Some(next) = take(*bucket, now) {
            *bucket = next;
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_bucket_fills_at_its_rate_and_no_further_than_its_brim() {
        let mut bucket = 0;
        let start = 5 * SECOND;
        assert_eq!(drain(&mut bucket, start), ANSWERS_AT_ONCE);
        assert_eq!(drain(&mut bucket, start), 0);
        assert_eq!(
            drain(&mut bucket, start + SECOND / 100),
            ANSWERS_PER_SECOND / 100
        );
        assert_eq!(drain(&mut bucket, start + 60 * SECOND), ANSWERS_AT_ONCE);
        // A clock that goes back gives nothing away.
        assert_eq!(drain(&mut bucket, start), 0);
    }
}
