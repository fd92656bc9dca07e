//! The owner's bounds of one request, beneath those that are built in.
//!
//! Pure: takes a cleaned body, lowers what is too much, refuses what cannot be lowered.

use mesh_proto::door::Caps;
use serde_json::Value;

use crate::gateway::admit::Infer;
use crate::gateway::dialect::Refusal;
use crate::gateway::json::Object;

/// Characters that a token has at most, over a long text. A text with more of them than the context has tokens for is too
/// long for sure; what is near it is left to the backend.
const TOKEN_CHARS_MAX: u64 = 8;
/// And on average.
const TOKEN_CHARS: u64 = 4;

/// What a request comes to, as far as it can be seen before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Characters of text.
    pub(crate) n_chars: u64,
    /// Pictures.
    pub(crate) n_images: u64,
}

impl Size {
    /// Measures a body.
    pub(crate) fn of(body: &Object) -> Self {
        let mut size = Self::default();
        for (key, value) in body {
            // The name and the steering are no text that a model reads.
            if key != "model" && key != "options" {
                size.measure(key, value);
            }
        }
        size
    }

    fn measure(&mut self, key: &str, value: &Value) {
        match value {
            Value::String(text) if is_picture(key, text) => self.n_images += 1,
            Value::String(text) => {
                let n = text.chars().count();
                self.n_chars = self
                    .n_chars
                    .saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
            }
            Value::Array(values) => values.iter().for_each(|value| self.measure(key, value)),
            Value::Object(object) => object
                .iter()
                .for_each(|(key, value)| self.measure(key, value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// About how many tokens the text is.
    pub(crate) fn n_tokens(self) -> u64 {
        self.n_chars.div_ceil(TOKEN_CHARS)
    }
}

fn is_picture(key: &str, text: &str) -> bool {
    let is_data_url = text
        .get(..5)
        .is_some_and(|head| head.eq_ignore_ascii_case("data:"));
    key == "images" || key == "data" || is_data_url
}

/// The context that a request may ask for: the model's, or the owner's bound where that is less; 0 where neither is known.
pub(crate) fn context(caps: &Caps, of_model: u64) -> u64 {
    match caps.context_tokens.map(u64::from) {
        Some(cap) if of_model == 0 => cap,
        Some(cap) => cap.min(of_model),
        None => of_model,
    }
}

/// Holds a body to its bound, in bytes.
///
/// # Errors
/// A refusal that names the bound.
pub(crate) fn check_body(caps: &Caps, n_bytes: usize) -> Result<(), Refusal> {
    match caps.body_mib {
        Some(mib) if n_bytes.div_ceil(1 << 20) > usize::try_from(mib).unwrap_or(usize::MAX) => {
            Err(Refusal::new(
                http::StatusCode::PAYLOAD_TOO_LARGE,
                format!("this host takes requests of at most {mib} MiB"),
            ))
        }
        Some(_) | None => Ok(()),
    }
}

/// Holds a cleaned body to the bounds.
///
/// # Errors
/// A refusal that names the bound.
pub(crate) fn apply(
    caps: &Caps,
    route: Infer,
    body: &mut Object,
    size: Size,
) -> Result<(), Refusal> {
    if let Some(n_max) = caps.images
        && size.n_images > u64::from(n_max)
    {
        return Err(Refusal::bad_request(format!(
            "this host takes at most {n_max} images in a request"
        )));
    }
    if let Some(n_max) = caps.context_tokens
        && size.n_chars > u64::from(n_max).saturating_mul(TOKEN_CHARS_MAX)
    {
        return Err(Refusal::bad_request(format!(
            "this host takes requests of at most {n_max} tokens of context, and the text is longer"
        )));
    }
    if let Some(n_max) = caps.output_tokens {
        lower_output(route, body, n_max);
    }
    Ok(())
}

fn lower_output(route: Infer, body: &mut Object, n_max: u32) {
    let keys: &[&str] = match route {
        Infer::Chat | Infer::Generate => {
            let options = body
                .entry("options")
                .or_insert_with(|| Value::Object(Object::new()));
            if let Value::Object(options) = options {
                lower(options, &["num_predict"], n_max);
            }
            return;
        }
        Infer::V1Chat => &["max_completion_tokens", "max_tokens"],
        Infer::V1Completions | Infer::V1Messages => &["max_tokens"],
        Infer::V1Responses => &["max_output_tokens"],
        Infer::Embed | Infer::Embeddings | Infer::V1Embeddings => return,
    };
    lower(body, keys, n_max);
}

/// Lowers each of the keys that is there; without any, the last one is set.
fn lower(object: &mut Object, keys: &[&str], n_max: u32) {
    let mut is_bound = false;
    for key in keys {
        if let Some(value) = object.get_mut(*key) {
            is_bound = true;
            if value.as_f64().is_none_or(|n| n > f64::from(n_max)) {
                *value = n_max.into();
            }
        }
    }
    if let (false, Some(key)) = (is_bound, keys.last()) {
        object.insert((*key).to_owned(), n_max.into());
    }
}

/// How many tokens a cleaned body has generated at most.
pub(crate) fn n_output_max(route: Infer, body: &Object) -> u64 {
    let place = match route {
        Infer::Chat | Infer::Generate => body
            .get("options")
            .and_then(|options| options.get("num_predict")),
        Infer::V1Chat => body
            .get("max_completion_tokens")
            .or_else(|| body.get("max_tokens")),
        Infer::V1Completions | Infer::V1Messages => body.get("max_tokens"),
        Infer::V1Responses => body.get("max_output_tokens"),
        Infer::Embed | Infer::Embeddings | Infer::V1Embeddings => return 0,
    };
    place.and_then(Value::as_u64).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
