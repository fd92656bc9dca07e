//! Cases that failed once: `regressions.txt` of this crate, replayed by its tests.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use data_encoding::HEXLOWER;

use crate::{Entry, Tape, find};

/// One case.
#[derive(Debug, Clone)]
pub struct Regression {
    /// What failed.
    pub entry: Entry,
    /// On what.
    pub case: Case,
}

/// What a tape was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Case {
    /// Found by the runner.
    Seed(u64),
    /// Found by a test that shrinks.
    Bytes(Vec<u8>),
}

impl Case {
    /// The tape again.
    #[must_use]
    pub fn tape(&self) -> Tape<'_> {
        match self {
            Self::Seed(seed) => Tape::seeded(*seed),
            Self::Bytes(bytes) => Tape::of(bytes),
        }
    }
}

/// Where they are kept.
#[must_use]
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("regressions.txt")
}

/// Reads lines of `TARGET SEED` or `TARGET x:BYTES`, seeds decimal and bytes hexadecimal; `#` begins a comment.
///
/// # Errors
/// For a line that is something else, with its text.
pub fn parse(text: &str) -> Result<Vec<Regression>> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let cases = lines.filter(|line| !line.is_empty()).map(|line| {
        let Some((name, case)) = line.split_once(' ') else {
            bail!("{line:?} is not `TARGET SEED`");
        };
        let entry = find(name).with_context(|| format!("there is no target {name:?}"))?;
        let case = match case.strip_prefix("x:") {
            Some(bytes) => Case::Bytes(HEXLOWER.decode(bytes.as_bytes())?),
            None => Case::Seed(
                case.parse()
                    .with_context(|| format!("{case:?} is no seed"))?,
            ),
        };
        Ok(Regression { entry, case })
    });
    cases.collect()
}

/// Adds a seed.
///
/// # Errors
/// When the file cannot be written.
pub fn add(entry: &Entry, seed: u64) -> Result<()> {
    let path = path();
    let file = OpenOptions::new().append(true).create(true).open(&path);
    let mut file = file.with_context(|| path.display().to_string())?;
    writeln!(file, "{} {seed}", entry.name).with_context(|| path.display().to_string())
}
