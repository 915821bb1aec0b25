//! Figures: what a benchmark has come to, as a table for people and as JSON for programs.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, fmt, fs, path::Path};

/// Samples of one thing.
#[derive(Clone, Debug)]
pub struct Figure {
    /// In order of size.
    samples: Vec<f64>,
    /// Such as `ns`.
    pub unit: String,
}

/// Figures by name, in order of name.
pub type Figures = BTreeMap<String, Figure>;

impl Figure {
    /// One of at least one sample.
    pub fn new(mut samples: Vec<f64>, unit: &str) -> Self {
        samples.sort_by(f64::total_cmp);
        Self {
            samples,
            unit: unit.into(),
        }
    }

    /// The samples, in order of size.
    pub fn samples(&self) -> &[f64] {
        &self.samples
    }

    /// The smallest sample.
    pub fn min(&self) -> f64 {
        self.samples.first().copied().unwrap_or(f64::NAN)
    }

    /// The sample in the middle.
    pub fn median(&self) -> f64 {
        let middle = self.samples.len() / 2;
        self.samples.get(middle).copied().unwrap_or(f64::NAN)
    }

    /// The largest sample.
    pub fn max(&self) -> f64 {
        self.samples.last().copied().unwrap_or(f64::NAN)
    }

    /// How far apart the samples are: the largest over the smallest, less one, in percent. None for what can be nothing, such as
    /// differences.
    pub fn spread(&self) -> Option<f64> {
        (self.min() > 0.0).then(|| (self.max() / self.min() - 1.0) * 100.0)
    }
}

