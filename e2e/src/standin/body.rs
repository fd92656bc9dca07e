//! JSON as Go's decoder reads it: keys match without regard to case, the last one wins, and what follows the first value
//! is not looked at.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// An object with its keys as they came, doubles included.
#[derive(Debug, Clone, Default)]
pub struct Loose(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Loose;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Loose(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Loose {
    /// The value that counts for a key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        let pair = self.0.iter().rev().find(|(other, _)| fold(other) == key);
        pair.map(|(_, value)| value)
    }

    /// The value that counts for a key, when it is a string.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<String> {
        self.value(key).and_then(Value::as_str).map(str::to_owned)
    }

    /// A plain object of what counts, for the server behind.
    #[must_use]
    pub fn to_object(&self) -> serde_json::Map<String, Value> {
        self.0
            .iter()
            .map(|(key, value)| (fold(key), value.clone()))
            .collect()
    }
}

/// Go folds case by Unicode's simple folding, so the long s and the Kelvin sign count as letters too.
fn fold(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

/// Reads the first JSON value of a body; the error is in the real one's words.
///
/// # Errors
/// When there is no body or no object in it.
pub fn decode(body: &[u8]) -> Result<Loose, String> {
    if body.is_empty() {
        return Err("missing request body".to_owned());
    }
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Loose>();
    match values.next() {
        Some(Ok(value)) => Ok(value),
        Some(Err(_)) | None => {
            Err("invalid character 'b' looking for beginning of object key string".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn the_last_key_wins_in_any_case() {
        for body in [
            r#"{"model":"tiny","Model":"other"}"#,
            r#"{"model":"tiny","model":"other"}"#,
            r#"{"MODEL":"other"}"#,
            r#"{"model":"other"} {"model":"tiny"}"#,
        ] {
            let request = decode(body.as_bytes()).unwrap();
            assert_eq!(request.text("model").as_deref(), Some("other"), "{body}");
            assert_eq!(request.to_object()["model"], "other", "{body}");
        }
        assert_eq!(decode(b"").unwrap_err(), "missing request body");
        assert!(decode(b"{bad").is_err());
    }
}
