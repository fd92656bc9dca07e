//! What a person or a program sees: answers on standard output, words and progress on standard error.

mod json;
mod printer;
mod table;
mod text;

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::Duration;

use owo_colors::OwoColorize as _;
use serde::Serialize;

pub(crate) use table::Table;
pub(crate) use text::{ago, bytes, clean, milliseconds, plural, relay_words};

use crate::exit::Failure;
use printer::Printer;

/// Work shorter than this shows no spinner.
const PROGRESS_AFTER: Duration = Duration::from_millis(500);
const PROGRESS_TICK: Duration = Duration::from_millis(100);

/// The two streams, and how the caller wants them.
#[derive(Debug)]
pub(crate) struct Output {
    is_json: bool,
    is_verbose: bool,
    printer: Printer,
}

impl Output {
    pub(crate) fn new(is_json: bool, is_verbose: bool) -> Self {
        Self {
            is_json,
            is_verbose,
            printer: Printer::new(),
        }
    }

    pub(crate) const fn is_json(&self) -> bool {
        self.is_json
    }

    /// Prints `value` with `--json`, otherwise what `human` makes of it.
    pub(crate) fn answer<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        if self.is_json {
            self.json(value)
        } else {
            self.print(&human(value))
        }
    }

    /// One object, `schema_version` first.
    pub(crate) fn json<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.printer.out(&json::versioned(value)?)
    }

    /// Text on standard output as it is.
    pub(crate) fn print(&self, text: &str) -> Result<(), Failure> {
        self.printer.out(text)
    }

    /// Bytes on standard output as they are, colour codes and all.
    pub(crate) fn print_raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.printer.out_raw(bytes)
    }

    /// Words for a person, on standard error.
    pub(crate) fn note(&self, words: &str) {
        self.printer.err(&format!("{words}\n"));
    }

    /// Like [`Self::note`], without a line end.
    pub(crate) fn prompt(&self, words: &str) {
        self.printer.err(words);
    }

    /// What to do next or where to look; not for programs.
    pub(crate) fn hint(&self, words: &str) {
        if !self.is_json {
            self.note(&words.dimmed().to_string());
        }
    }

    /// Words for those who asked for more of them.
    pub(crate) fn detail(&self, words: &str) {
        if self.is_verbose {
            self.note(&words.dimmed().to_string());
        }
    }

    /// What went wrong and what mends it.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.is_closed_pipe() {
            return;
        }
        if self.is_json {
            let _ = self.json(&json::ErrorAnswer::of(failure));
        }
        let mut words = format!("{} {}\n", "error:".red().bold(), clean(&failure.message));
        for (n, fix) in failure.fix.iter().enumerate() {
            let lead = if n == 0 { "to mend it:" } else { "           " };
            let note = fix
                .note
                .map(|note| format!("     ({note})"))
                .unwrap_or_default();
            let _ = writeln!(words, "  {lead} {}{note}", clean(&fix.command));
        }
        self.printer.err(&words);
    }

    /// Waits for work, with a spinner once it takes long and a person watches.
    pub(crate) async fn during<T>(&self, words: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        if self.is_json || !std::io::stderr().is_terminal() {
            return work.await;
        }
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(PROGRESS_AFTER) => {}
        }
        let spinner = indicatif::ProgressBar::new_spinner();
        spinner.set_message(words.to_owned());
        spinner.enable_steady_tick(PROGRESS_TICK);
        let done = work.await;
        spinner.finish_and_clear();
        done
    }
}
