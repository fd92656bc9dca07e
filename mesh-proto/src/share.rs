//! What hosts share: models, the hardware behind them, and with whom.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::{UserId, UserName, text_form, write_encoded};

/// All that one host shares. Sent whole on each change; an empty `models` means that it shares nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostOffers {
    /// The models, sorted by name, one entry a name. Shared by every copy of the map that they stand in.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Offer>))]
    pub models: Vec<Arc<Offer>>,
    /// The GPUs of the host; empty when it has none or hides them.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// Who may use them.
    #[serde(default)]
    pub audience: Audience,
    /// How many requests the host works on at once.
    #[serde(default)]
    pub n_slots: u32,
}

/// The most models that a host may offer; a longer list is cut by the host and refused by the coordinator.
pub const N_MODELS_MAX: usize = 1024;

/// With whom a host shares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Every node of the mesh.
    #[default]
    Everyone,
    /// The nodes of the host's own user alone.
    Mine,
    /// The host's own user and the named ones.
    Users(Vec<UserName>),
}

impl Audience {
    /// Whether a node of `guest` may use what a host of `owner` shares.
    #[must_use]
    pub fn admits(&self, owner: UserId, guest: UserId, guest_name: &UserName) -> bool {
        owner == guest
            || match self {
                Self::Everyone => true,
                Self::Mine => false,
                Self::Users(names) => names.contains(guest_name),
            }
    }
}

/// One model on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Offer {
    /// The exact name on the host, `llama3.2:1b`.
    pub model: String,
    /// SHA-256 of the manifest; equal digests are equal files. Absent where the backend knows none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Which API the backend speaks.
    pub api: BackendApi,
    /// Size of the files in bytes; 0 when unknown.
    #[serde(default)]
    pub size_bytes: u64,
    /// Such as `llama`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub family: String,
    /// Such as `1.2B`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parameter_size: String,
    /// Such as `Q4_K_M`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub quantization: String,
    /// Tokens; 0 when unknown.
    #[serde(default)]
    pub context_length: u64,
    /// Such as `completion`, `tools`, `embedding`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Whether the backend holds it in memory.
    #[serde(default)]
    pub is_loaded: bool,
    /// When the files changed, as the backend says it (RFC 3339); empty when unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub modified_at: String,
    /// What the backend speaks by itself; the host translates the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speaks: Vec<Protocol>,
    /// How fast the host was seen to answer with it; absent before it has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
}

impl Offer {
    /// An offer of which nothing is known but the name and who serves it.
    #[must_use]
    pub fn new(model: impl Into<String>, api: BackendApi) -> Self {
        Self {
            model: model.into(),
            digest: None,
            api,
            size_bytes: 0,
            family: String::new(),
            parameter_size: String::new(),
            quantization: String::new(),
            context_length: 0,
            capabilities: Vec::new(),
            is_loaded: false,
            modified_at: String::new(),
            speaks: Vec::new(),
            speed: None,
        }
    }

    /// The price class of the model, in thousandths: its parameters in billions, as far as the offer tells them.
    #[must_use]
    pub fn price_class_milli(&self) -> Option<u64> {
        price_class_milli(&self.parameter_size)
    }
}

/// How fast a host answers with one model, as it measured over its last answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Speed {
    /// Output tokens a second, of one answer.
    pub tokens_per_second: f64,
    /// Milliseconds from the beginning of the work to the first token.
    pub first_token_ms: u64,
}

