//! The only writer of standard output and standard error: a closed pipe is an end, never a panic.

use std::io::{self, Write as _};

use crate::exit::Failure;

/// Writes to the two streams; colours reach terminals only.
#[derive(Debug)]
pub(super) struct Printer {
    _private: (),
}

impl Printer {
    pub(super) const fn new() -> Self {
        Self { _private: () }
    }

    /// Text to standard output, at once.
    pub(super) fn out(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = anstream::stdout().lock();
        outcome(
            stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush()),
        )
    }

    /// Bytes to standard output, untouched.
    pub(super) fn out_raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        outcome(stdout.write_all(bytes).and_then(|()| stdout.flush()))
    }

    /// Words to standard error; when nobody reads them, they are lost.
    pub(super) fn err(&self, words: &str) {
        let mut stderr = anstream::stderr().lock();
        let _ = stderr
            .write_all(words.as_bytes())
            .and_then(|()| stderr.flush());
    }
}

fn outcome(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Err(Failure::closed_pipe()),
        Err(err) => Err(Failure::failed(format!(
            "cannot write to standard output: {err}"
        ))),
    }
}
