//! The lab's scenarios: real programs and model servers on hosts made of namespaces. Needs root; see `Makefile`.

mod catalog;
mod chat;
mod choice;
mod clients;
mod clock;
mod coordinator;
mod daemon;
mod disk;
mod door;
mod faults;
mod garbage;
mod interop;
mod join;
mod lifecycle;
mod mtu;
mod names;
mod network;
mod paths;
mod relay;
mod stage;
mod userspace;

use anyhow::{Result, ensure};
use e2e::mesh::{Node, join_all as mesh};
use e2e::probe::dig;

/// A name must resolve, by the host's own resolver, to exactly this node.
fn ensure_resolves(from: &Node<'_>, name: &str, to: &Node<'_>) -> Result<()> {
    let answer = dig(from.host, None, name, "A", false)?;
    let wanted = to.ipv4()?.to_string();
    ensure!(
        answer.data == [wanted.clone()],
        "{name} is {answer:?}, expected {wanted}"
    );
    Ok(())
}

/// A name must have no address.
fn ensure_gone(from: &Node<'_>, name: &str) -> Result<()> {
    let answer = dig(from.host, None, name, "A", false)?;
    ensure!(answer.data.is_empty(), "{name} is still {answer:?}");
    Ok(())
}
