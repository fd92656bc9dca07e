//! The lab's scenarios: real programs and model servers on hosts made of namespaces. Needs root; see `Makefile`.

mod catalog;
mod chat;
mod coordinator;
mod daemon;
mod disk;
mod door;
mod garbage;
mod interop;
mod join;
mod lifecycle;
mod names;
mod network;
mod paths;
mod relay;
mod stage;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{Coordinator, Node};
use e2e::net::Lab;
use e2e::probe::dig;

/// Joins nodes on the named hosts to a coordinator on the host `control`.
fn mesh<'lab>(lab: &'lab Lab, hosts: &[&str]) -> Result<(Coordinator<'lab>, Vec<Node<'lab>>)> {
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let nodes = hosts
        .iter()
        .map(|name| Node::join(lab.host(name)?, &key).with_context(|| format!("joining {name}")))
        .collect::<Result<Vec<_>>>()?;
    Ok((coordinator, nodes))
}

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