/// The price class of a parameter count as Ollama writes it, such as `8.0B` or `8x7B`, in thousandths of a billion
/// parameters: 1,000 output tokens cost as many thousandths of a credit. Nothing for a text that is no such count.
#[must_use]
pub fn price_class_milli(parameter_size: &str) -> Option<u64> {
    let mut number = parameter_size.trim().chars();
    let millionths = match number.next_back()? {
        'K' | 'k' => 1e-3,
        'M' | 'm' => 1.0,
        'B' | 'b' => 1e3,
        'T' | 't' => 1e6,
        _ => return None,
    };
    let number = number.as_str();
    let (times, number) = match number.split_once(['x', 'X']) {
        Some((times, number)) => (times.trim().parse::<f64>().ok()?, number),
        None => (1.0, number),
    };
    let class = times * number.trim().parse::<f64>().ok()? * millionths;
    // A mesh of trillions is beyond what any host has.
    (class.is_finite() && (0.0..=1e9).contains(&class)).then_some(class.round() as u64)
}

/// A protocol that a backend may speak by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Ollama's own routes.
    Ollama,
    /// OpenAI's chat completions, completions and embeddings.
    OpenAi,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Messages,
    /// One that this program does not know.
    #[serde(other)]
    Other,
}

/// The API that a host's backend speaks by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum BackendApi {
    /// Ollama's own, and OpenAI's beside it.
    Ollama,
    /// OpenAI's alone.
    OpenAi,
}

/// Who may have a host pull models, and how much of its disk they may take; nobody when there are no users.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullPolicy {
    /// The users, by name; the owner too has to be named.
    pub users: Vec<UserName>,
    /// Bytes that all models together may take that were pulled so.
    pub budget_bytes: u64,
}

/// How a host stands at the moment, as its door tells those who may use it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostLive {
    /// How many requests it works on at once.
    pub n_slots: u32,
    /// Requests in work.
    pub n_active: u32,
    /// Requests waiting.
    pub n_queued: u32,
    /// Output tokens since its daemon started; of answers under way, their pieces, which mostly are a token each.
    pub n_output_tokens: u64,
    /// The models in memory.
    pub loaded: Vec<String>,
    /// Its GPUs, with their use.
    pub gpus: Vec<Gpu>,
}

/// SHA-256 of a model's manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct Digest([u8; 32]);

/// The text is no SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest must be 64 hexadecimal characters, with or without `sha256:` in front")]
pub struct DigestError;

impl Digest {
    /// Takes the raw digest.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The first 12 digits, as `ollama ls` prints and `<id12>.id.proxima` takes them.
    #[must_use]
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

impl std::str::FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(hex.as_bytes())
            .map_err(|_| DigestError)?;
        Ok(Self(bytes.try_into().map_err(|_| DigestError)?))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        write_encoded::<64>(f, &data_encoding::HEXLOWER, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

text_form!(Digest);

/// One GPU, as NVML tells. Everything but the name may be unsupported on a card.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gpu {
    /// Such as `NVIDIA GeForce RTX 4090`.
    pub name: String,
    /// NVML's unique id; kept on the host and not sent to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// Bytes of memory in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_used_bytes: Option<u64>,
    /// Percent of the last sample period in which a kernel ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization_percent: Option<u32>,
    /// Degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Milliwatts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_milliwatts: Option<u32>,
    /// Driver version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// CUDA version of the driver, `13.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// Whether the card is cut into instances (MIG).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_mig: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_class_is_read_from_the_parameters() {
        for (text, want) in [
            ("8.0B", Some(8_000)),
            ("135M", Some(135)),
            ("517K", Some(1)),
            ("8x7B", Some(56_000)),
            ("1T", Some(1_000_000)),
            ("", None),
            ("B", None),
            ("12", None),
            ("-3B", None),
            ("1é", None),
            ("9e99B", None),
        ] {
            assert_eq!(price_class_milli(text), want, "{text}");
        }
    }

    #[test]
    fn a_protocol_of_later_times_is_no_fault() {
        let offer = r#"{"model":"m","api":"open_ai","speaks":["open_ai","telepathy"]}"#;
        let offer: Offer = serde_json::from_str(offer).unwrap();
        assert_eq!(offer.speaks, [Protocol::OpenAi, Protocol::Other]);
        assert_eq!(offer.speed, None);
    }
}
