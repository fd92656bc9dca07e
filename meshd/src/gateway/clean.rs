//! What of a request's body reaches a model server: known keys with harmless values, re-serialised.
//!
//! Pure: takes the parsed object, returns a new one; never sees a socket. The backend gets only what is built here.

mod parts;

use serde_json::{Value, json};

use super::admit::Infer;
use super::dialect::Refusal;
use super::json::{Object, fold_key, misspelled};

/// The most tokens that one request may have generated.
const N_TOKENS_MAX: u64 = 32_768;
/// The longest window for repetitions; a server allocates what is asked for.
const REPEAT_WINDOW_MAX: u64 = 32_768;
/// The most alternatives told with a token, as OpenAI has it; more make a reply of any size.
const N_LOGPROBS_MAX: u64 = 20;
/// The most messages in one conversation.
const N_MESSAGES_MAX: usize = 4_096;
/// The most tools in one request.
const N_TOOLS_MAX: usize = 256;

/// A request that may be sent to the backend.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cleaned {
    /// The new body; `model` is the exact name.
    pub(crate) body: Object,
    pub(crate) is_stream: bool,
    /// Whether the caller asked for the usage event of an OpenAI stream.
    pub(crate) wants_usage: bool,
}

/// Keys of Ollama's `options` that steer sampling. The others configure the runner and make it reload.
const SAMPLING: [&str; 17] = [
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "tfs_z",
    "repeat_last_n",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalize_newline",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "stop",
    "num_predict",
];

/// The keys that are sent on, by call; `model` and `stream` are set by hand.
const fn allowed(route: Infer) -> &'static [&'static str] {
    match route {
        Infer::Generate => &[
            "prompt",
            "suffix",
            "system",
            "context",
            "raw",
            "format",
            "images",
            "options",
            "think",
            "truncate",
            "logprobs",
            "top_logprobs",
        ],
        Infer::Chat => &[
            "messages",
            "format",
            "options",
            "tools",
            "think",
            "truncate",
            "logprobs",
            "top_logprobs",
        ],
        Infer::Embed => &["input", "truncate", "dimensions", "options"],
        Infer::Embeddings => &["prompt", "options"],
        Infer::V1Chat => &[
            "messages",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "stop",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "repeat_penalty",
            "logit_bias",
            "logprobs",
            "top_logprobs",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "response_format",
            "reasoning_effort",
            "reasoning",
        ],
        Infer::V1Completions => &[
            "prompt",
            "suffix",
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "stop",
            "seed",
            "presence_penalty",
            "frequency_penalty",
            "repeat_penalty",
            "logit_bias",
            "logprobs",
            "echo",
        ],
        Infer::V1Embeddings => &["input", "encoding_format", "dimensions"],
        Infer::V1Responses => &[
            "input",
            "instructions",
            "max_output_tokens",
            "temperature",
            "top_p",
            "tools",
            "tool_choice",
            "parallel_tool_calls",
            "text",
            "reasoning",
            "truncation",
        ],
        Infer::V1Messages => &[
            "messages",
            "system",
            "max_tokens",
            "temperature",
            "top_p",
            "top_k",
            "stop_sequences",
            "tools",
            "tool_choice",
            "thinking",
        ],
    }
}

/// Keys that have a meaning somewhere and are not sent on; another spelling of them is refused as well.
const WATCHED: [&str; 12] = [
    "model",
    "name",
    "stream",
    "stream_options",
    "keep_alive",
    "template",
    "n",
    "best_of",
    "shift",
    "verbose",
    "previous_response_id",
    "conversation",
];

/// The model that a body names; `name` counts where `model` is absent or empty, as `/api/show` has it.
///
/// # Errors
/// A refusal when a key is spelled in other letters or is no text.
pub(crate) fn model_of(body: &Object) -> Result<Option<&str>, Refusal> {
    if let Some(key) = misspelled(body, &["model", "name"]) {
        return Err(spelling(key));
    }
    for key in ["model", "name"] {
        match body.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.trim().is_empty() => {}
            Some(Value::String(text)) => return Ok(Some(text)),
            Some(_) => return Err(Refusal::bad_request(format!("{key:?} must be a text"))),
        }
    }
    Ok(None)
}

