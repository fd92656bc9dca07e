//! What the control socket tells of models: the catalogue, hosts at work, pulls and wishes.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeName, UserName};
use crate::share::{BackendApi, Digest, Gpu, HostLive, Protocol, Speed};

/// The catalogue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Models {
    /// One entry a distinct model, sorted by name.
    pub models: Vec<ModelStatus>,
}

/// A model and who serves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// Its normalised name.
    pub model: String,
    /// Its full DNS name; absent when the name is ambiguous or reserved.
    #[serde(default)]
    pub dns_name: Option<String>,
    /// Its digest.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// Such as `1.2B`.
    pub parameter_size: String,
    /// Such as `Q4_K_M`.
    pub quantization: String,
    /// Tokens.
    pub context_length: u64,
    /// Such as `completion`.
    pub capabilities: Vec<String>,
    /// Its price class, thousandths: 1,000 output tokens cost as many thousandths of a credit. Absent when its parameters are
    /// not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_class_milli: Option<u64>,
    /// Who serves it.
    pub hosts: Vec<ModelHost>,
}

/// A host of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelHost {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Whether it is this node.
    pub is_self: bool,
    /// Whether requests may be sent to it.
    pub is_healthy: bool,
    /// Whether the model is in memory there.
    pub is_loaded: bool,
    /// What its backend speaks.
    pub api: BackendApi,
    /// Which protocols its backend speaks by itself; the host translates the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speaks: Vec<Protocol>,
    /// How many requests it works on at once; 0 when it does not tell.
    #[serde(default)]
    pub n_slots: u32,
    /// How fast it was seen to answer with the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<Speed>,
    /// Its GPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
}

/// How all hosts stand that this node may use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Top {
    /// The hosts, sorted by name.
    pub hosts: Vec<TopHost>,
}

/// How one host stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopHost {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its owner.
    pub user: UserName,
    /// Whether it is this node.
    pub is_self: bool,
    /// Whether it answered.
    pub is_online: bool,
    /// How many models it shares with this node.
    pub n_models: usize,
    /// What it told; absent when it did not answer.
    #[serde(default)]
    pub live: Option<HostLive>,
}

/// Changes who may have this machine pull models. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullChange {
    /// The users; nobody when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<UserName>>,
    /// Bytes that all models together may take that were pulled so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
}

/// Asks a host to pull a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// The model, as Ollama's registry has it.
    pub model: String,
    /// The host's name.
    pub host: String,
}

/// How a pull stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullStatus {
    /// The model, in one spelling.
    pub model: String,
    /// How far it is.
    pub state: PullState,
    /// Bytes that came.
    #[serde(default)]
    pub completed_bytes: u64,
    /// Bytes of all, as far as is known.
    #[serde(default)]
    pub total_bytes: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl PullStatus {
    /// A pull of which nothing is known but its state.
    #[must_use]
    pub fn of(model: &str, state: PullState) -> Self {
        Self {
            model: model.to_owned(),
            state,
            completed_bytes: 0,
            total_bytes: 0,
            message: None,
        }
    }
}

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullState {
    /// It is under way.
    Pulling,
    /// The host has the model.
    Done,
    /// It failed; asking again tries again.
    Failed,
}

/// What the mesh would like to have shared, most wanted first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggestions {
    /// The models.
    pub models: Vec<Suggestion>,
}

/// A model that users of the mesh want.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suggestion {
    /// Its normalised name.
    pub model: String,
    /// How many users want it.
    pub n_users: u32,
    /// When one of them asked last, Unix milliseconds.
    pub asked_at_ms: u64,
    /// How many hosts share it with this node by now.
    pub n_hosts: usize,
    /// Whether a model server of this machine has it.
    pub is_here: bool,
    /// Whether this machine shares it.
    pub is_shared: bool,
}
