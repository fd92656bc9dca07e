//! How commands print: tables and sentences for people, JSON for programs.

use std::io::Write as _;
use std::process::ExitCode;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

use crate::client::Failure;

/// The version of the JSON that commands print.
const SCHEMA_VERSION: u32 = 1;

#[derive(Serialize)]
struct Envelope<'a, T: Serialize> {
    schema_version: u32,
    #[serde(flatten)]
    content: &'a T,
}

/// A list under its own name, as JSON objects can grow and arrays cannot.
#[derive(Serialize)]
struct Listed<'a, T: Serialize> {
    schema_version: u32,
    n_items: usize,
    items: &'a [T],
}

/// Prints one object as JSON.
pub(crate) fn json(content: &impl Serialize) -> Result<(), Failure> {
    to_stdout(&Envelope {
        schema_version: SCHEMA_VERSION,
        content,
    })
}

/// Says that something was done which leaves nothing to show.
pub(crate) fn done(is_json: bool, sentence: &str) -> Result<(), Failure> {
    if is_json {
        return json(&serde_json::Map::new());
    }
    note(sentence);
    Ok(())
}

/// Prints a list as JSON.
pub(crate) fn json_list(items: &[impl Serialize]) -> Result<(), Failure> {
    to_stdout(&Listed {
        schema_version: SCHEMA_VERSION,
        n_items: items.len(),
        items,
    })
}

fn to_stdout(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::other)?;
    line(&text);
    Ok(())
}

/// Prints a line to standard output. A reader that went away is no failure of ours.
pub(crate) fn line(text: &str) {
    drop(writeln!(anstream::stdout(), "{text}"));
}

/// Prints a line to standard error.
pub(crate) fn note(text: &str) {
    drop(writeln!(anstream::stderr(), "{text}"));
}

/// Prints a table.
pub(crate) fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    line(&table.trim_fmt());
}

/// Says why a command failed, and with which exit code it ends.
pub(crate) fn fail(failure: &Failure) -> ExitCode {
    note(&format!("coordinator: {}", failure.message()));
    ExitCode::from(failure.exit_code())
}

/// A point in time as people read it: how far away, in its largest unit.
pub(crate) fn when(at_ms: u64, now_ms: u64) -> String {
    if at_ms > now_ms {
        format!("in {}", span(at_ms - now_ms))
    } else {
        format!("{} ago", span(now_ms - at_ms))
    }
}

fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let hour = 3_600_000;
        assert_eq!(when(1_000 + hour, 1_000), "in 60 min");
        assert_eq!(when(0, 50 * hour), "2 days ago");
        assert_eq!(when(5_000, 5_000), "0 s ago");
    }
}
