//! A difference between the program and the model: made small, and told in words.

use crate::{counters::Counters, fixtures::hex, model::Expected, packet::ETHERNET};
use anyhow::Result;
use etherparse::SlicedPacket;
use std::fmt;

/// What differed.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The frame as received.
    pub frame: Vec<u8>,
    /// What the model says.
    pub expected: Expected,
    /// What the model counts.
    pub counted: Counters,
    /// What the program answered: `enum xdp_action`.
    pub action: u32,
    /// What the program left.
    pub out: Vec<u8>,
    /// What the program counted.
    pub counters: Counters,
    /// Entries of the flow table and of fragments that differ.
    pub tables: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = &self.expected;
        writeln!(f, "program and model differ:")?;
        writeln!(f, "  frame     {}", hex(&self.frame))?;
        writeln!(f, "  decoded   {}", decoded(&self.frame))?;
        writeln!(
            f,
            "  program   XDP action {}, counted {:?}",
            self.action, self.counters
        )?;
        writeln!(f, "            {}", hex(&self.out))?;
        writeln!(
            f,
            "  model     {:?}, {:?}, counted {:?}",
            expected.action, expected.verdict, self.counted
        )?;
        writeln!(f, "            {}", hex(&expected.frame))?;
        for entry in &self.tables {
            writeln!(f, "  table     {entry}")?;
        }
        writeln!(
            f,
            "As a fixture, once it is clear which of them is right (tests/src/fixtures/regression.rs):"
        )?;
        writeln!(
            f,
            "    (\"a name\", \"what it is\", Verdict::{:?}, \"{}\"),",
            expected.verdict,
            hex(&self.frame)
        )
    }
}

/// A frame in words.
pub fn decoded(frame: &[u8]) -> String {
    match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => format!("{packet:?}"),
        Err(error) => format!("not to be decoded whole: {error}"),
    }
}

/// The difference that a smaller frame shows as well, as small as cutting and clearing bytes gets it; `None` if not even
/// the whole frame shows one.
pub fn shrink(
    frame: &[u8],
    mut differs: impl FnMut(&[u8]) -> Result<Option<Difference>>,
) -> Result<Option<Difference>> {
    let Some(mut smallest) = differs(frame)? else {
        return Ok(None);
    };
    let mut cut = frame.len() / 2;
    while cut > 0 {
        let length = smallest.frame.len().saturating_sub(cut);
        let shorter = smallest
            .frame
            .get(..length.max(ETHERNET))
            .unwrap_or_default();
        match differs(shorter)? {
            Some(smaller) if length >= ETHERNET => smallest = smaller,
            _ => cut /= 2,
        }
    }
    for at in 0..smallest.frame.len() {
        let mut cleared = smallest.frame.clone();
        if cleared[at] != 0 {
            cleared[at] = 0;
            if let Some(simpler) = differs(&cleared)? {
                smallest = simpler;
            }
        }
    }
    Ok(Some(smallest))
}
