//! What is asked of a measurement, and whether it was met.

use std::fmt::Write as _;

use super::median;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
}

/// One demand, with what each round gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What is measured.
    pub what: String,
    /// What is asked.
    pub bound: Bound,
    /// Such as `ms`, or `× boringtun-cli` for a ratio.
    pub unit: String,
    /// The value of each round; `None` where it could not be had.
    pub rounds: Vec<Option<f64>>,
}

impl Bar {
    /// A demand for at least `bound`.
    #[must_use]
    pub fn at_least(bound: f64, unit: &str, what: &str, rounds: Vec<Option<f64>>) -> Self {
        Self {
            what: what.to_owned(),
            bound: Bound::AtLeast(bound),
            unit: unit.to_owned(),
            rounds,
        }
    }

    /// A demand for at most `bound`.
    #[must_use]
    pub fn at_most(bound: f64, unit: &str, what: &str, rounds: Vec<Option<f64>>) -> Self {
        Self {
            bound: Bound::AtMost(bound),
            ..Self::at_least(bound, unit, what, rounds)
        }
    }

    /// The median of the rounds; `None` when fewer than half of them gave a value.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        let values: Vec<f64> = self.rounds.iter().copied().flatten().collect();
        (values.len() * 2 > self.rounds.len()).then(|| median(&values))
    }

    /// Whether the median meets the demand; what could not be measured does not.
    #[must_use]
    pub fn is_met(&self) -> bool {
        self.median().is_some_and(|value| match self.bound {
            Bound::AtLeast(bound) => value >= bound,
            Bound::AtMost(bound) => value <= bound,
        })
    }

    fn row(&self) -> String {
        let sign = match self.bound {
            Bound::AtLeast(bound) => format!("≥ {}", short(bound)),
            Bound::AtMost(bound) => format!("≤ {}", short(bound)),
        };
        let value = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
        let rounds: Vec<_> = self.rounds.iter().map(|round| value(*round)).collect();
        format!(
            "| {} | {sign} {} | {} | {} | {} |\n",
            self.what,
            self.unit,
            value(self.median()),
            rounds.join(" "),
            if self.is_met() { "PASS" } else { "**FAIL**" }
        )
    }
}

/// Three figures are all that a measurement is good for.
fn short(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => {
            let text = format!("{value:.2}");
            text.strip_suffix(".00").unwrap_or(&text).to_owned()
        }
        _ => format!("{value:.4}"),
    }
}

/// All demands as a table; nothing when there are none.
#[must_use]
pub fn table(bars: &[Bar]) -> String {
    if bars.is_empty() {
        return String::new();
    }
    let mut text =
        "| asked of meshd | bar | median | by round | verdict |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    for bar in bars {
        // Writing to a string does not fail.
        let _ = write!(text, "{}", bar.row());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Bar, table};

    #[test]
    fn the_median_decides() {
        let rounds = vec![Some(1.0), Some(2.0), Some(9.0)];
        assert!(Bar::at_least(2.0, "×", "a", rounds.clone()).is_met());
        assert!(!Bar::at_least(2.1, "×", "a", rounds.clone()).is_met());
        assert!(Bar::at_most(2.0, "×", "a", rounds.clone()).is_met());
        assert!(!Bar::at_most(1.9, "×", "a", rounds).is_met());
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let mostly_missing = vec![None, None, Some(1.0)];
        for rounds in [vec![], vec![None], mostly_missing] {
            assert!(!Bar::at_most(5.0, "ms", "a", rounds.clone()).is_met());
            assert!(!Bar::at_least(0.0, "ms", "a", rounds).is_met());
        }
    }

    #[test]
    fn a_row_has_every_round() {
        let bars = [Bar::at_most(
            0.5,
            "× x",
            "CPU",
            vec![Some(0.61), None, Some(0.405), Some(120.4)],
        )];
        assert!(
            table(&bars).ends_with("| CPU | ≤ 0.50 × x | 0.61 | 0.61 - 0.41 120 | **FAIL** |\n"),
            "{}",
            table(&bars)
        );
        assert_eq!(table(&[]), "");
    }
}
