//! What messages are made of: pictures and sounds must come in the request, never from an address that the host would fetch.

use serde_json::Value;

use crate::gateway::dialect::Refusal;
use crate::gateway::json::fold_key;

/// Keys whose text a model server may fetch.
const FETCHED: [&str; 9] = [
    "url",
    "uri",
    "image_url",
    "video_url",
    "audio_url",
    "file_url",
    "file_id",
    "file_data",
    "path",
];
/// What a model said to a tool; the caller's business, never fetched.
const OPAQUE: [&str; 2] = ["arguments", "function"];

/// The most pictures in one request.
const N_IMAGES_MAX: usize = 32;

/// Walks through messages.
///
/// # Errors
/// A refusal when a part would be fetched from elsewhere, or there are too many pictures.
pub(super) fn check(value: &Value) -> Result<(), Refusal> {
    let mut n_images = 0;
    walk(value, &mut n_images)?;
    if n_images > N_IMAGES_MAX {
        return Err(Refusal::bad_request(format!(
            "at most {N_IMAGES_MAX} images may be sent"
        )));
    }
    Ok(())
}

fn walk(value: &Value, n_images: &mut usize) -> Result<(), Refusal> {
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| walk(value, n_images)),
        Value::Object(object) => {
            let is_tool_use = object.get("type").and_then(Value::as_str) == Some("tool_use");
            for (key, value) in object {
                let key = fold_key(key);
                if OPAQUE.contains(&key.as_str()) || (is_tool_use && key == "input") {
                    continue;
                }
                if let Value::String(text) = value
                    && FETCHED.contains(&key.as_str())
                {
                    if !is_data_url(text) {
                        return Err(Refusal::bad_request(
                            "images and files must be sent in the request (as a data: URL), not as an address to fetch",
                        ));
                    }
                    *n_images += 1;
                }
                if key == "images"
                    && let Value::Array(images) = value
                {
                    *n_images += images.len();
                }
                walk(value, n_images)?;
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

pub(super) fn has_images(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.iter().any(has_images),
        Value::Object(object) => object.iter().any(|(key, value)| {
            ["images", "image_url", "source", "input_audio"].contains(&key.as_str())
                || has_images(value)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn is_data_url(text: &str) -> bool {
    text.get(..5)
        .is_some_and(|head| head.eq_ignore_ascii_case("data:"))
}
