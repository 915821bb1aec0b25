//! A plot of lines, as SVG.

use super::html::escape;
use std::fmt::Write as _;

const WIDTH: f64 = 820.0;
const HEIGHT: f64 = 360.0;
/// Room for numbers at the left, names at the right, and marks below: of a figure such as `packet.tcp4.established.1000000`, of a
/// run named by date and commit.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 240.0;
const BELOW: f64 = 100.0;
const ABOVE: f64 = 12.0;
/// Lines across.
const LINES: u32 = 5;
const COLOURS: [&str; 6] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
];

/// One line.
pub(super) struct Series {
    pub(super) name: String,
    /// In order.
    pub(super) points: Vec<(f64, f64)>,
}

/// Lines over one axis; the other begins at 0.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) series: Vec<Series>,
    /// Whether the axis of x is: then its values are at least 1.
    pub(super) is_logarithmic: bool,
    /// What is written below 0, 1, 2, ...; nothing: the values of the points.
    pub(super) marks: Vec<String>,
}

impl Plot {
    /// The plot as an element of a page.
    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let across = |x: f64| if self.is_logarithmic { x.log10() } else { x };
        let end = points().map(|(x, _)| across(*x)).fold(0.0, f64::max);
        let top = points().map(|(_, y)| *y).fold(0.0, f64::max) * 1.1;
        let (inner, high) = (WIDTH - LEFT - RIGHT, HEIGHT - BELOW - ABOVE);
        // A little room before the first point and behind the last.
        let at_x = |x: f64| LEFT + inner * (across(x) + 0.05 * end + 0.1) / (1.1 * end + 0.2);
        let at_y = |y: f64| ABOVE + high * (1.0 - y / top.max(f64::MIN_POSITIVE));
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\">");
        for line in 0..=LINES {
            let value = top * f64::from(line) / f64::from(LINES);
            let (y, end) = (at_y(value), WIDTH - RIGHT);
            let _ = write!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{end}\" stroke=\"#ccc\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{value:.1}</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
        for (place, text) in self.marks() {
            let _ = write!(
                svg,
                "<text transform=\"translate({:.1} {:.1}) rotate(20)\">{}</text>",
                at_x(place),
                HEIGHT - BELOW + 16.0,
                escape(&text)
            );
        }
        for (series, (number, colour)) in self
            .series
            .iter()
            .zip((0_u32..).zip(COLOURS.iter().cycle()))
        {
            let path = series
                .points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y)));
            let path: Vec<String> = path.collect();
            let _ = write!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (x, y) in &series.points {
                let _ = write!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{y:.1}</title></circle>",
                    at_x(*x),
                    at_y(*y)
                );
            }
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
                WIDTH - RIGHT + 8.0,
                ABOVE + 16.0 * f64::from(number + 1),
                escape(&series.name)
            );
        }
        svg + "</svg>"
    }

    /// What is written below the axis, and where.
    fn marks(&self) -> Vec<(f64, String)> {
        if !self.marks.is_empty() {
            let places = (0_u32..).map(f64::from);
            return places.zip(self.marks.iter().cloned()).collect();
        }
        if !self.is_logarithmic {
            return Vec::new();
        }
        let points = self.series.iter().flat_map(|series| &series.points);
        let mut values: Vec<f64> = points.map(|(x, _)| *x).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values.into_iter().map(|x| (x, x.to_string())).collect()
    }
}
