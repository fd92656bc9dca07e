//! The coordinator as nodes and operators meet it: a real server on loopback, real TLS, signed requests.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on stops, also in what several tests share"
)]

mod api;
mod client;
mod command;
mod config;
mod join;
mod map;
mod presence;
mod relay;
mod relay_alone;
mod wants;
