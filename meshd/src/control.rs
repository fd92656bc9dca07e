//! The coordinator client: joins, keeps the map stream open, and tells what changes here.

pub(crate) mod backoff;
#[cfg(test)]
mod fixture;
mod link;
mod login;
mod map_stream;
mod tls;
mod updates;

use std::sync::Arc;

use mesh_proto::control::{ErrorBody, code};
use mesh_proto::id::NodeId;
use mesh_proto::key::{CoordinatorKey, MachinePrivateKey};
use mesh_proto::netmap::{MapFrame, Revision};
use tokio::sync::mpsc;

pub use link::Link;
pub use login::{Join, Joined, join, logout, rotate};
pub use map_stream::run as run_map_stream;
pub use updates::{Report, run as run_updates};

/// Why the coordinator did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// No coordinator answered.
    #[error("cannot reach the coordinator at {url}: {reason}")]
    Unreachable {
        /// The URL that was tried last.
        url: String,
        /// What happened.
        reason: String,
    },
    /// Something answered that is not this mesh's coordinator.
    #[error("{url} is not the coordinator of this mesh: {reason}")]
    Impostor {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The coordinator refused.
    #[error("{message}")]
    Refused {
        /// Stable, one of [`mesh_proto::control::code`].
        code: String,
        /// For people.
        message: String,
    },
    /// The answer makes no sense.
    #[error(
        "the coordinator at {url} gave an answer that this version does not understand: {reason}"
    )]
    BadReply {
        /// The URL.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ControlError {
    fn refused(body: &[u8], status: http::StatusCode) -> Self {
        let ErrorBody { error } = ErrorBody::from_answer(body, status);
        Self::Refused {
            code: error.code,
            message: error.message,
        }
    }

    /// Whether trying again cannot help until a person acts.
    #[must_use]
    pub fn needs_person(&self) -> bool {
        match self {
            Self::Refused { code, .. } => {
                [code::NOT_REGISTERED, code::NODE_EXPIRED].contains(&code.as_str())
            }
            Self::Unreachable { .. } | Self::Impostor { .. } | Self::BadReply { .. } => false,
        }
    }

    /// Whether the coordinator said nothing of this node: it was not reached, or cannot tell for the moment.
    #[must_use]
    pub fn is_no_word(&self) -> bool {
        match self {
            Self::Refused { code, .. } => {
                [code::UNAVAILABLE, code::RATE_LIMITED, code::INTERNAL].contains(&code.as_str())
            }
            Self::Unreachable { .. } | Self::Impostor { .. } | Self::BadReply { .. } => true,
        }
    }
}

/// What it takes to speak to the coordinators of one mesh.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// This node.
    pub node_id: NodeId,
    /// The key that signs its requests.
    pub machine_key: MachinePrivateKey,
    /// The key that signs its maps.
    pub coordinator_key: CoordinatorKey,
    /// The coordinators, best first.
    pub urls: Vec<String>,
}

/// What the client tells the daemon.
#[derive(Debug)]
pub enum ControlEvent {
    /// The stream is up.
    Connected {
        /// With which coordinator.
        url: String,
    },
    /// A verified frame, and the line that it came on.
    Frame {
        /// What was said.
        frame: Box<MapFrame>,
        /// As it was signed, for keeping.
        line: String,
    },
    /// The stream ended, or could not be opened.
    Disconnected {
        /// Why.
        error: ControlError,
    },
}

/// What the stream resumes from; written by the daemon as it applies frames.
pub type RevisionReceiver = tokio::sync::watch::Receiver<Option<Revision>>;

/// Where events go. Bounded: the stream waits for the daemon.
pub type EventSender = mpsc::Sender<ControlEvent>;

/// The TLS set-up for a coordinator with a pinned key.
///
/// # Errors
/// A text for people when the system's certificates cannot be read.
pub fn tls_config(pin: [u8; 32]) -> Result<Arc<rustls::ClientConfig>, String> {
    tls::config(pin)
}
