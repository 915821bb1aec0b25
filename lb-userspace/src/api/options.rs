//! How a change is made, or kept from being made: what goes with every change, whatever it is.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// What goes with a change. As a query it is `dry_run=true&if_revision=7&max_move=10&now=true`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ChangeOptions {
    /// Only say what it would do.
    #[serde(skip_serializing_if = "is_false")]
    pub dry_run: bool,
    /// Refuse it unless this revision is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// Refuse it if it would move more than this share of the slots of a service that is there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_move: Option<Percent>,
    /// Backends that it removes give up their flows at once.
    #[serde(skip_serializing_if = "is_false")]
    pub now: bool,
}

/// A share, 0 to 100 percent. Written like `10`, `2.5` or `10%`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    /// Whether `part` is more than this share of `whole`.
    pub fn is_exceeded_by(self, part: u32, whole: u32) -> bool {
        f64::from(part) * 100.0 > self.0 * f64::from(whole)
    }
}

/// A text that is no share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a share; use 0 to 100, in percent, such as `10` or `2.5`")]
pub struct NoPercent;

impl FromStr for Percent {
    type Err = NoPercent;

    fn from_str(text: &str) -> Result<Self, NoPercent> {
        let number = text.strip_suffix('%').unwrap_or(text).trim();
        let share: f64 = number.parse().map_err(|_| NoPercent)?;
        (0.0..=100.0)
            .contains(&share)
            .then_some(Self(share))
            .ok_or(NoPercent)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|fault| D::Error::custom(format!("`{text}` {fault}")))
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_written() {
        for (text, written) in [
            ("0", "0"),
            ("10", "10"),
            ("10%", "10"),
            ("2.5", "2.5"),
            ("100 %", "100"),
            ("0.001", "0.001"),
        ] {
            let share: Percent = text.parse().unwrap();
            assert_eq!(share.to_string(), written);
            assert_eq!(share.to_string().parse(), Ok(share));
        }
        for text in ["", "%", "ten", "-1", "100.1", "NaN", "inf", "10%%", "1,5"] {
            assert_eq!(text.parse::<Percent>(), Err(NoPercent), "{text}");
        }
    }

    #[test]
    fn a_share_is_exceeded_by_more_only() {
        let ten: Percent = "10".parse().unwrap();
        assert!(!ten.is_exceeded_by(6_553, 65_537));
        assert!(ten.is_exceeded_by(6_554, 65_537));
        let (none, all): (Percent, Percent) = ("0".parse().unwrap(), "100".parse().unwrap());
        assert!(!none.is_exceeded_by(0, 65_537) && none.is_exceeded_by(1, 65_537));
        assert!(!all.is_exceeded_by(65_537, 65_537));
    }
}
