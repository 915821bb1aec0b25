//! How much of what is random or repeated a test does, and how long it waits. Guests without hardware acceleration ask for less
//! and are slower.

/// Names the percentage of the usual number of rounds, 1 to 100.
pub const VARIABLE: &str = "GUIDEWAY_TEST_EFFORT";

/// How many of `rounds` to do: all, unless [`VARIABLE`] says otherwise; at least one.
///
/// # Panics
/// When the variable is not a percentage.
pub fn of(rounds: u32) -> u32 {
    let percent = std::env::var(VARIABLE).map_or(100, |text| {
        let parsed = text
            .parse()
            .ok()
            .filter(|percent| (1..=100).contains(percent));
        parsed.unwrap_or_else(|| panic!("{VARIABLE}={text} is not a percentage, 1 to 100"))
    });
    (u64::from(rounds) * percent / 100).max(1) as u32
}

/// How long to wait for what usually takes no longer than `limit`.
pub fn limit(limit: std::time::Duration) -> std::time::Duration {
    if std::env::var_os(VARIABLE).is_some() {
        limit * 12
    } else {
        limit
    }
}
