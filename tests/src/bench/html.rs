//! The report: figures as a page that needs nothing else, with plots as inline SVG.

use super::{
    figure::{Figure, Figures, Table},
    plot::{Plot, Series},
};
use anyhow::{Context, Result};
use std::{fmt::Write as _, fs, path::Path};

/// What the page's history follows.
const FOLLOWED: [&str; 9] = [
    "packet.tcp4.established.1",
    "packet.tcp4.established.1000000",
    "packet.tcp4.syn.1000000",
    "packet.tcp6.established.1",
    "packet.pass",
    "table.build.1000",
    "publish.health_change",
    "vm.pktgen.lb",
    "vm.virtio.lb",
];

/// Writes the page. `earlier` are the figures of earlier runs with their names, oldest first.
///
/// # Errors
/// When the file cannot be written.
pub fn write(
    figures: &Figures,
    earlier: &[(String, Figures)],
    machine: &str,
    path: &Path,
) -> Result<()> {
    let page = page(figures, earlier, machine)?;
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))
}

/// The figures of earlier runs: all files of a directory that end in `.json`, in order of name.
///
/// # Errors
/// When the directory or a file cannot be read, or a file holds something else.
pub fn history(directory: &Path) -> Result<Vec<(String, Figures)>> {
    let problem = || format!("cannot read {}", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(problem)? {
        let path = entry.with_context(problem)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap_or_default();
        Ok((
            name.to_string_lossy().into_owned(),
            super::figure::read(path)?,
        ))
    };
    paths.iter().map(read).collect()
}

fn page(figures: &Figures, earlier: &[(String, Figures)], machine: &str) -> Result<String> {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Guideway: benchmarks</title>\n<style>\
         body{font:15px sans-serif;max-width:60em;margin:2em auto}pre{overflow:auto;background:#f4f4f4;padding:1em}\
         svg{display:block;margin:1em 0}text{font:12px sans-serif}</style>\n",
    );
    writeln!(
        page,
        "<h1>Guideway: benchmarks</h1>\n<p>{}</p>",
        escape(machine)
    )?;
    for plot in [by_flows(figures), beside_ipvs(figures)]
        .into_iter()
        .chain(over_time(figures, earlier))
        .filter(|plot| !plot.series.is_empty())
    {
        writeln!(page, "<h2>{}</h2>\n{}", escape(&plot.title), plot.svg())?;
    }
    let table = Table {
        figures,
        unit_of: "packet.trivial_tx",
    };
    writeln!(
        page,
        "<h2>All figures</h2>\n<pre>{}</pre>\n</html>",
        escape(&table.to_string())
    )?;
    Ok(page)
}

/// Nanoseconds a packet against the number of flows: of every case that was measured with several numbers.
fn by_flows(figures: &Figures) -> Plot {
    let mut series: Vec<Series> = Vec::new();
    for (name, figure) in figures {
        let case = name
            .strip_prefix("packet.")
            .and_then(|case| case.rsplit_once('.'));
        let Some((case, flows)) = case else { continue };
        let Ok(flows) = flows.parse::<f64>() else {
            continue;
        };
        let point = (flows, figure.min());
        match series.iter_mut().find(|series| series.name == case) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name: case.to_owned(),
                points: vec![point],
            }),
        }
    }
    series.retain(|series| series.points.len() > 1);
    for series in &mut series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    Plot {
        title: "Nanoseconds a packet against the number of flows".into(),
        series,
        is_logarithmic: true,
        marks: Vec::new(),
    }
}

/// Each way of measuring in the guest: the balancer and, beside it, IPVS and others. There are more of them than colours, so that
/// each is named below itself.
fn beside_ipvs(figures: &Figures) -> Plot {
    let of_guest: Vec<(&String, &Figure)> = figures
        .iter()
        .filter(|(name, _)| name.starts_with("vm."))
        .collect();
    let unit = of_guest.first().map_or("", |(_, figure)| &figure.unit);
    let bars = || of_guest.iter().filter(|(_, figure)| figure.unit == unit);
    let series = bars().zip(0_u32..).map(|((_, figure), place)| Series {
        name: String::new(),
        points: vec![(f64::from(place), 0.0), (f64::from(place), figure.median())],
    });
    Plot {
        title: format!("In the guest, beside IPVS ({unit})"),
        series: series.collect(),
        is_logarithmic: false,
        marks: bars().map(|(name, _)| (*name).clone()).collect(),
    }
}

/// A plot for each figure that is followed and that earlier runs have.
fn over_time(figures: &Figures, earlier: &[(String, Figures)]) -> Vec<Plot> {
    let mut plots = Vec::new();
    for name in FOLLOWED {
        let now = ("now", figures);
        let runs = earlier.iter().map(|(run, figures)| (run.as_str(), figures));
        let found: Vec<(&str, &Figure)> = runs
            .chain([now])
            .filter_map(|(run, figures)| Some((run, figures.get(name)?)))
            .collect();
        if let [_, .., (_, last)] = &found[..] {
            let places = (0_u32..).map(f64::from);
            let points = places.zip(&found).map(|(x, (_, figure))| (x, figure.min()));
            plots.push(Plot {
                title: format!("{name} over time ({})", last.unit),
                series: vec![Series {
                    name: name.into(),
                    points: points.collect(),
                }],
                is_logarithmic: false,
                marks: found.iter().map(|(run, _)| (*run).to_owned()).collect(),
            });
        }
    }
    plots
}

/// Text as it may stand in a page.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(list: &[(&str, f64)]) -> Figures {
        let figure = |(name, value): &(&str, f64)| {
            let unit = if name.starts_with("vm.") {
                "kpps"
            } else {
                "ns"
            };
            ((*name).to_owned(), Figure::new(vec![*value], unit))
        };
        list.iter().map(figure).collect()
    }

    #[test]
    fn a_page_has_its_plots_and_needs_nothing_else() {
        let now = figures(&[
            ("packet.tcp4.established.1", 60.0),
            ("packet.tcp4.established.1000", 61.0),
            ("packet.tcp4.established.1000000", 75.0),
            ("packet.pass", 40.0),
            ("vm.pktgen.lb", 400.0),
            ("vm.pktgen.ipvs", 100.0),
        ]);
        let before = figures(&[("packet.pass", 50.0)]);
        let page = page(&now, &[("2026-01-01-<abc>".into(), before)], "a & b").unwrap();
        assert_eq!(page.matches("<svg").count(), 3, "{page}");
        assert_eq!(page.matches("</svg>").count(), 3);
        for part in [
            "a &amp; b",
            "2026-01-01-&lt;abc&gt;",
            "rotate(20)\">vm.pktgen.ipvs</text>",
            "packet.pass over time (ns)",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("src=") && !page.contains("href="));
    }

    #[test]
    fn earlier_runs_are_read_in_order_of_name() {
        let directory = tempfile::tempdir().unwrap();
        for (name, value) in [("2026-02", 2.0), ("2026-01", 1.0)] {
            let path = directory.path().join(format!("{name}.json"));
            super::super::figure::write(&figures(&[("packet.pass", value)]), &path).unwrap();
        }
        fs::write(directory.path().join("notes.txt"), "no figures").unwrap();
        let runs = history(directory.path()).unwrap();
        let names: Vec<_> = runs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["2026-01", "2026-02"]);
        assert_eq!(runs[1].1["packet.pass"].min(), 2.0);
    }
}
