//! Positions of members, in as few bytes as they take: a daemon keeps three such lists for each table.

use super::NOBODY;

/// A list of positions. Past its end is [`NOBODY`].
#[derive(Debug)]
pub(super) enum Positions {
    /// Of at most 255 members.
    One(Box<[u8]>),
    /// Of at most 65,535 members.
    Two(Box<[u16]>),
    /// Of more.
    Four(Box<[u32]>),
}

impl Positions {
    /// Packs positions of so many members.
    pub(super) fn pack(members: usize, positions: impl Iterator<Item = u32>) -> Self {
        if members <= usize::from(u8::MAX) {
            Self::One(positions.map(|position| position as u8).collect())
        } else if members <= usize::from(u16::MAX) {
            Self::Two(positions.map(|position| position as u16).collect())
        } else {
            Self::Four(positions.collect())
        }
    }

    /// The position at a place.
    pub(super) fn get(&self, place: usize) -> u32 {
        let found = match self {
            Self::One(all) => all.get(place).copied().map(u32::from),
            Self::Two(all) => all.get(place).copied().map(u32::from),
            Self::Four(all) => all.get(place).copied(),
        };
        found.unwrap_or(NOBODY)
    }

    /// All of them.
    pub(super) fn unpack(&self) -> Vec<u32> {
        match self {
            Self::One(all) => all.iter().copied().map(u32::from).collect(),
            Self::Two(all) => all.iter().copied().map(u32::from).collect(),
            Self::Four(all) => all.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        for most in [1, 255, 256, 65_535, 65_536] {
            let all = [0, 1, most, most / 2];
            let packed = Positions::pack(most as usize, all.into_iter());
            assert_eq!(packed.unpack(), all);
            assert_eq!([0, 1, 2, 3].map(|place| packed.get(place)), all);
            assert_eq!(packed.get(4), NOBODY);
        }
    }
}
