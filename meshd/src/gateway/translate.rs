//! Ollama's API in front of a server that speaks OpenAI's alone, so that `ollama run` works against any host.
//!
//! Pure: values in, values out; the clock is read by the caller of the request half only.

mod reply;
mod request;

pub(crate) use reply::{Frame, StreamTranslator, embeddings, error_message, whole};
pub(crate) use request::{Translated, translate};

#[cfg(test)]
mod tests;
