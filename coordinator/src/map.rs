//! Maps: what each node is told, and the streams that tell it.

pub(crate) mod build;
pub(crate) mod hub;
pub(crate) mod stream;
