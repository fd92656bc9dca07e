//! Part of the daemon.
/// x
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct ShareConfig {}
