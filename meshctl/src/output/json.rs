//! The JSON of `--json`: one object whose first member is `schema_version`.

use mesh_proto::local::SCHEMA_VERSION;
use serde::Serialize;

use crate::exit::Failure;

#[derive(Serialize)]
struct Versioned<'a, T> {
    schema_version: u32,
    #[serde(flatten)]
    body: &'a T,
}

/// The object as text with a line end. `body` must serialise as an object.
pub(super) fn versioned<T: Serialize>(body: &T) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(&Versioned {
        schema_version: SCHEMA_VERSION,
        body,
    })
    .map_err(|err| Failure::failed(format!("cannot print the answer as JSON: {err}")))?;
    text.push('\n');
    Ok(text)
}

/// A failure as programs read it.
#[derive(Debug, Serialize)]
pub(super) struct ErrorAnswer<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorDetail<'a> {
    code: &'a str,
    message: &'a str,
    exit_code: u8,
    fix: Vec<&'a str>,
}

impl<'a> ErrorAnswer<'a> {
    pub(super) fn of(failure: &'a Failure) -> Self {
        Self {
            error: ErrorDetail {
                code: &failure.code,
                message: &failure.message,
                exit_code: failure.exit as u8,
                fix: failure.fix.iter().map(|fix| fix.command.as_str()).collect(),
            },
        }
    }
}
