//! Scenarios: engines on a virtual network.

#[path = "../sim/ip.rs"]
mod ip;
#[path = "../sim/net.rs"]
mod net;
#[path = "../sim/world.rs"]
mod world;

mod hostile;
mod netmap;
mod path;
mod session;
mod traffic;
