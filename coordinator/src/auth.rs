//! Who asks: auth keys for machines, proofs for nodes, API keys for operators, and a limit on guessing.

pub(crate) mod limit;
pub(crate) mod nonce;
pub(crate) mod secret;
