//! Which calls a caller may make: an allow-list of methods and exact paths. Everything else is refused.
//!
//! Pure: decides on the request line alone, never touches a body or a socket.

use http::{Method, StatusCode};

use super::dialect::{Dialect, Refusal};
use super::{live, pull};

/// A call that is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// The liveness text that the `ollama` CLI asks for first.
    Root,
    Version,
    Tags,
    Ps,
    Show,
    /// Whether the vendor's cloud is on: never, here.
    Status,
    Recommendations,
    Models,
    Model(String),
    /// How the host stands; between Proxima's own programs.
    Live,
    /// A model that the host should pull; between Proxima's own programs.
    Pull,
    Infer(Infer),
}

/// A call that a model works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Infer {
    Chat,
    Generate,
    Embed,
    Embeddings,
    V1Chat,
    V1Completions,
    V1Embeddings,
    V1Responses,
    V1Messages,
}

impl Infer {
    /// How many there are.
    pub(crate) const N: usize = 9;

    #[cfg(test)]
    pub(crate) const ALL: [Self; Self::N] = [
        Self::Chat,
        Self::Generate,
        Self::Embed,
        Self::Embeddings,
        Self::V1Chat,
        Self::V1Completions,
        Self::V1Embeddings,
        Self::V1Responses,
        Self::V1Messages,
    ];

    /// Whether it begins with a prompt, which a model server may have computed before.
    pub(crate) const fn has_prompt(self) -> bool {
        match self {
            Self::Chat
            | Self::Generate
            | Self::V1Chat
            | Self::V1Completions
            | Self::V1Responses
            | Self::V1Messages => true,
            Self::Embed | Self::Embeddings | Self::V1Embeddings => false,
        }
    }

    /// The path, as it is sent on: never the caller's spelling.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/api/chat",
            Self::Generate => "/api/generate",
            Self::Embed => "/api/embed",
            Self::Embeddings => "/api/embeddings",
            Self::V1Chat => "/v1/chat/completions",
            Self::V1Completions => "/v1/completions",
            Self::V1Embeddings => "/v1/embeddings",
            Self::V1Responses => "/v1/responses",
            Self::V1Messages => "/v1/messages",
        }
    }

    pub(crate) const fn dialect(self) -> Dialect {
        match self {
            Self::Chat | Self::Generate | Self::Embed | Self::Embeddings => Dialect::Ollama,
            Self::V1Chat | Self::V1Completions | Self::V1Embeddings | Self::V1Responses => {
                Dialect::OpenAi
            }
            Self::V1Messages => Dialect::Anthropic,
        }
    }

    /// Whether the reply is a stream; `None` where the API has no such thing.
    pub(crate) const fn streams_by_default(self) -> Option<bool> {
        match self {
            Self::Chat | Self::Generate => Some(true),
            Self::V1Chat | Self::V1Completions | Self::V1Responses | Self::V1Messages => {
                Some(false)
            }
            Self::Embed | Self::Embeddings | Self::V1Embeddings => None,
        }
    }
}

const READ: &[Method] = &[Method::GET, Method::HEAD];
const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];

/// Calls that change or spend what belongs to the host's owner. They would be refused as unknown too; the owner's guest
/// gets a reason that helps.
const ADMIN: [&str; 8] = [
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/me",
    "/api/signout",
    "/v1/audio/transcriptions",
];
const ADMIN_PREFIXES: [&str; 3] = ["/api/blobs/", "/api/user/", "/api/experimental/"];

/// Decides on a request line. The path is compared as it was sent: a percent sign, a doubled slash or a dot segment makes
/// it another path, and another path is unknown.
///
/// # Errors
/// The refusal to answer with.
pub(crate) fn admit(method: &Method, path: &str) -> Result<Route, Refusal> {
    let (route, methods) = match path {
        "/" => (Route::Root, READ),
        "/api/version" => (Route::Version, READ),
        "/api/tags" => (Route::Tags, READ),
        "/api/ps" => (Route::Ps, GET),
        "/api/status" => (Route::Status, GET),
        "/api/experimental/model-recommendations" => (Route::Recommendations, GET),
        "/api/show" => (Route::Show, POST),
        "/api/chat" => (Route::Infer(Infer::Chat), POST),
        "/api/generate" => (Route::Infer(Infer::Generate), POST),
        "/api/embed" => (Route::Infer(Infer::Embed), POST),
        "/api/embeddings" => (Route::Infer(Infer::Embeddings), POST),
        "/v1/chat/completions" => (Route::Infer(Infer::V1Chat), POST),
        "/v1/completions" => (Route::Infer(Infer::V1Completions), POST),
        "/v1/embeddings" => (Route::Infer(Infer::V1Embeddings), POST),
        "/v1/responses" => (Route::Infer(Infer::V1Responses), POST),
        "/v1/messages" => (Route::Infer(Infer::V1Messages), POST),
        "/v1/models" => (Route::Models, GET),
        live::PATH => (Route::Live, POST),
        pull::PATH => (Route::Pull, POST),
        _ => match path.strip_prefix("/v1/models/") {
            Some(model) if is_plain_segment(model) => (Route::Model(model.to_owned()), GET),
            Some(_) | None => return Err(unknown(path)),
        },
    };
    if methods.contains(method) {
        return Ok(route);
    }
    Err(Refusal {
        allow: Some(match methods {
            READ => "GET, HEAD",
            GET => "GET",
            _ => "POST",
        }),
        ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed")
    })
}

fn is_plain_segment(segment: &str) -> bool {
    !segment.is_empty()
        && !segment.starts_with('.')
        && segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:-@+".contains(&b))
}

fn unknown(path: &str) -> Refusal {
    let is_admin = ADMIN.contains(&path) || ADMIN_PREFIXES.iter().any(|p| path.starts_with(p));
    if is_admin {
        Refusal::forbidden(
            "this mesh shares inference only: models cannot be pulled, pushed, made, copied or deleted through it",
        )
    } else {
        Refusal::new(StatusCode::NOT_FOUND, "404 page not found")
    }
}

/// Whether a name is one of those that the vendor's cloud would answer, on the account of the host's owner.
pub(crate) fn is_cloud_name(model: &str) -> bool {
    let lower = model.trim().to_ascii_lowercase();
    lower.ends_with(":cloud") || lower.ends_with("-cloud")
}

#[cfg(test)]
mod tests;
