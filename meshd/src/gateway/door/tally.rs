//! Counts what a reply delivers while it passes: bytes, pieces of text, characters. Keeps nothing of what was said.
//!
//! Pure: bytes in, counts out. Reads JSON just so far that it knows which strings are generated text, in any dialect.

use memchr::memchr3;

use crate::gateway::admit::Infer;

/// Keys whose strings a model wrote.
const TEXT: &[&[u8]] = &[
    b"content",
    b"response",
    b"text",
    b"thinking",
    b"reasoning",
    b"reasoning_content",
    b"arguments",
    b"partial_json",
    b"refusal",
];
/// The same in a stream of responses, whose closing events repeat all that was said.
const TEXT_OF_RESPONSES: &[&[u8]] = &[b"delta"];
/// Keys whose values a model wrote as a whole: what a tool is called with.
const WHOLE: [&[u8]; 2] = [b"arguments", b"input"];
/// The longest key of interest.
const KEY_MAX: usize = 20;

/// Characters that a token stands for, on average.
const TOKEN_CHARS: u64 = 4;

/// The counts of one reply.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    text: &'static [&'static [u8]],
    pub(crate) n_bytes: u64,
    /// Pieces of text that are not empty.
    pub(crate) n_chunks: u64,
    n_chars: u64,
    state: State,
    /// The last string, as far as a key may be long.
    word: Vec<u8>,
    is_word_long: bool,
    /// Characters of the string being read.
    n_string: u64,
    /// Whether the value that comes next belongs to a key of `text`.
    is_text: bool,
    /// And to one of [`WHOLE`].
    is_whole: bool,
    depth: u32,
    /// How deep the value is that counts as a whole.
    whole_from: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Between,
    InString,
    Escaped,
    /// A string ended: a key, if a colon follows.
    AfterString,
}

impl Tally {
    pub(crate) fn new(route: Infer, is_stream: bool) -> Self {
        let is_responses = is_stream && route == Infer::V1Responses;
        Self {
            text: if is_responses {
                TEXT_OF_RESPONSES
            } else {
                TEXT
            },
            n_bytes: 0,
            n_chunks: 0,
            n_chars: 0,
            state: State::default(),
            word: Vec::with_capacity(KEY_MAX),
            is_word_long: false,
            n_string: 0,
            is_text: false,
            is_whole: false,
            depth: 0,
            whole_from: None,
        }
    }

    /// Takes bytes that were passed on.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.n_bytes = self
            .n_bytes
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            if self.state == State::InString && self.whole_from.is_none() {
                // Most of a reply are strings, of which nothing but the end is of interest.
                let len = memchr3(b'"', b'\\', b'\n', rest).unwrap_or(rest.len());
                if let Some((text, special)) = rest.split_at_checked(len).filter(|_| len > 0) {
                    self.text(text);
                    rest = special;
                    continue;
                }
            }
            self.byte(*byte);
            rest = after;
        }
    }

    /// About how many tokens were delivered.
    pub(crate) fn n_tokens(&self) -> u64 {
        self.n_chunks.max(self.n_chars.div_ceil(TOKEN_CHARS))
    }

    fn byte(&mut self, byte: u8) {
        if self.whole_from.is_some() && !byte.is_ascii_whitespace() {
            self.n_chars = self.n_chars.saturating_add(u64::from(is_char_start(byte)));
        }
        match self.state {
            State::InString => match byte {
                b'"' => self.end_string(),
                b'\\' => self.state = State::Escaped,
                // No string of JSON holds a line's end: what seemed one was none.
                b'\n' => self.state = State::Between,
                _ => self.text(&[byte]),
            },
            State::Escaped => {
                self.state = State::InString;
                // An escape of four digits counts once, and its digits as the characters that they are not; few texts have them.
                self.text(&[byte]);
            }
            State::AfterString if byte == b':' => {
                self.state = State::Between;
                let word = (!self.is_word_long).then_some(self.word.as_slice());
                self.is_text = word.is_some_and(|word| self.text.contains(&word));
                self.is_whole = word.is_some_and(|word| WHOLE.contains(&word));
            }
            State::AfterString | State::Between => self.between(byte),
        }
    }

    fn between(&mut self, byte: u8) {
        match byte {
            b'"' => {
                self.state = State::InString;
                self.word.clear();
                self.is_word_long = false;
                self.n_string = 0;
                return;
            }
            b'{' | b'[' => {
                self.depth = self.depth.saturating_add(1);
                if self.is_whole && self.whole_from.is_none() {
                    self.whole_from = Some(self.depth);
                    self.n_chunks += 1;
                }
                // What is in there has keys of its own.
                self.is_text = false;
                self.is_whole = false;
            }
            b'}' | b']' => {
                if self.whole_from == Some(self.depth) {
                    self.whole_from = None;
                }
                self.depth = self.depth.saturating_sub(1);
                self.is_text = false;
            }
            b',' => {
                self.is_text = false;
                self.is_whole = false;
            }
            _ => {}
        }
        if self.state == State::AfterString && !byte.is_ascii_whitespace() {
            self.state = State::Between;
        }
    }

    /// Takes a piece of a string in which nothing ends it.
    fn text(&mut self, text: &[u8]) {
        let n_chars = text.iter().filter(|byte| is_char_start(**byte)).count();
        let n_chars = u64::try_from(n_chars).unwrap_or(u64::MAX);
        self.n_string = self.n_string.saturating_add(n_chars);
        let room = KEY_MAX - self.word.len().min(KEY_MAX);
        self.is_word_long |= text.len() > room;
        self.word.extend(text.iter().take(room));
    }

    fn end_string(&mut self) {
        self.state = State::AfterString;
        if self.is_text && self.whole_from.is_none() && self.n_string > 0 {
            self.n_chunks = self.n_chunks.saturating_add(1);
            self.n_chars = self.n_chars.saturating_add(self.n_string);
        }
        self.is_text = false;
        self.is_whole = false;
    }
}

/// Whether a byte of UTF-8 begins a character.
const fn is_char_start(byte: u8) -> bool {
    byte & 0b1100_0000 != 0b1000_0000
}

#[cfg(test)]
mod tests;
