//! The targets, one a file.

pub(crate) mod admit;
pub(crate) mod burst;
pub(crate) mod datagram;
pub(crate) mod engine;
pub(crate) mod fragment;
pub(crate) mod merge;
pub(crate) mod offload;
pub(crate) mod outbound;
pub(crate) mod rubbish;
pub(crate) mod split;
