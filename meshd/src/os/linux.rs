//! Linux, one file a mechanism.

pub mod changes;
pub mod firewall;
pub mod links;
pub mod names;
pub mod order;
pub mod stall;

mod command;
mod journal;
mod network_manager;
mod resolv_conf;
mod resolvconf;
mod resolved;

#[cfg(test)]
mod namespace;
