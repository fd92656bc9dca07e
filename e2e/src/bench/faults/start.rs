//! From nothing, or from what was left, to the first answer.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Round, ms};
use crate::interop::wait_both_ways;
use crate::mesh::{Coordinator, Node, join_all};
use crate::net::Lab;
use crate::probe::{first_answer, resolve};
use crate::tool;
use crate::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn join() -> Result<Round> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (coordinator, nodes) = join_all(&lab, &["gamma"])?;
    let target = nodes.first().context("a host was named")?.ipv4()?;
    let key = coordinator.key(&[])?;
    let beta = Node::start(lab.host("beta")?)?;
    let start = Instant::now();
    beta.ctl_ok(&["up", "--auth-key", &key])?;
    first_answer(beta.host, target, LIMIT)?;
    Ok(vec![ms(start.elapsed())])
}

pub(super) fn without_udp() -> Result<Round> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    lab.block_udp()?;
    let (_coordinator, nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_slice() else {
        unreachable!("two hosts were named")
    };
    Ok(vec![ms(first_answer(beta.host, gamma.ipv4()?, LIMIT)?)])
}

pub(super) fn behind_proxy() -> Result<Round> {
    let lab = Lab::new(&["control", "proxy", "beta", "gamma"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let (proxy, inside) = (lab.host("proxy")?, lab.host("beta")?);
    lab.confine(inside, proxy)?;
    let address = format!("{}:3128", proxy.ipv4);
    let mut command = proxy.command(tool::program("connect-proxy")?);
    command.arg(&address);
    let _proxy = proxy.spawn("connect-proxy", command)?;
    let beta = Node::start_behind(inside, Some(format!("http://{address}")))?;
    wait_until("it joins through the proxy", LIMIT, || {
        beta.ctl_ok(&["up", "--auth-key", &key]).map(drop)
    })?;
    let gamma = Node::join(lab.host("gamma")?, &key)?;
    Ok(vec![ms(first_answer(beta.host, gamma.ipv4()?, LIMIT)?)])
}

pub(super) fn without_coordinator() -> Result<Round> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (mut coordinator, mut nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_mut_slice() else {
        unreachable!("two hosts were named")
    };
    let (own, target) = (beta.ipv4()?, gamma.ipv4()?);
    wait_both_ways((beta.host, own), (gamma.host, target))?;
    let resolves = |node: &Node<'_>, name: &str, ip: Ipv4Addr| {
        let found = resolve(node.host, name)?;
        ensure!(found == [ip], "{name} is {found:?}");
        Ok(())
    };
    resolves(beta, "gamma.node.proxima", target)?;
    coordinator.kill();
    beta.kill();
    gamma.kill();
    let start = Instant::now();
    beta.start_again()?;
    gamma.start_again()?;
    first_answer(beta.host, target, LIMIT)?;
    first_answer(gamma.host, own, LIMIT)?;
    wait_until("names", LIMIT, || {
        resolves(beta, "gamma.node.proxima", target)?;
        resolves(gamma, "beta.node.proxima", own)
    })?;
    Ok(vec![ms(start.elapsed())])
}

pub(super) fn killed() -> Result<Round> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (_coordinator, mut nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_mut_slice() else {
        unreachable!("two hosts were named")
    };
    let (own, target) = (beta.ipv4()?, gamma.ipv4()?);
    wait_both_ways((beta.host, own), (gamma.host, target))?;
    // The peer still believes in the session that died; the slower way counts.
    let mut slowest = Duration::ZERO;
    for (from, to) in [(beta.host, target), (gamma.host, own)] {
        beta.kill();
        let start = Instant::now();
        beta.start_again()?;
        first_answer(from, to, LIMIT)?;
        slowest = slowest.max(start.elapsed());
    }
    Ok(vec![ms(slowest)])
}
