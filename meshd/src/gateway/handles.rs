//! The metrics that every request touches, each looked up once: by its name and labels that costs more than the counting.
//!
//! What is touched before the recorder is installed counts nowhere; the daemon installs it first of all.

use std::sync::OnceLock;

use metrics::{Counter, Histogram, counter, histogram};

use super::admit::Infer;
use crate::metrics::{
    DOOR_DURATION, DOOR_OUTPUT_TOKENS, DOOR_PROMPT_TOKENS, DOOR_REQUESTS, DOOR_WAIT, GUEST_REQUESTS,
};

/// How a request at the door ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    ClientAbort,
    HostError,
    Timeout,
    Refused,
}

impl End {
    const N: usize = 5;

    const fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientAbort => "client_abort",
            Self::HostError => "host_error",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
        }
    }
}

/// A request at the door is over.
pub(super) fn request(route: Infer, end: End) {
    static COUNTERS: [[OnceLock<Counter>; End::N]; Infer::N] =
        [const { [const { OnceLock::new() }; End::N] }; Infer::N];
    COUNTERS[route as usize][end as usize]
        .get_or_init(|| counter!(DOOR_REQUESTS, "path" => route.path(), "outcome" => end.label()))
        .increment(1);
}

/// So long it took, in seconds.
pub(super) fn duration(route: Infer, seconds: f64) {
    static HISTOGRAMS: [OnceLock<Histogram>; Infer::N] = [const { OnceLock::new() }; Infer::N];
    HISTOGRAMS[route as usize]
        .get_or_init(|| histogram!(DOOR_DURATION, "path" => route.path()))
        .record(seconds);
}

/// So many tokens its backend told.
pub(super) fn tokens(n_prompt: u64, n_output: u64) {
    static PROMPT: OnceLock<Counter> = OnceLock::new();
    static OUTPUT: OnceLock<Counter> = OnceLock::new();
    PROMPT
        .get_or_init(|| counter!(DOOR_PROMPT_TOKENS))
        .increment(n_prompt);
    OUTPUT
        .get_or_init(|| counter!(DOOR_OUTPUT_TOKENS))
        .increment(n_output);
}

/// So long a request waited for its turn, in seconds.
pub(super) fn wait(seconds: f64) {
    static WAIT: OnceLock<Histogram> = OnceLock::new();
    WAIT.get_or_init(|| histogram!(DOOR_WAIT)).record(seconds);
}

/// A host answered a request of this machine.
pub(super) fn answered() {
    static ANSWERED: OnceLock<Counter> = OnceLock::new();
    ANSWERED
        .get_or_init(|| counter!(GUEST_REQUESTS, "outcome" => "answered"))
        .increment(1);
}
