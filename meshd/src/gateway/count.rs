//! How many tokens a reply took, read from the reply as it passes. Only the closing figures count: chunks are not tokens.
//!
//! Never keeps or logs what was said.

use std::time::{Duration, Instant};

use mesh_proto::id::NodeId;
use serde_json::Value;
use tokio::sync::mpsc;

/// Requests that the door worked on, by route and outcome.
pub const METRIC_REQUESTS: &str = "meshd_door_requests_total";
/// Tokens of prompts that the door's backends read.
pub const METRIC_PROMPT_TOKENS: &str = "meshd_door_prompt_tokens_total";
/// Tokens that the door's backends generated.
pub const METRIC_OUTPUT_TOKENS: &str = "meshd_door_output_tokens_total";
/// Seconds from a request's arrival to the end of its reply.
pub const METRIC_DURATION: &str = "meshd_door_request_duration_seconds";
/// Requests that were refused at the door, by status.
pub const METRIC_REFUSED: &str = "meshd_door_refused_total";
/// Requests that the guest gateway sent on, by outcome.
pub const METRIC_GUEST: &str = "meshd_guest_requests_total";

/// What one request took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Who asked; `None` is this machine itself.
    pub guest: Option<NodeId>,
    /// The exact name of the model on this host.
    pub model: String,
    /// The call.
    pub path: &'static str,
    /// Tokens read; `None` where the backend told no figures, as when the reply broke off.
    pub n_prompt_tokens: Option<u64>,
    /// Tokens generated.
    pub n_output_tokens: Option<u64>,
    /// Whether the reply came to its end.
    pub is_complete: bool,
    /// From the request's arrival to the end of the reply.
    pub duration: Duration,
}

/// The figures of one reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) n_prompt: Option<u64>,
    pub(crate) n_output: Option<u64>,
}

impl Counts {
    /// Takes what a JSON value tells: a whole reply, a line, or an event. Later figures replace earlier ones.
    pub(crate) fn observe(&mut self, value: &Value) {
        let places = [
            Some(value),
            value.get("usage"),
            value
                .get("message")
                .and_then(|message| message.get("usage")),
            value.get("response").and_then(|reply| reply.get("usage")),
        ];
        for place in places.into_iter().flatten() {
            self.take(place);
        }
    }

    fn take(&mut self, place: &Value) {
        let figure = |keys: [&str; 3]| keys.iter().find_map(|key| place.get(*key)?.as_u64());
        if let Some(n) = figure(["prompt_eval_count", "prompt_tokens", "input_tokens"]) {
            self.n_prompt = Some(n);
        }
        if let Some(n) = figure(["eval_count", "completion_tokens", "output_tokens"]) {
            self.n_output = Some(n);
        }
    }
}

/// Writes down one request when it is over, however it ends.
#[derive(Debug)]
pub(crate) struct Record {
    usage: Usage,
    started: Instant,
    meter: Option<mpsc::Sender<Usage>>,
}

impl Record {
    pub(crate) fn new(
        guest: Option<NodeId>,
        model: &str,
        path: &'static str,
        meter: Option<mpsc::Sender<Usage>>,
    ) -> Self {
        Self {
            usage: Usage {
                guest,
                model: model.to_owned(),
                path,
                n_prompt_tokens: None,
                n_output_tokens: None,
                is_complete: false,
                duration: Duration::ZERO,
            },
            started: Instant::now(),
            meter,
        }
    }

    pub(crate) fn set(&mut self, counts: Counts) {
        self.usage.n_prompt_tokens = counts.n_prompt;
        self.usage.n_output_tokens = counts.n_output;
    }

    pub(crate) fn complete(&mut self) {
        self.usage.is_complete = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let usage = &mut self.usage;
        usage.duration = self.started.elapsed();
        let outcome = if usage.is_complete {
            "complete"
        } else {
            "broken"
        };
        metrics::counter!(METRIC_REQUESTS, "path" => usage.path, "outcome" => outcome).increment(1);
        metrics::counter!(METRIC_PROMPT_TOKENS).increment(usage.n_prompt_tokens.unwrap_or(0));
        metrics::counter!(METRIC_OUTPUT_TOKENS).increment(usage.n_output_tokens.unwrap_or(0));
        metrics::histogram!(METRIC_DURATION, "path" => usage.path)
            .record(usage.duration.as_secs_f64());
        if let Some(meter) = &self.meter
            && meter.try_send(usage.clone()).is_err()
        {
            tracing::warn!("usage record lost: nobody takes them");
        }
    }
}
