//! What happens to a reply's bytes in passing: watched for counts and for their proper end, cut to events, translated.
//!
//! Pure: bytes in, bytes out.

use bytes::Bytes;
use serde_json::Value;

use crate::gateway::admit::Infer;
use crate::gateway::count::Counts;
use crate::gateway::translate::StreamTranslator;

/// The longest line of a stream; Ollama's last one holds the whole context.
const LINE_MAX: usize = 8 << 20;
/// How much of a whole reply is kept for its counts.
const WHOLE_MAX: usize = 8 << 20;

/// How a reply ended on its source's side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Properly, with this still to be sent.
    Complete(Vec<u8>),
    /// Without its closing words.
    Broken(Vec<u8>),
}

/// One reply's treatment.
#[derive(Debug)]
pub(crate) struct Filter {
    kind: Kind,
    lines: Lines,
    counts: Counts,
    is_done: bool,
    saw_error: bool,
}

#[derive(Debug)]
enum Kind {
    /// Passed as it is; a copy is read for its counts at the end.
    Whole(Vec<u8>),
    /// Ollama's lines.
    Lines,
    /// Server-sent events; whether usage is taken out because the caller had not asked for it.
    Events { strips_usage: bool },
    /// OpenAI's events in, Ollama's lines out.
    Translate(Box<StreamTranslator>),
}

impl Filter {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            lines: Lines::default(),
            counts: Counts::default(),
            is_done: false,
            saw_error: false,
        }
    }

    pub(crate) fn whole() -> Self {
        Self::new(Kind::Whole(Vec::new()))
    }

    /// For a stream that is passed on; `strips_usage` takes the usage figures out.
    pub(crate) fn stream(route: Infer, strips_usage: bool) -> Self {
        match route {
            Infer::Chat | Infer::Generate | Infer::Embed | Infer::Embeddings => {
                Self::new(Kind::Lines)
            }
            Infer::V1Chat
            | Infer::V1Completions
            | Infer::V1Embeddings
            | Infer::V1Responses
            | Infer::V1Messages => Self::new(Kind::Events { strips_usage }),
        }
    }

    pub(crate) fn translating(translator: StreamTranslator) -> Self {
        Self::new(Kind::Translate(Box::new(translator)))
    }

    pub(crate) fn is_stream(&self) -> bool {
        !matches!(self.kind, Kind::Whole(_))
    }

    pub(crate) fn saw_error(&self) -> bool {
        self.saw_error
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes a chunk, gives what may be sent on.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Bytes {
        match &mut self.kind {
            Kind::Whole(copy) => {
                if copy.len() + chunk.len() <= WHOLE_MAX {
                    copy.extend_from_slice(&chunk);
                }
                chunk
            }
            Kind::Lines => {
                for line in self.lines.push(&chunk) {
                    self.watch_line(&line);
                }
                chunk
            }
            Kind::Events { .. } | Kind::Translate(_) => {
                let mut out = Vec::with_capacity(chunk.len());
                for line in self.lines.push(&chunk) {
                    self.event_line(&line, &mut out);
                }
                out.into()
            }
        }
    }

    /// The source has no more.
    pub(crate) fn finish(&mut self) -> End {
        let rest = self.lines.rest();
        let mut out = Vec::new();
        match &mut self.kind {
            Kind::Whole(copy) => {
                if let Ok(value) = serde_json::from_slice::<Value>(copy) {
                    self.counts.observe(&value);
                }
                return End::Complete(out);
            }
            Kind::Lines => self.watch_line(&rest),
            Kind::Events { .. } => self.event_line(&rest, &mut out),
            Kind::Translate(_) => {
                self.event_line(&rest, &mut out);
                if let Kind::Translate(translator) = &mut self.kind
                    && let Some(last) = translator.finish()
                {
                    self.is_done = true;
                    out.extend_from_slice(&last);
                }
            }
        }
        if self.is_done && !self.saw_error {
            End::Complete(out)
        } else {
            End::Broken(out)
        }
    }

    fn watch_line(&mut self, line: &[u8]) {
        // Only the last line and an error are of interest; the others are one token each and not worth parsing.
        if !(contains(line, b"\"done\":true") || contains(line, b"\"error\"")) {
            return;
        }
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            return;
        };
        if value.get("done") == Some(&Value::Bool(true)) {
            self.is_done = true;
            self.counts.observe(&value);
        } else if value.get("error").is_some() && value.get("done").is_none() {
            self.saw_error = true;
        }
    }

    fn event_line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let data = text.strip_prefix(b"data:").map(<[u8]>::trim_ascii);
        if let Kind::Translate(translator) = &mut self.kind {
            let Some(data) = data else { return };
            if data == b"[DONE]" {
                translator.close();
                return;
            }
            let Ok(value) = serde_json::from_slice::<Value>(data) else {
                return;
            };
            self.counts.observe(&value);
            self.saw_error |= translator.event(&value, out);
            return;
        }
        let Kind::Events { strips_usage } = self.kind else {
            return;
        };
        let Some(data) = data else {
            // The blank line that ends an event is written with the event itself, so that a dropped one leaves none.
            if !text.is_empty() {
                out.extend_from_slice(line);
            }
            return;
        };
        if data == b"[DONE]" {
            self.is_done = true;
            out.extend_from_slice(b"data: [DONE]\n\n");
            return;
        }
        let is_telling = [
            &b"\"usage\""[..],
            b"\"error\"",
            b"message_stop",
            b"response.",
        ]
        .iter()
        .any(|mark| contains(data, mark));
        if is_telling && let Ok(mut value) = serde_json::from_slice::<Value>(data) {
            self.counts.observe(&value);
            let kind = value.get("type").and_then(Value::as_str);
            let is_error = value.get("error").is_some_and(|error| !error.is_null());
            match kind {
                Some(
                    "message_stop"
                    | "response.completed"
                    | "response.incomplete"
                    | "response.failed",
                ) => {
                    self.is_done = true;
                }
                Some("error") => self.saw_error = true,
                Some(_) => {}
                None => self.saw_error |= is_error,
            }
            if strips_usage && value.get("usage").is_some() {
                let is_empty = value
                    .get("choices")
                    .and_then(Value::as_array)
                    .is_none_or(Vec::is_empty);
                if is_empty {
                    return;
                }
                if let Some(object) = value.as_object_mut() {
                    object.remove("usage");
                }
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(value.to_string().as_bytes());
                out.extend_from_slice(b"\n\n");
                return;
            }
        }
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(data);
        out.extend_from_slice(b"\n\n");
    }
}

/// Cuts chunks into lines. A line that is too long is lost to watching, never to passing.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            if self.partial.len() + piece.len() <= LINE_MAX {
                self.partial.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                lines.push(std::mem::take(&mut self.partial));
            }
        }
        lines
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests;
