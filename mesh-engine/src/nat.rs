//! What lies between this node and the internet.

pub(crate) mod stun;
