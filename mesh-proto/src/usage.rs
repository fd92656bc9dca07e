//! What one request took, as a host writes it down: the input of receipts. Counts and times, never content.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::{NetworkId, NodeId, UserId, UserName, text_form, write_encoded};
use crate::key::NodeKey;
use crate::share::Digest;

/// The version of the record; it rises when a field changes its meaning.
pub const USAGE_VERSION: u32 = 1;

/// 16 random bytes: names a request, or salts what is hashed of it. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Random16([u8; 16]);

/// The text is no 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 32 hexadecimal digits")]
pub struct Random16Error;

impl Random16 {
    /// Takes the bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl std::str::FromStr for Random16 {
    type Err = Random16Error;

    fn from_str(text: &str) -> Result<Self, Random16Error> {
        let bytes = data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| Random16Error)?;
        bytes.try_into().map(Self).map_err(|_| Random16Error)
    }
}

impl fmt::Display for Random16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_encoded::<32>(f, &data_encoding::HEXLOWER, &self.0)
    }
}

impl fmt::Debug for Random16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

text_form!(Random16);

/// One request that a model worked on. Times are Unix milliseconds by the host's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// [`USAGE_VERSION`].
    pub version: u32,
    /// The mesh.
    pub network_id: NetworkId,
    /// Names the request, once for ever.
    pub rid: Random16,
    /// Salts what is hashed of the request.
    pub nonce: Random16,
    /// Who asked.
    pub client: Party,
    /// Who answered.
    pub host: Party,
    /// The exact name of the model on the host.
    pub model: String,
    /// Its digest, where the backend knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The call.
    pub endpoint: Endpoint,
    /// Tokens read, as the backend counted them; absent where it told none, as when the reply broke off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u64>,
    /// Tokens generated, as the backend counted them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Tokens generated, reckoned from what was delivered: the pieces of text, or a token for four characters where that is more.
    pub delivered_tokens: u64,
    /// Pieces of text delivered; in a stream mostly one a token.
    pub n_chunks: u64,
    /// Bytes of the reply's body delivered.
    pub n_bytes: u64,
    /// When the request had come.
    pub start_ms: u64,
    /// When the first byte of the reply's body was passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<u64>,
    /// When it was over.
    pub end_ms: u64,
    /// How it ended.
    pub outcome: Outcome,
}

impl UsageRecord {
    /// Tokens that are charged: the backend's figures where it told them, else what was delivered.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        let output = self.output_tokens.unwrap_or(self.delivered_tokens);
        self.prompt_tokens.unwrap_or(0).saturating_add(output)
    }

    /// Whether the backend's figure for the output agrees with what was delivered, as far as one bounds the other: tokens that no
    /// text shows are few. True where there is nothing to compare.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let Some(told) = self.output_tokens.filter(|_| self.outcome == Outcome::Ok) else {
            return true;
        };
        let most = self
            .delivered_tokens
            .saturating_add(self.delivered_tokens / 4)
            .saturating_add(16);
        told <= most
    }
}

/// One side of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The node; its id is the hash of its machine key.
    pub node: NodeId,
    /// The node key that the tunnel used.
    pub node_key: NodeKey,
    /// The node's owner.
    pub owner: UserId,
    /// The owner's name then.
    pub owner_name: UserName,
    /// Whether the node is tagged, and so acts as no user.
    #[serde(default)]
    pub is_tagged: bool,
}

/// A call that a model works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// Ollama's chat.
    Chat,
    /// Ollama's generate.
    Generate,
    /// Ollama's embed and embeddings.
    Embed,
    /// OpenAI's chat completions.
    V1Chat,
    /// OpenAI's completions.
    V1Completions,
    /// OpenAI's embeddings.
    V1Embeddings,
    /// OpenAI's responses.
    V1Responses,
    /// Anthropic's messages.
    V1Messages,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The reply came to its end.
    Ok,
    /// The client went before it did.
    ClientAbort,
    /// The backend broke off or could not answer.
    HostError,
    /// The backend said nothing for too long.
    Timeout,
}

/// Usage added up: one guest, one model, one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The day in UTC, `2026-11-23`.
    pub day: String,
    /// The user, or the node where that is tagged.
    pub guest: String,
    /// Whether it is this node's own user.
    pub is_owner: bool,
    /// The model.
    pub model: String,
    /// What it came to.
    #[serde(flatten)]
    pub sum: UsageSum,
}

