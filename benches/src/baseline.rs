//! The committed counts, and what has become of them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

const RISE_MAX: f64 = 0.05;
const HEAD: &str =
    "# Instructions per packet. Written by `make count-renew`, checked by `make count`.\n";

/// Counts by scenario, in the order of the file.
pub(crate) type Counts = Vec<(String, f64)>;

/// What a comparison found.
#[derive(Debug)]
pub(crate) struct Report {
    /// A line for each scenario.
    pub(crate) text: String,
    /// Whether one costs more than it may.
    pub(crate) has_risen: bool,
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("baseline.txt")
}

/// Reads the committed counts.
///
/// # Errors
/// When the file is missing or says something else.
pub(crate) fn read() -> Result<Counts> {
    let path = path();
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{}: make it with `make count-renew`", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Writes the counts.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(counts: &Counts) -> Result<()> {
    let path = path();
    fs::write(&path, format!("{HEAD}{}", table(counts))).with_context(|| path.display().to_string())
}

/// A line for each scenario.
pub(crate) fn table(counts: &Counts) -> String {
    counts
        .iter()
        .fold(String::new(), |mut text, (name, count)| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<16} {count:>9.1}");
            text
        })
}

fn parse(text: &str) -> Result<Counts> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let (name, count) = line.split_once(' ').with_context(|| line.to_owned())?;
            let count = count.trim().parse().with_context(|| line.to_owned())?;
            Ok((name.to_owned(), count))
        })
        .collect()
}

/// Puts new counts beside the committed ones.
///
/// # Errors
/// When the two are not of the same scenarios.
pub(crate) fn compare(old: &Counts, new: &Counts) -> Result<Report> {
    let names =
        |counts: &Counts| -> Vec<String> { counts.iter().map(|(name, _)| name.clone()).collect() };
    ensure!(
        names(old) == names(new),
        "the baseline is of other scenarios; renew it: make count-renew"
    );
    let mut report = Report {
        text: "instructions per packet      now  baseline".to_owned(),
        has_risen: false,
    };
    for ((name, old), (_, new)) in old.iter().zip(new) {
        let change = new / old - 1.0;
        let has_risen = change > RISE_MAX;
        report.has_risen |= has_risen;
        let verdict = if has_risen {
            "  FAIL"
        } else if change < -RISE_MAX {
            "  fell: keep it with `make count-renew`"
        } else {
            ""
        };
        let percent = change * 100.0;
        write!(
            report.text,
            "\n{name:<22} {new:>9.1} {old:>9.1} {percent:>+6.1} %{verdict}"
        )?;
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::{Counts, compare, parse, table};

    fn counts(seal: f64, open: f64) -> Counts {
        vec![("seal".to_owned(), seal), ("open".to_owned(), open)]
    }

    #[test]
    fn what_is_written_is_read() {
        let written = counts(2_000.5, 1_999.0);
        assert_eq!(
            parse(&format!("# head\n{}", table(&written))).unwrap(),
            written
        );
        assert!(parse("seal many").is_err());
    }

    #[test]
    fn only_a_rise_of_more_than_a_twentieth_fails() {
        let old = counts(1_000.0, 1_000.0);
        for (open, has_risen) in [(1_049.0, false), (1_051.0, true), (500.0, false)] {
            let report = compare(&old, &counts(1_000.0, open)).unwrap();
            assert_eq!(report.has_risen, has_risen, "{}", report.text);
        }
        assert!(compare(&old, &counts(1.0, 1.0)[..1].to_vec()).is_err());
    }
}
