//! What was measured, by name, and how it is shown.

use crate::speaker::Kind;
use std::collections::BTreeMap;

/// Rows of the table: a figure's name, and what it is the time of.
const ROWS: [(&str, &str); 12] = [
    ("withdraw", "last healthy backend down"),
    ("return", "first backend up again: route back"),
    ("drain", "node drain"),
    ("announce", "node undrain: route back"),
    ("undrain", "undrain during the drain: route back"),
    ("lbd_killed_losses", "lbd killed: losses of the route"),
    ("sick", "lbd killed, then the program taken off"),
    ("lbd_started", "lbd started after that: route back"),
    ("speaker_killed", "speaker killed"),
    ("speaker_restarted", "speaker started: route back"),
    ("frozen_speaker", "speaker frozen"),
    ("frozen", "node frozen"),
];

/// Figures, each measured once or more often.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<String, Vec<f64>>);

impl Figures {
    /// Takes a measurement.
    pub(super) fn add(&mut self, name: &str, value: f64) {
        println!("  {name:<32} {value:>9.1}");
        self.0.entry(name.into()).or_default().push(value);
    }

    /// The sum of all measurements of a name.
    pub(super) fn sum(&self, name: &str) -> Option<f64> {
        Some(self.0.get(name)?.iter().sum())
    }

    /// Whether all measurements of names with this end are zero.
    pub(super) fn all_zero(&self, end: &str) -> bool {
        let mut all = self.0.iter().filter(|(name, _)| name.ends_with(end));
        all.all(|(_, values)| values.iter().all(|value| *value == 0.0))
    }

    /// A figure: the sum of counts (of what broke or was lost), else the median of what was measured, the upper one of two.
    pub(super) fn get(&self, name: &str) -> Option<f64> {
        if name.ends_with(".broken") || name.ends_with("_losses") {
            return self.sum(name);
        }
        let mut values = self.0.get(name)?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// All figures as one flat object.
    pub(super) fn json(&self) -> serde_json::Value {
        let figure = |name: &String| Some((name.clone(), rounded(self.get(name)?).into()));
        let map: serde_json::Map<_, _> = self.0.keys().filter_map(figure).collect();
        map.into()
    }

    /// The table of speakers: to the route at the router, and to the first packet at the other node.
    pub(super) fn table(&self, kinds: &[Kind]) -> String {
        let mut text = format!("{:<40}", "milliseconds: route gone / first packet");
        for kind in kinds {
            text += &format!("{:>18}", kind.name());
        }
        for (name, words) in ROWS {
            text += &format!("\n{words:<40}");
            for kind in kinds {
                text += &format!("{:>18}", self.cell(kind.name(), name));
            }
        }
        text + "\n"
    }

    fn cell(&self, kind: &str, name: &str) -> String {
        let get = |end: &str| self.get(&format!("{kind}.{name}{end}"));
        match (get("_ms").or(get("")), get("_packet_ms")) {
            (Some(route), Some(packet)) => format!("{route:.0} / {packet:.0}"),
            (Some(route), None) => format!("{route:.0}"),
            (None, _) => "-".into(),
        }
    }
}

/// A tenth of a millisecond is enough.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_and_the_table_has_what_there_is() {
        let mut figures = Figures::default();
        for value in [9.0, 1.04, 2.0] {
            figures.add("bird.withdraw_ms", value);
        }
        figures.add("bird.withdraw_packet_ms", 3.0);
        figures.add("bird.lbd_killed_losses", 0.0);
        assert_eq!(
            figures.json(),
            serde_json::json!({
                "bird.withdraw_ms": 2.0, "bird.withdraw_packet_ms": 3.0, "bird.lbd_killed_losses": 0.0,
            })
        );
        let table = figures.table(&[Kind::Bird, Kind::Frr]);
        let row = table.lines().nth(1).unwrap();
        let cells: Vec<&str> = row.split_whitespace().skip(4).collect();
        assert_eq!(cells, ["2", "/", "3", "-"]);
    }
}
