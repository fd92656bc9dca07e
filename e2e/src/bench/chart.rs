//! Bars as an SVG drawing: written by hand, so that it needs no program to make and none but a browser to see.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 170.0;
const VALUES: f64 = 50.0;
const BAR: f64 = 13.0;
const GAP: f64 = 9.0;
const TITLE: f64 = 26.0;
const LEGEND: f64 = 20.0;
const COLOURS: [&str; 4] = ["#2563eb", "#60a5fa", "#f59e0b", "#6b7280"];

/// One set of bars below a title.
#[derive(Debug)]
pub struct Panel<'a> {
    /// What the bars are, with the unit.
    pub title: &'a str,
    /// A name and a value for each row; `None` leaves the place empty.
    pub series: Vec<(&'a str, Vec<Option<f64>>)>,
}

impl Panel<'_> {
    fn height(&self, n_rows: usize) -> f64 {
        let legend = if self.series.len() > 1 { LEGEND } else { 0.0 };
        TITLE + legend + count(n_rows) * self.row_height()
    }

    fn row_height(&self) -> f64 {
        count(self.series.len()) * BAR + GAP
    }

    fn max(&self) -> f64 {
        let values = self.series.iter().flat_map(|(_, values)| values);
        values.copied().flatten().fold(0.0, f64::max)
    }
}

/// A drawing of all panels, one below the other, with the same rows in each.
#[must_use]
pub fn svg(rows: &[&str], panels: &[Panel<'_>]) -> String {
    let height = panels
        .iter()
        .map(|panel| panel.height(rows.len()) + GAP)
        .sum::<f64>()
        + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let mut top = GAP;
    for panel in panels {
        draw(&mut out, rows, panel, top);
        top += panel.height(rows.len()) + GAP;
    }
    out += "</svg>\n";
    out
}

fn draw(out: &mut String, rows: &[&str], panel: &Panel<'_>, top: f64) {
    let mut y = top + 14.0;
    text(out, (GAP, y), "font-weight=\"bold\"", panel.title);
    y += TITLE - 14.0;
    if panel.series.len() > 1 {
        let mut x = LABELS;
        for (number, (name, _)) in panel.series.iter().enumerate() {
            rect(out, (x, y), 10.0, colour(number));
            text(out, (x + 15.0, y + 10.0), "", name);
            x += 40.0 + 6.5 * count(name.chars().count());
        }
        y += LEGEND;
    }
    let scale = (WIDTH - LABELS - VALUES) / panel.max().max(f64::MIN_POSITIVE);
    for (index, row) in rows.iter().enumerate() {
        let middle = y + count(panel.series.len()) * BAR / 2.0 + 4.0;
        text(out, (LABELS - GAP, middle), "text-anchor=\"end\"", row);
        for (number, (_, values)) in panel.series.iter().enumerate() {
            let Some(value) = values.get(index).copied().flatten() else {
                continue;
            };
            let at = y + count(number) * BAR;
            let width = value * scale;
            rect(out, (LABELS, at), width, colour(number));
            text(
                out,
                (LABELS + width + 4.0, at + 10.0),
                "font-size=\"10\"",
                &format!("{value:.2}"),
            );
        }
        y += panel.row_height();
    }
}

fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

fn rect(out: &mut String, (x, y): (f64, f64), width: f64, colour: &str) {
    let height = BAR - 2.0;
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

fn text(out: &mut String, (x, y): (f64, f64), attributes: &str, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#111827\" {attributes}>{words}</text>"
    );
}

/// Rows, bars and letters are few.
fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(0.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::{Panel, svg};

    #[test]
    fn bars_are_as_long_as_their_values_and_words_are_escaped() {
        let panel = Panel {
            title: "a < b",
            series: vec![
                ("one", vec![Some(2.0), Some(1.0)]),
                ("two", vec![None, None]),
            ],
        };
        let drawn = svg(&["x & y", "z"], &[panel]);
        assert!(drawn.contains("a &lt; b") && drawn.contains("x &amp; y"));
        assert!(drawn.contains("width=\"540.0\"") && drawn.contains("width=\"270.0\""));
        assert_eq!(drawn.matches("<rect").count(), 1 + 2 + 2, "{drawn}");
        assert!(drawn.ends_with("</svg>\n"));
    }
}
