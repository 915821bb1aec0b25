//! Counts test results out of what `cargo test` prints.

use std::{fmt, ops::AddAssign};

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran and held.
    pub passed: u64,
    /// Ran and did not hold, or could not be built.
    pub failed: u64,
    /// Did not run.
    pub skipped: u64,
}

impl Tally {
    /// The counts of a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; ...`;
    /// nothing for any other line. What a guest prints comes after its kernel in brackets.
    pub fn of_line(line: &str) -> Option<Self> {
        let line = line.trim();
        let of_guest = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "));
        let (_verdict, counts) = of_guest
            .map_or(line, |(_kernel, line)| line)
            .strip_prefix("test result: ")?
            .split_once(". ")?;
        let count = |name: &str| {
            let field = counts
                .split("; ")
                .find_map(|field| field.strip_suffix(name));
            field.and_then(|number| number.trim().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }

    /// One failure.
    pub fn failure() -> Self {
        Self {
            failed: 1,
            ..Self::default()
        }
    }

    /// One thing that was not run.
    pub fn skip() -> Self {
        Self {
            skipped: 1,
            ..Self::default()
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s";
        assert_eq!(
            Tally::of_line(line),
            Some(Tally {
                passed: 12,
                failed: 3,
                skipped: 1
            })
        );
    }

    #[test]
    fn result_lines_of_guests_are_counted() {
        let line = "[6.1] test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.01s";
        assert_eq!(Tally::of_line(line).map(|tally| tally.passed), Some(2));
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            "",
            "running 3 tests",
            "test result: ok",
            "test a::b ... ok",
            "3 passed; 0 failed; 0 ignored",
        ] {
            assert_eq!(Tally::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn the_sum_reads_as_ci_expects() {
        let mut sum = Tally {
            passed: 4,
            failed: 0,
            skipped: 2,
        };
        sum += Tally::failure();
        sum += Tally::skip();
        assert_eq!(sum.to_string(), "4 passed, 1 failed, 3 skipped");
    }
}
