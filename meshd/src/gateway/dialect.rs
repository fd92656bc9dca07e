//! How each API says no: error bodies, and the last words of a stream that breaks.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::json;

use super::ReplyBody;

/// The API in whose words a caller expects its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Ollama,
    OpenAi,
    Anthropic,
}

/// A request that is answered with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) allow: Option<&'static str>,
    pub(crate) retry_after_secs: Option<u32>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            allow: None,
            retry_after_secs: None,
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self {
            retry_after_secs: Some(2),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// Tells when to try again.
    pub(crate) fn retry_in(self, secs: u32) -> Self {
        Self {
            retry_after_secs: Some(secs),
            ..self
        }
    }

    /// The answer, in the caller's dialect.
    pub(crate) fn reply(&self, dialect: Dialect) -> Response<ReplyBody> {
        let mut reply = json_reply(self.status, dialect.error_body(self.status, &self.message));
        if let Some(allow) = self.allow {
            reply
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(secs) = self.retry_after_secs {
            reply
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(secs));
        }
        reply
    }
}

impl Dialect {
    /// The dialect that belongs to a path, known or not.
    pub(crate) fn of_path(path: &str) -> Self {
        if path == "/v1/messages" || path.starts_with("/v1/messages/") {
            Self::Anthropic
        } else if path.starts_with("/v1/") {
            Self::OpenAi
        } else {
            Self::Ollama
        }
    }

    fn error_value(self, status: StatusCode, message: &str) -> serde_json::Value {
        let kind = kind_of(status);
        match self {
            Self::Ollama => json!({ "error": message }),
            Self::OpenAi => json!({
                "error": { "message": message, "type": kind, "param": null, "code": null }
            }),
            Self::Anthropic => json!({
                "type": "error", "error": { "type": kind, "message": message }
            }),
        }
    }

    /// Whether a body is an error as this API has it.
    pub(crate) fn is_error(self, body: &[u8]) -> bool {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
            return false;
        };
        let error = value.get("error");
        let has_message =
            || error.is_some_and(|error| error.get("message").is_some_and(|it| it.is_string()));
        match self {
            Self::Ollama => error.is_some_and(serde_json::Value::is_string),
            Self::OpenAi => has_message(),
            Self::Anthropic => {
                value.get("type").and_then(serde_json::Value::as_str) == Some("error")
                    && has_message()
            }
        }
    }

    pub(crate) fn error_body(self, status: StatusCode, message: &str) -> String {
        self.error_value(status, message).to_string()
    }

    /// What a stream that has begun says before it is broken off.
    pub(crate) fn stream_error(self, message: &str) -> Bytes {
        let value = self.error_value(StatusCode::BAD_GATEWAY, message);
        Bytes::from(match self {
            Self::Ollama => format!("{value}\n"),
            Self::OpenAi => format!("data: {value}\n\n"),
            Self::Anthropic => format!("event: error\ndata: {value}\n\n"),
        })
    }
}

fn kind_of(status: StatusCode) -> &'static str {
    match status.as_u16() {
        404 => "not_found_error",
        401 | 403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// A reply with a JSON body.
pub(crate) fn json_reply(status: StatusCode, body: impl Into<Bytes>) -> Response<ReplyBody> {
    let mut reply = Response::new(full(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    reply
}

/// A whole body.
pub(crate) fn full(body: impl Into<Bytes>) -> ReplyBody {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}