/// Makes the body that the backend gets. `model` is the exact name there, `context_length` its window (0: unknown).
///
/// # Errors
/// A refusal that says what the host does not do.
pub(crate) fn clean(
    route: Infer,
    body: Object,
    model: &str,
    context_length: u64,
) -> Result<Cleaned, Refusal> {
    let allowed = allowed(route);
    if let Some(key) = misspelled(&body, allowed).or_else(|| misspelled(&body, &WATCHED)) {
        return Err(spelling(key));
    }
    let is_stream = is_stream(route, &body)?;
    let wants_usage = wants_usage(body.get("stream_options"));
    refuse_unsupported(&body)?;

    let mut kept = body;
    kept.retain(|key, value| allowed.contains(&key.as_str()) && !value.is_null());
    clean_options(route, &mut kept, context_length)?;
    clean_limits(&mut kept)?;
    clean_tools(&mut kept)?;
    for key in ["messages", "input", "system", "prompt"] {
        if let Some(value) = kept.get(key) {
            parts::check(value)?;
        }
    }
    if let Some(Value::Array(messages)) = kept.get("messages")
        && messages.len() > N_MESSAGES_MAX
    {
        return Err(Refusal::bad_request(format!(
            "at most {N_MESSAGES_MAX} messages may be sent"
        )));
    }
    kept.insert("model".to_owned(), Value::String(model.to_owned()));
    if route.streams_by_default().is_some() {
        kept.insert("stream".to_owned(), Value::Bool(is_stream));
    }
    if is_stream && matches!(route, Infer::V1Chat | Infer::V1Completions) {
        kept.insert(
            "stream_options".to_owned(),
            json!({ "include_usage": true }),
        );
    }
    Ok(Cleaned {
        body: kept,
        is_stream,
        wants_usage,
    })
}

/// Whether the body holds pictures, which make it large with good reason.
pub(crate) fn has_images(body: &Object) -> bool {
    body.contains_key("images")
        || ["messages", "input"]
            .iter()
            .any(|key| body.get(*key).is_some_and(parts::has_images))
}

/// Whether the reply to a body is a stream.
pub(crate) fn is_stream(route: Infer, body: &Object) -> Result<bool, Refusal> {
    let Some(default) = route.streams_by_default() else {
        return Ok(false);
    };
    match body.get("stream") {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(is_stream)) => Ok(*is_stream),
        Some(_) => Err(Refusal::bad_request("\"stream\" must be true or false")),
    }
}

fn spelling(key: &str) -> Refusal {
    Refusal::bad_request(format!(
        "the key {key:?} must be written {:?}",
        fold_key(key)
    ))
}

fn wants_usage(stream_options: Option<&Value>) -> bool {
    stream_options
        .and_then(|options| options.get("include_usage"))
        .is_some_and(|value| *value == Value::Bool(true))
}

fn refuse_unsupported(body: &Object) -> Result<(), Refusal> {
    match body.get("template") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(_) => {
            return Err(Refusal::bad_request(
                "a shared model keeps its own template; leave out \"template\"",
            ));
        }
    }
    for key in ["previous_response_id", "conversation"] {
        if body.get(key).is_some_and(|value| !value.is_null()) {
            return Err(Refusal::bad_request(format!(
                "hosts keep no conversations: leave out {key:?} and send all of it as \"input\""
            )));
        }
    }
    for key in ["n", "best_of"] {
        match body.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Number(n)) if n.as_u64() == Some(1) => {}
            Some(_) => {
                return Err(Refusal::bad_request(format!(
                    "{key:?} must be 1 on a shared model"
                )));
            }
        }
    }
    Ok(())
}

