//! Runs the real `meshctl` against a stand-in for `meshd` and snapshots what people and programs get to see.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

mod basics;
mod fake;
mod mesh;
mod models;
mod packaging;
mod share;
mod up;
mod usage;
