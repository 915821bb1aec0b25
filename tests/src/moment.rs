//! Moments as programs write them into their logs: the time of day, in seconds. `lbd` and `ip -ts` of one machine have one clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// A day has so many.
const SECONDS: f64 = 86_400.0;

/// Now, in UTC.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64() % SECONDS)
}

/// The time of day in `2026-01-02T03:04:05.678` somewhere in a line.
pub fn in_line(line: &str) -> Option<f64> {
    let (_, time) = line.split_once('T')?;
    let end = time.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.')?;
    let mut parts = time[..end].split(':').map(str::parse::<f64>);
    let (h, m, s) = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    Some(h * 3_600.0 + m * 60.0 + s)
}

/// Milliseconds from one moment to another that is less than half a day before or after it.
pub fn millis(from: f64, to: f64) -> f64 {
    let seconds = (to - from + SECONDS / 2.0).rem_euclid(SECONDS) - SECONDS / 2.0;
    seconds * 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_may_end_between_two_moments() {
        let late = in_line("[2026-01-02T23:59:59.900000] 10.0.0.1").unwrap();
        let early = in_line("2026-01-03T00:00:00.100000Z WARN x").unwrap();
        assert!((millis(late, early) - 200.0).abs() < 0.001);
        assert!((millis(early, late) + 200.0).abs() < 0.001);
        assert_eq!(in_line("nothing To see"), None);
    }
}