/// Figures as lines of a table, the smallest of each also as a multiple of that of `unit_of`, if that is one of them.
pub struct Table<'a> {
    /// What it shows.
    pub figures: &'a Figures,
    /// The figure that others are compared with.
    pub unit_of: &'a str,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.figures.keys().map(String::len).max().unwrap_or(0);
        let unit = self.figures.get(self.unit_of).map(Figure::min);
        write!(
            f,
            "{:width$} {:>10} {:>10} {:>8}",
            "", "min", "median", "spread"
        )?;
        match unit {
            Some(_) => writeln!(f, "        {:>8}", "multiple")?,
            None => writeln!(f)?,
        }
        for (name, figure) in self.figures {
            let spread = figure.spread().map(|spread| format!("{spread:.0}%"));
            write!(
                f,
                "{name:width$} {:>10.1} {:>10.1} {:>8} {}",
                figure.min(),
                figure.median(),
                spread.as_deref().unwrap_or("-"),
                figure.unit
            )?;
            match unit {
                Some(unit) => {
                    let rest = 7_usize.saturating_sub(figure.unit.len());
                    writeln!(f, "{:rest$}{:>8.2}", "", figure.min() / unit)?;
                }
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Writes figures as one flat object of `name: {min, median, max, unit}`.
///
/// # Errors
/// When the file cannot be written.
pub fn write(figures: &Figures, path: &Path) -> Result<()> {
    let object: Map<String, Value> = figures
        .iter()
        .map(|(name, figure)| {
            let value = json!({
                "min": figure.min(),
                "median": figure.median(),
                "max": figure.max(),
                "unit": figure.unit,
            });
            (name.clone(), value)
        })
        .collect();
    let text = serde_json::to_string_pretty(&object)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what [`write()`] wrote.
///
/// # Errors
/// When the file cannot be read or is something else; the error names the file and the figure.
pub fn read(path: &Path) -> Result<Figures> {
    let file = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
    let object: BTreeMap<String, Value> =
        serde_json::from_str(&text).with_context(|| format!("{file} is no object of figures"))?;
    let figure = |(name, value): (String, Value)| {
        let number = |key: &str| {
            let number = value.get(key).and_then(Value::as_f64);
            number.with_context(|| format!("{file}: {name}.{key} is not a number"))
        };
        let samples = vec![number("min")?, number("median")?, number("max")?];
        let unit = value.get("unit").and_then(Value::as_str);
        let unit = unit.with_context(|| format!("{file}: {name}.unit is not a text"))?;
        Ok((name.clone(), Figure::new(samples, unit)))
    };
    object.into_iter().map(figure).collect()
}

/// Figures that have become worse than in `old` by more than `tolerance` percent, each in words. All units are of times or of what else
/// should be small, but those that end in `pps`. What was nothing has no share by which it could be worse.
pub fn worse(old: &Figures, new: &Figures, tolerance: f64) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, new) in new {
        let Some(old) = old.get(name).filter(|old| old.min() > 0.0) else {
            continue;
        };
        let more = if new.unit.ends_with("pps") {
            old.max() / new.max()
        } else {
            new.min() / old.min()
        };
        if more > 1.0 + tolerance / 100.0 {
            let (before, after, unit) = (old.min(), new.min(), &new.unit);
            lines.push(format!(
                "{name}: {before:.1} -> {after:.1} {unit}, {:.0} % worse",
                (more - 1.0) * 100.0
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(list: &[(&str, f64, &str)]) -> Figures {
        list.iter()
            .map(|(name, value, unit)| {
                let samples = vec![value * 1.5, *value, value * 1.1];
                (name.to_string(), Figure::new(samples, unit))
            })
            .collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("figures.json");
        let all = figures(&[("a.b", 3.25, "ns"), ("c", 7.0, "ms")]);
        write(&all, &path).unwrap();
        let read = read(&path).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read["a.b"].min(), read["a.b"].median()),
            (3.25, 3.25 * 1.1)
        );
        assert_eq!((read["c"].max(), read["c"].unit.as_str()), (10.5, "ms"));
    }

    #[test]
    fn multiples_are_told_only_where_there_is_a_figure_to_multiply() {
        let all = figures(&[("one", 2.0, "ns"), ("other", 7.0, "ns")]);
        let table = |unit_of| {
            let figures = &all;
            Table { figures, unit_of }.to_string()
        };
        assert!(table("one").contains("multiple"), "{}", table("one"));
        assert!(
            table("one").trim_end().ends_with("3.50"),
            "{}",
            table("one")
        );
        assert!(!table("none").contains("multiple"), "{}", table("none"));
        assert!(
            table("none").trim_end().ends_with("ns"),
            "{}",
            table("none")
        );
    }

    #[test]
    fn what_is_no_figure_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("figures.json");
        for (text, problem) in [
            ("[]", "no object of figures"),
            (
                "{\"a\": {\"min\": 1, \"median\": 2, \"unit\": \"ns\"}}",
                "a.max is not a number",
            ),
            (
                "{\"a\": {\"min\": 1, \"median\": 2, \"max\": 3}}",
                "a.unit is not a text",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn only_what_is_worse_than_tolerated_is_named() {
        let old = figures(&[
            ("time", 10.0, "ns"),
            ("rate", 10.0, "Mpps"),
            ("gone", 1.0, "ns"),
        ]);
        let new = |time, rate| {
            figures(&[
                ("time", time, "ns"),
                ("rate", rate, "Mpps"),
                ("new", 9.0, "ns"),
            ])
        };
        assert_eq!(worse(&old, &new(11.0, 9.5), 15.0), Vec::<String>::new());
        assert_eq!(worse(&old, &new(2.0, 50.0), 15.0), Vec::<String>::new());
        let lines = worse(&old, &new(12.0, 8.0), 15.0);
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0].starts_with("rate:") && lines[0].ends_with("25 % worse"),
            "{lines:?}"
        );
        assert!(
            lines[1].starts_with("time:") && lines[1].ends_with("20 % worse"),
            "{lines:?}"
        );
    }

    #[test]
    fn what_was_nothing_has_no_spread_and_is_not_compared() {
        let of =
            |samples: [f64; 2]| Figures::from([("d".into(), Figure::new(samples.into(), "ns"))]);
        let (nothing, something) = (of([-2.0, 9.0]), of([4.0, 5.0]));
        assert_eq!(nothing["d"].spread(), None);
        assert_eq!(something["d"].spread(), Some(25.0));
        let (figures, unit_of) = (&nothing, "");
        let table = Table { figures, unit_of }.to_string();
        assert!(table.contains(" - ns"), "{table}");
        assert_eq!(worse(&nothing, &something, 20.0), Vec::<String>::new());
        assert_eq!(worse(&something, &of([6.0, 7.0]), 20.0).len(), 1);
    }
}
