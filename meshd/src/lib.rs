//! The node daemon: joins the mesh, moves packets, answers names, and opens the door to shared models.
#![forbid(unsafe_code)]

pub mod catalog;
pub mod choice;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod dial;
pub mod dns;
pub mod gateway;
pub mod inventory;
pub mod local;
pub mod meter;
pub mod metrics;
pub mod netstack;
pub mod os;
pub mod proxy;
pub mod relay;
pub mod state_dir;
mod upnp;
pub mod view;
