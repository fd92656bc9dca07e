//! The words on the wire of Proxima Network: everything that two of its programs must agree on.
//!
//! No I/O, no async, no clock and no randomness of its own: what needs a time takes Unix milliseconds, what needs
//! random bytes takes them from the caller.
//!
//! Reading order: [`id`] and [`key`] name things, [`auth_key`] is what a person pastes, [`tls`] what it pins, [`request`] and
//! [`control`] are what a node tells its coordinator, [`netmap`] with [`filter`] and [`share`] is what it hears back, [`door`] is
//! what a host grants to guests, [`usage`] what they took, [`name`] turns
//! models into DNS names, [`relay`] names what carries packets when no direct path does, [`stun`] and [`disco`] find
//! paths, [`admin`] is the operator's API and [`local`] the
//! socket between `meshctl` and `meshd`.
#![forbid(unsafe_code)]

pub mod admin;
pub mod auth_key;
pub mod control;
pub mod disco;
pub mod door;
pub mod filter;
pub mod id;
pub mod key;
pub mod local;
pub mod name;
pub mod netmap;
pub mod relay;
pub mod request;
pub mod share;
mod signed_line;
pub mod stun;
pub mod tls;
pub mod usage;

/// The version of the control protocol that this build speaks.
///
/// It rises when a peer that does not know the change would misunderstand; new optional fields do not raise it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The UDP and TCP port that model clients use by convention (Ollama's).
pub const MODEL_PORT: u16 = 11434;

/// The port of plain web clients, so that `http://llama3.proxima/` works without a port.
pub const WEB_PORT: u16 = 80;
