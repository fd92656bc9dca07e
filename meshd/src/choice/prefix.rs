//! Which host worked on how much of a prompt before: its model server may still hold what it computed for it.
//!
//! Prompts are kept as hashes alone. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_proto::id::NodeId;
use serde_json::{Map, Value};

/// Places that are kept of one prompt: the first, which many conversations share, and the last, where the next turn goes on.
const N_FIRST: usize = 2;
const N_LAST: usize = 4;
/// Places that one prompt may have.
const N_MARKS_MAX: usize = 256;
/// Places that are remembered, over all prompts.
const N_KEPT_MAX: usize = 8_192;
/// Hosts that are remembered for one place.
const N_HOLDERS_MAX: usize = 4;
/// How long a model server is thought to hold on to what it computed: Ollama lets a model go after five idle minutes.
pub(super) const KEPT_FOR: Duration = Duration::from_mins(5);
/// How far apart the places of a plain text are, bytes.
const BLOCK: usize = 512;
/// Of a longer text only so much is hashed, and its length.
const HASHED_MAX: usize = 64 << 10;
/// Below this a prompt is computed sooner than anything is looked up.
const LEN_MIN: u32 = 64;

/// One place in a prompt: everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    hash: u64,
    /// Bytes before it, the answer included that follows there: who computed up to here gave it.
    n_known: u32,
}

/// The beginning of a request, in growing pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prefix {
    marks: Vec<Mark>,
    len: u32,
    home: u64,
}

impl Prefix {
    /// Reads a request in any dialect. `None` when it has no prompt that is worth it.
    pub(crate) fn of(body: &Map<String, Value>) -> Option<Self> {
        let mut hash = Hash::default();
        for key in ["model", "system", "tools", "instructions", "template"] {
            if let Some(value) = body.get(key) {
                hash.value(value);
            }
        }
        let mut prefix = Self::default();
        match ["messages", "input", "prompt"].map(|key| body.get(key)) {
            [Some(Value::Array(messages)), ..] | [None, Some(Value::Array(messages)), _] => {
                prefix.read_messages(messages, hash);
            }
            [None, Some(Value::String(text)), _] | [None, None, Some(Value::String(text))] => {
                prefix.read_text(text, hash);
            }
            _ => return None,
        }
        (prefix.len >= LEN_MIN).then_some(prefix)
    }

    fn read_messages(&mut self, messages: &[Value], mut hash: Hash) {
        let is_of =
            |message: &Value, role: &str| message.get("role").and_then(Value::as_str) == Some(role);
        for (at, message) in messages.iter().take(N_MARKS_MAX).enumerate() {
            hash.value(message);
            let is_answer = is_of(message, "assistant");
            if is_answer && let Some(before) = self.marks.last_mut() {
                before.n_known = hash.len;
            }
            self.marks.push(Mark {
                hash: hash.state,
                n_known: hash.len,
            });
            // What a conversation keeps for as long as it lasts: all up to its first question.
            if self.home == 0 && (is_of(message, "user") || at + 1 == messages.len()) {
                self.home = hash.state | 1;
            }
        }
        self.len = hash.len;
    }

    fn read_text(&mut self, text: &str, mut hash: Hash) {
        for block in text.as_bytes().chunks(BLOCK).take(N_MARKS_MAX) {
            hash.bytes(block);
            self.marks.push(Mark {
                hash: hash.state,
                n_known: hash.len,
            });
            if self.home == 0 {
                self.home = hash.state | 1;
            }
        }
        self.len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    }

    /// What all requests of one conversation have in common, as a number.
    pub(crate) fn home(&self) -> u64 {
        self.home
    }
}

/// Who computed what.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    places: BTreeMap<u64, Place>,
    /// The oldest first.
    by_age: BTreeMap<u64, u64>,
    next: u64,
}

#[derive(Debug)]
struct Place {
    age: u64,
    holders: Vec<(NodeId, Instant)>,
}

impl Affinity {
    /// The hosts that have at least half of a prompt, and how many bytes of it.
    pub(crate) fn holders(&self, prefix: &Prefix, now: Instant) -> Vec<(NodeId, u32)> {
        let mut found: Vec<(NodeId, u32)> = Vec::new();
        for mark in prefix.marks.iter().rev() {
            if u64::from(mark.n_known) * 2 < u64::from(prefix.len) {
                break;
            }
            let Some(place) = self.places.get(&mark.hash) else {
                continue;
            };
            for (node, since) in &place.holders {
                let is_held = now.saturating_duration_since(*since) < KEPT_FOR;
                if is_held && !found.iter().any(|(known, _)| known == node) {
                    found.push((*node, mark.n_known));
                }
            }
        }
        found
    }

    /// A host begins to work on a prompt.
    pub(crate) fn learn(&mut self, prefix: &Prefix, node: NodeId, now: Instant) {
        let n = prefix.marks.len();
        let first = prefix.marks.iter().take(N_FIRST.min(n));
        let last = prefix
            .marks
            .iter()
            .skip(N_FIRST.max(n.saturating_sub(N_LAST)));
        for mark in first.chain(last) {
            let age = self.next;
            self.next += 1;
            let place = self.places.entry(mark.hash).or_insert_with(|| Place {
                age,
                holders: Vec::new(),
            });
            self.by_age.remove(&place.age);
            place.age = age;
            place.holders.retain(|(known, _)| *known != node);
            if place.holders.len() >= N_HOLDERS_MAX {
                place.holders.remove(0);
            }
            place.holders.push((node, now));
            self.by_age.insert(age, mark.hash);
        }
        while self.places.len() > N_KEPT_MAX
            && let Some((_, hash)) = self.by_age.pop_first()
        {
            self.places.remove(&hash);
        }
    }
}

/// An even spread of bytes over numbers; the same in each node and each run. No defence against anybody.
#[derive(Debug, Clone, Copy, Default)]
struct Hash {
    state: u64,
    len: u32,
}

impl Hash {
    fn bytes(&mut self, bytes: &[u8]) {
        let hashed = bytes.get(..HASHED_MAX).unwrap_or(bytes);
        for chunk in hashed.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.state = mix(self.state ^ u64::from_le_bytes(word));
        }
        let n = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.state = mix(self.state ^ u64::from(n));
        self.len = self.len.saturating_add(n);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(b"n"),
            Value::Bool(is) => self.bytes(if *is { b"t" } else { b"f" }),
            Value::Number(number) => self.bytes(number.to_string().as_bytes()),
            Value::String(text) => self.bytes(text.as_bytes()),
            Value::Array(values) => values.iter().for_each(|value| self.value(value)),
            Value::Object(fields) => {
                for (key, value) in fields {
                    self.bytes(key.as_bytes());
                    self.value(value);
                }
            }
        }
    }
}

/// The finaliser of `splitmix64`: each bit of the input turns half of the output's.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
