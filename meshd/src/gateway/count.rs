//! What one request took: the backend's closing figures, which alone count, and beside them what was delivered.
//!
//! Never keeps or logs what was said.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_proto::id::NodeId;
use mesh_proto::share::Offer;
use mesh_proto::usage::{Endpoint, Outcome, Party, Random16, USAGE_VERSION, UsageRecord};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::admit::Infer;
use super::door::{Reserved, Tally};
use super::handles;
use super::upstream::UpstreamError;
use crate::inventory::Working;
use crate::metrics::DOOR_DOUBTFUL;
use crate::view::View;

/// The figures of one reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) n_prompt: Option<u64>,
    pub(crate) n_output: Option<u64>,
}

impl Counts {
    /// Takes what a JSON value tells: a whole reply, a line, or an event. Later figures replace earlier ones.
    pub(crate) fn observe(&mut self, value: &Value) {
        // Nothing fails to be read that is JSON.
        if let Ok(told) = Told::deserialize(value) {
            self.take(&told);
        }
    }

    /// The same of a JSON text, in which all else is passed over. What is no JSON tells nothing.
    pub(crate) fn read(&mut self, text: &[u8]) {
        if let Ok(told) = serde_json::from_slice(text) {
            self.take(&told);
        }
    }

    fn take(&mut self, told: &Told) {
        let [usage, message, response] = [0, 1, 2].map(|place| told.usage(place));
        let places = [
            Some(told),
            usage,
            message.and_then(|message| message.usage(0)),
            response.and_then(|reply| reply.usage(0)),
        ];
        for Told { figures, .. } in places.into_iter().flatten() {
            let [
                eval,
                prompt,
                input,
                read,
                created,
                generated,
                completion,
                output,
            ] = *figures;
            if let Some(n) = eval.or(prompt).or(input) {
                // Anthropic's API counts apart what of the prompt was in a cache.
                let cached = [read, created].into_iter().flatten();
                self.n_prompt = Some(cached.fold(n, u64::saturating_add));
            }
            if let Some(n) = generated.or(completion).or(output) {
                self.n_output = Some(n);
            }
        }
    }
}

/// What of a reply's JSON figures may stand in; all else is passed over unread.
#[derive(Debug, Default)]
struct Told {
    /// The value itself, where it may be a figure.
    n: Option<u64>,
    /// In the order of [`FIGURES`].
    figures: [Option<u64>; FIGURES.len()],
    /// In the order of [`PLACES`].
    places: [Option<Box<Self>>; PLACES.len()],
}

/// Prompt, what of it was cached, output: as each API says it.
const FIGURES: [&str; 8] = [
    "prompt_eval_count",
    "prompt_tokens",
    "input_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "eval_count",
    "completion_tokens",
    "output_tokens",
];
const PLACES: [&str; 3] = ["usage", "message", "response"];

impl Told {
    fn usage(&self, place: usize) -> Option<&Self> {
        self.places.get(place)?.as_deref()
    }
}

