//! Takes what tells of the host's machine out of a backend's errors: paths, addresses of its own, accounts.
//!
//! Pure. For errors alone: what a model wrote is never touched.

use serde_json::Value;

/// What stands in its place.
const GONE: &str = "[…]";

/// Scrubs all texts of an error.
pub(crate) fn scrub_value(value: &mut Value) {
    match value {
        Value::String(text) => *text = scrub(text),
        Value::Array(values) => values.iter_mut().for_each(scrub_value),
        Value::Object(object) => object.values_mut().for_each(scrub_value),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text without the words that tell.
pub(crate) fn scrub(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for piece in text.split_inclusive(is_boundary) {
        let word = piece.trim_end_matches(is_boundary);
        if tells(word) {
            clean.push_str(GONE);
            clean.push_str(&piece[word.len()..]);
        } else {
            clean.push_str(piece);
        }
    }
    clean
}

fn is_boundary(c: char) -> bool {
    c.is_whitespace() || "\"'`()[]{}<>,;=|".contains(c)
}

/// Whether a word is a path, an address with a port, or an account. A model's name with a slash in it is none of them.
fn tells(word: &str) -> bool {
    let is_path = word.len() > 1
        && (["/", "~/", "./", "../"]
            .iter()
            .any(|start| word.starts_with(start))
            || word.contains(":/")
            || word.contains('\\')
            || word.contains("sha256-"));
    let is_local = ["127.", "localhost:", "0.0.0.0:", "::1"]
        .iter()
        .any(|local| word.contains(local));
    let is_account = word
        .split_once('@')
        .is_some_and(|(name, at)| !name.is_empty() && at.contains('.'));
    is_path || is_local || is_account
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_tell_of_the_machine_go_and_others_stay() {
        for (text, want) in [
            (
                "model 'library/tiny:latest' not found",
                "model 'library/tiny:latest' not found",
            ),
            (
                "hf.co/org/model:Q4_K_M does not support tools",
                "hf.co/org/model:Q4_K_M does not support tools",
            ),
            (
                "context 4096/8192 used, 50 %",
                "context 4096/8192 used, 50 %",
            ),
            ("open /usr/share/x: no such file", "open […] no such file"),
            ("path=\"/home/anna/x\", gone", "path=\"[…]\", gone"),
            ("open:/home/anna/x", "[…]"),
            ("see ~/.ollama/logs or C:\\Users\\anna", "see […] or […]"),
            (
                "Post \"http://127.0.0.1:39211/completion\": EOF",
                "Post \"[…]\": EOF",
            ),
            ("signed in as (anna@example.com)", "signed in as ([…])"),
            ("blob sha256-00aa is missing", "blob […] is missing"),
            (
                "dial tcp [::1]:11434: refused",
                "dial tcp [[…]]:11434: refused",
            ),
            ("a / b", "a / b"),
            ("", ""),
        ] {
            assert_eq!(scrub(text), want);
        }
    }

    #[test]
    fn all_texts_of_an_error_are_scrubbed() {
        let mut value =
            serde_json::json!({ "error": { "message": "in /a/b", "code": 3, "more": ["/c/d"] } });
        scrub_value(&mut value);
        let want =
            serde_json::json!({ "error": { "message": "in […]", "code": 3, "more": ["[…]"] } });
        assert_eq!(value, want);
    }
}