/// A sum of usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UsageSum {
    /// Requests.
    pub n_requests: u64,
    /// Those of them that did not come to their end.
    pub n_broken: u64,
    /// Those of them whose figures do not agree with what was delivered.
    pub n_doubtful: u64,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Bytes of replies.
    pub n_bytes: u64,
    /// Milliseconds in work.
    pub work_ms: u64,
}

impl UsageSum {
    /// Counts a record.
    pub fn count(&mut self, record: &UsageRecord) {
        let output = record.output_tokens.unwrap_or(record.delivered_tokens);
        self.add(&Self {
            n_requests: 1,
            n_broken: u64::from(record.outcome != Outcome::Ok),
            n_doubtful: u64::from(!record.is_plausible()),
            prompt_tokens: record.prompt_tokens.unwrap_or(0),
            output_tokens: output,
            n_bytes: record.n_bytes,
            work_ms: record.end_ms.saturating_sub(record.start_ms),
        });
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.n_requests, other.n_requests),
            (&mut self.n_broken, other.n_broken),
            (&mut self.n_doubtful, other.n_doubtful),
            (&mut self.prompt_tokens, other.prompt_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.n_bytes, other.n_bytes),
            (&mut self.work_ms, other.work_ms),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// What others, and the owner, used of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// How many days back, today included.
    pub n_days: u32,
    /// By day, guest and model, oldest day first.
    pub rows: Vec<UsageRow>,
    /// Records that could not be written to disk yet, as when it is full.
    #[serde(default)]
    pub n_unwritten: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_hexadecimal() {
        let text = "000102030405060708090a0b0c0d0e0f";
        assert_eq!(text.parse::<Random16>().unwrap().to_string(), text);
        for text in ["", "00", &"0".repeat(33), &"g".repeat(32)] {
            assert!(text.parse::<Random16>().is_err(), "{text}");
        }
    }

    fn record(told: Option<u64>, delivered: u64, outcome: Outcome) -> UsageRecord {
        let machine = crate::key::MachinePrivateKey::from_bytes(&[1; 32]);
        let party = Party {
            node: NodeId::of(&machine.public()),
            node_key: crate::key::NodePrivateKey::from_bytes([1; 32]).public(),
            owner: UserId(1),
            owner_name: "anna".parse().unwrap(),
            is_tagged: false,
        };
        UsageRecord {
            version: USAGE_VERSION,
            network_id: NetworkId::from_bytes([5; 16]),
            rid: Random16::from_bytes([1; 16]),
            nonce: Random16::from_bytes([2; 16]),
            client: party.clone(),
            host: party,
            model: "tiny:latest".to_owned(),
            digest: None,
            endpoint: Endpoint::Chat,
            prompt_tokens: told,
            output_tokens: told,
            delivered_tokens: delivered,
            n_chunks: delivered,
            n_bytes: 10,
            start_ms: 1_000,
            first_byte_ms: Some(1_010),
            end_ms: 1_500,
            outcome,
        }
    }

    #[test]
    fn figures_are_checked_against_what_was_delivered() {
        for (told, delivered, outcome, want) in [
            (Some(100), 100, Outcome::Ok, true),
            (Some(141), 100, Outcome::Ok, true),
            (Some(142), 100, Outcome::Ok, false),
            (Some(16), 0, Outcome::Ok, true),
            (Some(17), 0, Outcome::Ok, false),
            (Some(17), 0, Outcome::ClientAbort, true),
            (None, 100, Outcome::Ok, true),
        ] {
            let record = record(told, delivered, outcome);
            assert_eq!(
                record.is_plausible(),
                want,
                "{told:?} {delivered} {outcome:?}"
            );
        }
    }

    #[test]
    fn what_the_backend_does_not_tell_is_reckoned_from_what_was_delivered() {
        assert_eq!(record(Some(3), 9, Outcome::Ok).tokens(), 6);
        assert_eq!(record(None, 9, Outcome::HostError).tokens(), 9);
        let mut sum = UsageSum::default();
        sum.count(&record(Some(50), 9, Outcome::Ok));
        sum.count(&record(None, 9, Outcome::HostError));
        let want = UsageSum {
            n_requests: 2,
            n_broken: 1,
            n_doubtful: 1,
            prompt_tokens: 50,
            output_tokens: 59,
            n_bytes: 20,
            work_ms: 1_000,
        };
        assert_eq!(sum, want);
    }

    #[test]
    fn a_record_is_written_as_ever() {
        let text = serde_json::to_string(&record(Some(3), 2, Outcome::Ok)).unwrap();
        insta::assert_snapshot!(text);
        let read: UsageRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(read, record(Some(3), 2, Outcome::Ok));
    }
}