impl<'de> Deserialize<'de> for Told {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Told;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Told, A::Error> {
        let mut told = Told::default();
        while let Some(key) = map.next_key()? {
            match key {
                Key::Figure(at) => told.figures[at] = map.next_value::<Told>()?.n,
                Key::Place(at) => told.places[at] = Some(Box::new(map.next_value()?)),
                Key::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(told)
    }

    fn visit_u64<E>(self, n: u64) -> Result<Told, E> {
        Ok(Told {
            n: Some(n),
            ..Told::default()
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Told, A::Error> {
        IgnoredAny.visit_seq(seq).map(|_| Told::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Told, E> {
        Ok(Told::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Told, E> {
        Ok(Told::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Told, E> {
        Ok(Told::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Told, E> {
        Ok(Told::default())
    }

    fn visit_unit<E>(self) -> Result<Told, E> {
        Ok(Told::default())
    }
}

/// What a key announces.
enum Key {
    Figure(usize),
    Place(usize),
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(KeyReader)
    }
}

struct KeyReader;

impl Visitor<'_> for KeyReader {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        let at = |names: &[&str]| names.iter().position(|name| *name == key);
        let figure = at(&FIGURES).map(Key::Figure);
        Ok(figure
            .or_else(|| at(&PLACES).map(Key::Place))
            .unwrap_or(Key::Other))
    }
}

/// Who asks whom for what.
#[derive(Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) view: &'a Arc<View>,
    /// `None` is this machine itself.
    pub(crate) guest: Option<NodeId>,
    pub(crate) offer: &'a Offer,
    pub(crate) route: Infer,
    pub(crate) is_stream: bool,
}

/// Where usage is written down.
pub trait UsageSink: fmt::Debug + Send + Sync {
    /// Takes a record, without waiting for anything.
    fn take(&self, record: &UsageRecord);
}

/// Writes down one request when it is over, however it ends: unless it is told otherwise, because its caller went.
#[derive(Debug)]
pub(crate) struct Record {
    /// Absent when nobody is to hear of it. Apart, for what holds this is moved about, and small memory is cheaper to have.
    usage: Option<Box<UsageRecord>>,
    route: Infer,
    arrived: Instant,
    /// `complete`, or what kept it from being so.
    outcome: Outcome,
    is_refused: bool,
    counts: Counts,
    tally: Tally,
    first_byte: Option<Instant>,
    reserved: Option<(Reserved, u64)>,
    working: Option<Working>,
    meter: Option<Arc<dyn UsageSink>>,
}

impl Record {
    /// Begins with a request that arrived then.
    pub(crate) fn new(
        subject: &Subject<'_>,
        arrived: Instant,
        meter: Option<Arc<dyn UsageSink>>,
    ) -> Self {
        Self {
            usage: usage(subject).map(Box::new),
            route: subject.route,
            arrived,
            outcome: Outcome::ClientAbort,
            is_refused: false,
            counts: Counts::default(),
            tally: Tally::new(subject.route, subject.is_stream),
            first_byte: None,
            reserved: None,
            working: None,
            meter,
        }
    }

    /// What it takes is counted against what its guest may use; a prompt of which the backend tells nothing as so many tokens.
    pub(crate) fn pay_with(&mut self, reserved: Reserved, n_prompt: u64) {
        self.reserved = Some((reserved, n_prompt));
    }

    /// The host is seen to work until it is over.
    pub(crate) fn occupy(&mut self, working: Working) {
        self.working = Some(working);
    }

    /// These bytes went to the caller.
    pub(crate) fn passed(&mut self, bytes: &[u8]) {
        if self.first_byte.is_none() && !bytes.is_empty() {
            self.first_byte = Some(Instant::now());
        }
        self.tally.push(bytes);
    }

    pub(crate) fn set(&mut self, counts: Counts) {
        self.counts = counts;
    }

    pub(crate) fn complete(&mut self) {
        self.outcome = Outcome::Ok;
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    /// The backend failed.
    pub(crate) fn fail(&mut self, err: &UpstreamError) {
        self.outcome = match err {
            UpstreamError::Silent => Outcome::Timeout,
            UpstreamError::Connect(_) | UpstreamError::Broken(_) | UpstreamError::Body => {
                Outcome::HostError
            }
        };
    }

    /// The backend broke off.
    pub(crate) fn broke(&mut self) {
        if self.outcome == Outcome::ClientAbort {
            self.outcome = Outcome::HostError;
        }
    }

    /// The backend would not do it.
    pub(crate) fn refused(&mut self) {
        self.is_refused = true;
    }
}

fn usage(subject: &Subject<'_>) -> Option<UsageRecord> {
    let netmap = &subject.view.netmap;
    let own = &netmap.node;
    let host = Party {
        node: own.id,
        node_key: own.node_key,
        owner: own.user,
        owner_name: own.user_name.clone(),
        is_tagged: !own.tags.is_empty(),
    };
    let client = match subject.guest {
        // The machine's own requests are its user's, whatever the node's tags are.
        None => Party {
            is_tagged: false,
            ..host.clone()
        },
        Some(id) => {
            let peer = netmap.peers.get(&id)?;
            Party {
                node: id,
                node_key: peer.node_key,
                owner: peer.user,
                owner_name: peer.user_name.clone(),
                is_tagged: !peer.tags.is_empty(),
            }
        }
    };
    let random = random()?;
    let half = |at: usize| {
        let mut half = [0; 16];
        half.copy_from_slice(&random[at..at + 16]);
        Random16::from_bytes(half)
    };
    Some(UsageRecord {
        version: USAGE_VERSION,
        network_id: netmap.network.id,
        rid: half(0),
        nonce: half(16),
        client,
        host,
        model: subject.offer.model.clone(),
        digest: subject.offer.digest,
        endpoint: endpoint(subject.route),
        prompt_tokens: None,
        output_tokens: None,
        delivered_tokens: 0,
        n_chunks: 0,
        n_bytes: 0,
        start_ms: 0,
        first_byte_ms: None,
        end_ms: 0,
        outcome: Outcome::ClientAbort,
    })
}

/// Random bytes of the system, drawn for many records at once.
fn random() -> Option<[u8; 32]> {
    thread_local! {
        static DRAWN: RefCell<(Vec<u8>, usize)> = const { RefCell::new((Vec::new(), 0)) };
    }
    DRAWN.with_borrow_mut(|(bytes, n_used)| {
        if *n_used == bytes.len() {
            bytes.resize(32 * 32, 0);
            *n_used = bytes.len();
            getrandom::fill(bytes).ok()?;
            *n_used = 0;
        }
        let drawn = bytes.get(*n_used..)?.first_chunk().copied()?;
        *n_used += drawn.len();
        Some(drawn)
    })
}

const fn endpoint(route: Infer) -> Endpoint {
    match route {
        Infer::Chat => Endpoint::Chat,
        Infer::Generate => Endpoint::Generate,
        Infer::Embed | Infer::Embeddings => Endpoint::Embed,
        Infer::V1Chat => Endpoint::V1Chat,
        Infer::V1Completions => Endpoint::V1Completions,
        Infer::V1Embeddings => Endpoint::V1Embeddings,
        Infer::V1Responses => Endpoint::V1Responses,
        Infer::V1Messages => Endpoint::V1Messages,
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = SystemTime::now();
        let ended = Instant::now();
        handles::request(self.route, (!self.is_refused).then_some(self.outcome));
        handles::tokens(
            self.counts.n_prompt.unwrap_or(0),
            self.counts.n_output.unwrap_or(0),
        );
        handles::duration(self.route, ended.duration_since(self.arrived).as_secs_f64());
        if self.is_refused {
            return;
        }
        if let Some((reserved, n_prompt)) = self.reserved.take() {
            let n_output = self
                .counts
                .n_output
                .unwrap_or_else(|| self.tally.n_tokens());
            reserved.spend(
                self.counts
                    .n_prompt
                    .unwrap_or(n_prompt)
                    .saturating_add(n_output),
                now,
            );
        }
        let Some(usage) = self.usage.take() else {
            return;
        };
        let end = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let wall = |at: Instant| millis(end.saturating_sub(ended.saturating_duration_since(at)));
        let usage = UsageRecord {
            prompt_tokens: self.counts.n_prompt,
            output_tokens: self.counts.n_output,
            delivered_tokens: self.tally.n_tokens(),
            n_chunks: self.tally.n_chunks,
            n_bytes: self.tally.n_bytes,
            start_ms: wall(self.arrived),
            first_byte_ms: self.first_byte.map(wall),
            end_ms: millis(end),
            outcome: self.outcome,
            ..*usage
        };
        if !usage.is_plausible() {
            metrics::counter!(DOOR_DOUBTFUL).increment(1);
        }
        if let Some(meter) = &self.meter {
            meter.take(&usage);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Counts {
        let mut counts = Counts::default();
        counts.read(text.as_bytes());
        counts
    }

    #[test]
    fn figures_are_found_in_each_apis_place_and_in_no_other() {
        let cases = [
            (
                r#"{"model":"m","prompt_eval_count":7,"eval_count":9,"context":[1,2]}"#,
                (Some(7), Some(9)),
            ),
            (
                r#"{"choices":[{"usage":{"prompt_tokens":1}}],"usage":{"prompt_tokens":7,"completion_tokens":9}}"#,
                (Some(7), Some(9)),
            ),
            (
                r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"cache_read_input_tokens":4,"output_tokens":1}}}"#,
                (Some(7), Some(1)),
            ),
            (
                r#"{"type":"response.completed","response":{"usage":{"input_tokens":7,"output_tokens":9}}}"#,
                (Some(7), Some(9)),
            ),
            (
                r#"{"response":"a text","done":true,"prompt_eval_count":7,"eval_count":9}"#,
                (Some(7), Some(9)),
            ),
            (
                r#"{"usage":null,"prompt_eval_count":"7","eval_count":-9}"#,
                (None, None),
            ),
            (
                r#"{"usage":[{"prompt_tokens":7}],"eval_count":1.5,"completion_tokens":{"n":[]},"output_tokens":9}"#,
                (None, Some(9)),
            ),
            (
                r#"{"us\u0061ge":{"prompt_tok\u0065ns":7}}"#,
                (Some(7), None),
            ),
            ("[1]", (None, None)),
            ("7", (None, None)),
            ("null", (None, None)),
            ("{", (None, None)),
            ("", (None, None)),
        ];
        for (text, (n_prompt, n_output)) in cases {
            let expected = Counts { n_prompt, n_output };
            assert_eq!(read(text), expected, "{text}");
            let mut of_value = Counts::default();
            if let Ok(value) = serde_json::from_str(text) {
                of_value.observe(&value);
            }
            assert_eq!(of_value, expected, "{text}");
        }
    }

    #[test]
    fn what_is_nested_without_end_is_no_harm() {
        assert_eq!(read(&r#"{"usage":"#.repeat(100_000)), Counts::default());
        assert_eq!(
            read(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
            Counts::default()
        );
    }
}
