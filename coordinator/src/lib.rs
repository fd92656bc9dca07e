//! The control plane of Proxima Network: who is in a mesh, who may see whom, and telling every node.
//!
//! Reading order: [`serve`] puts the parts together; `store` is what is kept, `state` the same in memory with presence;
//! `coordinator` is the one writer over both; `map` builds and streams what each node is told; `api` is HTTP;
//! `relay` carries sealed packets between nodes.
#![forbid(unsafe_code)]

mod api;
mod auth;
mod clock;
pub mod config;
mod coordinator;
mod ipam;
mod local_addr;
mod map;
mod metrics;
mod policy;
mod read_ahead;
mod relay;
pub mod serve;
mod server;
mod state;
mod state_dir;
mod store;
mod stun;
mod tls;

pub use api::openapi;
pub use relay::alone::{RELAY_STATE_DIR, RelayServer, RelaySettings};
pub use state_dir::socket_path;
pub use tls::pin::client_config;
