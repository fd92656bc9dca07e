//! What lies between this node and the internet.

pub(crate) mod portmap;
pub(crate) mod stun;
pub(crate) mod wire;
