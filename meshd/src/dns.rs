//! The mesh's names: what they are answered with, the server that answers, and where foreign names go.

pub mod message;
pub mod query;
pub mod reverse;
pub mod server;
pub mod upstream;
pub mod zone;

/// The suffix that is always served beside the mesh's own: `.internal` is reserved for private use.
pub const ALIAS: &str = "proxima.internal";

#[cfg(test)]
pub(crate) mod fixture;
