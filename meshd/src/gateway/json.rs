//! JSON from strangers: one value, no key twice, nothing behind it.
//!
//! Decoders differ on a doubled key and on a key in other letters (Go takes the last one and ignores case), so a body that
//! holds either is refused rather than interpreted.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A JSON object.
pub(crate) type Object = Map<String, Value>;

/// Reads one object and nothing else.
///
/// # Errors
/// What is wrong with it, for the caller.
pub(crate) fn parse_object(body: &[u8]) -> Result<Object, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err("missing request body".to_owned());
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let left = Cell::new(BUDGET);
    let value = Strict { left: &left }
        .deserialize(&mut reader)
        .map_err(|err| format!("the request is not valid JSON: {err}"))?;
    reader
        .end()
        .map_err(|_| "the request has something behind its JSON object".to_owned())?;
    match value {
        Value::Object(object) => Ok(object),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err("the request must be a JSON object".to_owned())
        }
    }
}

/// A key as decoders that ignore case see it: `ſ` and the Kelvin sign fold to ASCII letters in Go.
pub(crate) fn fold_key(key: &str) -> String {
    key.chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

/// Whether some key would be taken for `known` by a decoder that ignores case, and is not spelled so.
pub(crate) fn misspelled<'a>(object: &'a Object, known: &[&str]) -> Option<&'a str> {
    object.keys().map(String::as_str).find(|key| {
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        // What is folded already cannot become another key.
        !key.bytes().all(is_plain) && !known.contains(key) && {
            let folded = fold_key(key);
            known.contains(&folded.as_str())
        }
    })
}

/// How much may be made of one body: a value counts 1, an object [`OBJECT_COST`]. A few bytes of text become hundreds in
/// memory, so the length of a body bounds nothing.
const BUDGET: usize = 1 << 18;
/// An object's share of the budget.
const OBJECT_COST: usize = 16;

#[derive(Clone, Copy)]
struct Strict<'a> {
    left: &'a Cell<usize>,
}

impl Strict<'_> {
    fn charge<E: de::Error>(self, cost: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(cost);
        self.left
            .set(left.ok_or_else(|| E::custom("it holds too many values"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.charge(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.charge(OBJECT_COST)?;
        let mut object = Object::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format_args!(
                    "the key {key:?} is twice in one object"
                )));
            }
            let value = map.next_value_seed(self)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_cannot_grow_in_memory() {
        let many = |what: &str, n: usize| {
            let body = format!("{{\"x\":[{}1]}}", format!("{what},").repeat(n));
            parse_object(body.as_bytes())
        };
        assert!(many("0", 200_000).is_ok());
        assert!(many(r#"{"":0}"#, 10_000).is_ok());
        for (what, n) in [("0", 300_000), ("[]", 300_000), (r#"{"":0}"#, 20_000)] {
            assert!(
                many(what, n).unwrap_err().contains("too many values"),
                "{what}"
            );
        }
    }
}
