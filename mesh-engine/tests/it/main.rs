//! Scenarios: engines on a virtual network.
#![expect(
    clippy::unwrap_used,
    reason = "a test may stop where it finds nonsense"
)]

#[path = "../sim/ip.rs"]
mod ip;
#[path = "../sim/net.rs"]
mod net;
#[path = "../sim/wire.rs"]
mod wire;
#[path = "../sim/world.rs"]
mod world;

mod guard;
mod hostile;
mod netmap;
mod path;
mod session;
mod traffic;
