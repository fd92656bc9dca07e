//! The metrics that every request touches, each looked up once: by its name and labels that costs more than the counting.
//!
//! What is touched before the recorder is installed counts nowhere; the daemon installs it first of all.

use std::sync::OnceLock;

use mesh_proto::usage::Outcome;
use metrics::{Counter, Histogram, counter, histogram};

use super::admit::Infer;
use crate::metrics::{
    DOOR_DURATION, DOOR_OUTPUT_TOKENS, DOOR_PROMPT_TOKENS, DOOR_REQUESTS, DOOR_WAIT, GUEST_REQUESTS,
};

/// How many ends a request has: the outcomes, and that its backend refused it.
const N_ENDS: usize = 5;

/// A request at the door is over; without an outcome its backend refused it.
pub(super) fn request(route: Infer, outcome: Option<Outcome>) {
    static COUNTERS: [[OnceLock<Counter>; N_ENDS]; Infer::N] =
        [const { [const { OnceLock::new() }; N_ENDS] }; Infer::N];
    let (end, label) = match outcome {
        Some(Outcome::Ok) => (0, "complete"),
        Some(Outcome::ClientAbort) => (1, "client_abort"),
        Some(Outcome::HostError) => (2, "host_error"),
        Some(Outcome::Timeout) => (3, "timeout"),
        None => (4, "refused"),
    };
    COUNTERS[route as usize][end]
        .get_or_init(|| counter!(DOOR_REQUESTS, "path" => route.path(), "outcome" => label))
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