fn clean_options(route: Infer, kept: &mut Object, context_length: u64) -> Result<(), Refusal> {
    let mut options = match kept.remove("options") {
        None => Object::new(),
        Some(Value::Object(options)) => options,
        Some(_) => return Err(Refusal::bad_request("\"options\" must be an object")),
    };
    if let Some(key) =
        misspelled(&options, &SAMPLING).or_else(|| misspelled(&options, &["num_ctx"]))
    {
        return Err(spelling(key));
    }
    if let Some(num_ctx) = options.get("num_ctx").and_then(Value::as_f64)
        && context_length > 0
        && num_ctx > context_length as f64
    {
        return Err(Refusal::bad_request(format!(
            "this host serves the model with a context of {context_length} tokens; ask for num_ctx {context_length} or less"
        )));
    }
    options.retain(|key, value| SAMPLING.contains(&key.as_str()) && !value.is_null());
    cap(&mut options, "repeat_last_n", REPEAT_WINDOW_MAX);
    if matches!(route, Infer::Generate | Infer::Chat) {
        let asked = match options.get("num_predict") {
            None => None,
            Some(value) => Some(value.as_f64().ok_or_else(|| {
                Refusal::bad_request("option \"num_predict\" must be of type integer")
            })?),
        };
        // Zero and less mean until the model stops, which some never do.
        let capped = match asked {
            Some(n) if n >= 1.0 => (n as u64).min(N_TOKENS_MAX),
            Some(_) | None => N_TOKENS_MAX,
        };
        options.insert("num_predict".to_owned(), capped.into());
    }
    if !options.is_empty() {
        kept.insert("options".to_owned(), Value::Object(options));
    }
    Ok(())
}

fn clean_limits(kept: &mut Object) -> Result<(), Refusal> {
    for key in ["logprobs", "top_logprobs"] {
        cap(kept, key, N_LOGPROBS_MAX);
    }
    for key in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
        let Some(value) = kept.get_mut(key) else {
            continue;
        };
        let n = value
            .as_f64()
            .ok_or_else(|| Refusal::bad_request(format!("{key:?} must be a number")))?;
        if n < 1.0 || n > N_TOKENS_MAX as f64 {
            *value = N_TOKENS_MAX.into();
        }
    }
    Ok(())
}

/// Lowers a number; what is none is left to the backend to refuse.
fn cap(object: &mut Object, key: &str, max: u64) {
    if let Some(value) = object.get_mut(key)
        && value.as_f64().is_some_and(|n| n > max as f64)
    {
        *value = max.into();
    }
}

/// Gives a request that names no limit the host's, where the backend has none.
pub(crate) fn bound_tokens(route: Infer, body: &mut Object) {
    let keys: &[&str] = match route {
        Infer::V1Chat => &["max_tokens", "max_completion_tokens"],
        Infer::V1Completions | Infer::V1Messages => &["max_tokens"],
        Infer::V1Responses => &["max_output_tokens"],
        Infer::Chat | Infer::Generate | Infer::Embed | Infer::Embeddings | Infer::V1Embeddings => {
            return;
        }
    };
    if let Some(first) = keys.first()
        && !keys.iter().any(|key| body.contains_key(*key))
    {
        body.insert((*first).to_owned(), N_TOKENS_MAX.into());
    }
}

/// Keeps the tools that the caller runs by itself. Those that a server would run (web search) are dropped: they would
/// spend the owner's account or fetch addresses from the owner's network.
fn clean_tools(kept: &mut Object) -> Result<(), Refusal> {
    let tools = match kept.remove("tools") {
        None => return Ok(()),
        Some(Value::Array(tools)) => tools,
        Some(_) => return Err(Refusal::bad_request("\"tools\" must be a list")),
    };
    if tools.len() > N_TOOLS_MAX {
        return Err(Refusal::bad_request(format!(
            "at most {N_TOOLS_MAX} tools may be sent"
        )));
    }
    let mut own = Vec::with_capacity(tools.len());
    for tool in tools {
        let Value::Object(tool) = tool else {
            return Err(Refusal::bad_request("each of \"tools\" must be an object"));
        };
        if let Some(key) = misspelled(&tool, &["type", "name", "function"]) {
            return Err(spelling(key));
        }
        let is_own = match tool.get("type") {
            None | Some(Value::Null) => true,
            Some(Value::String(kind)) => matches!(kind.as_str(), "function" | "custom"),
            Some(_) => false,
        };
        if is_own {
            own.push(Value::Object(tool));
        }
    }
    if own.is_empty() {
        kept.remove("tool_choice");
    } else {
        kept.insert("tools".to_owned(), Value::Array(own));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
