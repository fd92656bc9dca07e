//! What happens to a reply's bytes in passing: watched for counts and for their proper end, cut to events, translated.
//!
//! Pure: bytes in, bytes out.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::{self, Finder};
use serde_json::Value;

use crate::gateway::admit::Infer;
use crate::gateway::count::Counts;
use crate::gateway::door::scrub_value;
use crate::gateway::translate::StreamTranslator;

/// The longest line of a stream; Ollama's last one holds the whole context.
const LINE_MAX: usize = 8 << 20;
/// How much of a whole reply is kept for its counts.
const WHOLE_MAX: usize = 8 << 20;

type Marks = LazyLock<Vec<Finder<'static>>>;

/// What a line of Ollama's that tells more than a token has in it.
static LINE_MARKS: Marks = LazyLock::new(|| finders(&["\"done\":true", "\"error\""]));
/// The same of an event.
static EVENT_MARKS: Marks =
    LazyLock::new(|| finders(&["\"usage\"", "\"error\"", "message_stop", "response."]));
const END_MARK: &[u8] = b"[DONE]";

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
    /// Nothing is passed yet of the line that is coming in.
    is_held: bool,
}

#[derive(Debug)]
enum Kind {
    /// Passed as it is; what is kept is read for its counts at the end.
    Whole { kept: Vec<Bytes>, n_room: usize },
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
            is_held: false,
        }
    }

    pub(crate) fn whole() -> Self {
        Self::new(Kind::Whole {
            kept: Vec::new(),
            n_room: 0,
        })
    }

    /// Has a whole reply read for its counts at its end.
    pub(crate) fn keep_for_counts(&mut self) {
        if let Kind::Whole { n_room, .. } = &mut self.kind {
            *n_room = WHOLE_MAX;
        }
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

    /// The content type of what is made, where it is another than what came.
    pub(crate) fn content_type(&self) -> Option<&'static str> {
        match &self.kind {
            Kind::Translate(translator) => Some(translator.content_type()),
            Kind::Whole { .. } | Kind::Lines | Kind::Events { .. } => None,
        }
    }

    pub(crate) fn is_stream(&self) -> bool {
        !matches!(self.kind, Kind::Whole { .. })
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
            Kind::Whole { kept, n_room } => {
                if let Some(n_left) = n_room.checked_sub(chunk.len()) {
                    *n_room = n_left;
                    kept.push(chunk.clone());
                }
                chunk
            }
            Kind::Lines if self.lines.is_empty() && is_plain_lines(&chunk) => chunk,
            Kind::Events { .. } if self.lines.is_empty() && is_plain_events(&chunk) => chunk,
            Kind::Lines => self.push_lines(&chunk).into(),
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
            Kind::Whole { kept, .. } => {
                match kept.as_slice() {
                    [] => {}
                    [one] => self.counts.read(one),
                    many => self.counts.read(&many.concat()),
                }
                return End::Complete(out);
            }
            Kind::Lines => {
                self.watch_line(&rest);
                // An error that broke off in its middle is said anew by whoever ends the stream.
                if std::mem::take(&mut self.is_held) && self.saw_error {
                    out = scrubbed(&rest);
                }
            }
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

    /// Passes lines on as they come, but for errors: of a line that may become one nothing is passed until it is whole, so that
    /// no part of it goes out unscrubbed.
    fn push_lines(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(chunk.len());
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            self.is_held |= self.lines.is_empty();
            let line = self.lines.push_piece(piece);
            let so_far = line.as_deref().unwrap_or(&self.lines.partial);
            if self.is_held && !may_be_error(so_far) {
                self.is_held = false;
                out.extend_from_slice(so_far);
            } else if !self.is_held {
                out.extend_from_slice(piece);
            }
            if let Some(line) = line {
                self.watch_line(&line);
                if std::mem::take(&mut self.is_held) {
                    out.extend_from_slice(&scrubbed(&line));
                }
            }
        }
        out
    }

    fn watch_line(&mut self, line: &[u8]) {
        // Only the last line and an error are of interest; the others are one token each and not worth parsing.
        if !tells(line, &LINE_MARKS) {
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
            let Ok(mut value) = serde_json::from_slice::<Value>(data) else {
                return;
            };
            if let Some(error) = value.get_mut("error") {
                scrub_value(error);
            }
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
        if data == END_MARK {
            self.is_done = true;
            out.extend_from_slice(b"data: [DONE]\n\n");
            return;
        }
        let is_telling = tells(data, &EVENT_MARKS);
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
            if let Some(error) = value.get_mut("error").filter(|error| !error.is_null()) {
                scrub_value(error);
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(value.to_string().as_bytes());
                out.extend_from_slice(b"\n\n");
                return;
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
    fn is_empty(&self) -> bool {
        self.partial.is_empty()
    }

    fn push(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let pieces = chunk.split_inclusive(|b| *b == b'\n');
        pieces.filter_map(|piece| self.push_piece(piece)).collect()
    }

    /// Takes a piece of which nothing but its end is the end of a line; gives the line when it has one.
    fn push_piece(&mut self, piece: &[u8]) -> Option<Vec<u8>> {
        if self.partial.len() + piece.len() <= LINE_MAX {
            self.partial.extend_from_slice(piece);
        }
        piece
            .ends_with(b"\n")
            .then(|| std::mem::take(&mut self.partial))
    }

    fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

/// Whether a line of Ollama's that begins so is, or may become, an error.
fn may_be_error(line: &[u8]) -> bool {
    const HEAD: &[u8] = b"{\"error\"";
    let told = line.iter().filter(|byte| !byte.is_ascii_whitespace());
    told.zip(HEAD).all(|(byte, expected)| byte == expected)
}

/// An error's line without what tells of the host. One that cannot be read is told as such.
fn scrubbed(line: &[u8]) -> Vec<u8> {
    if line.trim_ascii().is_empty() {
        return line.to_vec();
    }
    let mut value = serde_json::from_slice(line)
        .unwrap_or_else(|_| serde_json::json!({ "error": "the model server failed" }));
    scrub_value(&mut value);
    let mut text = value.to_string().into_bytes();
    text.push(b'\n');
    text
}

/// Whole lines of which none is more than a token; most chunks of a stream are that, and pass untouched.
fn is_plain_lines(chunk: &[u8]) -> bool {
    chunk.ends_with(b"\n") && !tells(chunk, &LINE_MARKS)
}

/// The same of events. One that begins with the end of a line belongs to an event that was written already.
fn is_plain_events(chunk: &[u8]) -> bool {
    chunk.ends_with(b"\n\n")
        && !chunk.starts_with(b"\n")
        && !chunk.starts_with(b"\r")
        && !tells(chunk, &EVENT_MARKS)
        && memmem::find(chunk, END_MARK).is_none()
}

fn tells(text: &[u8], marks: &Marks) -> bool {
    marks.iter().any(|mark| mark.find(text).is_some())
}

fn finders(words: &[&'static str]) -> Vec<Finder<'static>> {
    words.iter().map(|word| Finder::new(*word)).collect()
}

#[cfg(test)]
mod tests;
