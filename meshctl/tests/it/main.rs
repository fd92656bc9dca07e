//! Runs the real `meshctl` against a stand-in for `meshd` and snapshots what people and programs get to see.

mod basics;
mod fake;
mod mesh;
mod models;
mod share;
mod up;
