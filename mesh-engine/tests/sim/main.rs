//! The simulator: engines behind NATs, with relays, outages and weather, on one clock.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may stop where it finds nonsense, and tells how often luck helped"
)]

mod faults;
#[expect(dead_code, reason = "the scenarios of tests/it use the rest")]
mod ip;
mod lab;
mod matrix;
mod nat;
mod random;
mod scenario;
mod underlay;
