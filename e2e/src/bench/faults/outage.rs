//! What breaks while traffic flows.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Round, ms};
use crate::interop::wait_both_ways;
use crate::mesh::{Coordinator, Node, join_all};
use crate::net::nat::Nat;
use crate::net::{Host, Lab};
use crate::probe::first_answer;
use crate::process::Process;
use crate::stream::Stream;
use crate::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(20);
/// How long a host has no link when it moves.
const AWAY: Duration = Duration::from_secs(3);
const FLOWS_FOR: Duration = Duration::from_secs(5);
const N_PINGS: u32 = 1_000;

/// Two nodes behind NATs of a kind.
fn behind<'lab>(
    lab: &'lab Lab,
    nat: Nat,
    names: [&str; 2],
) -> Result<(Coordinator<'lab>, Vec<Node<'lab>>)> {
    for name in names {
        lab.put_behind(lab.host(name)?, nat)?;
    }
    join_all(lab, &names)
}

pub(super) fn dead_path() -> Result<Round> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (_coordinator, nodes) = behind(&lab, Nat::PortRestricted, ["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_slice() else {
        unreachable!("two hosts were named")
    };
    let to = gamma.ipv4()?;
    let mut stream = Stream::start(beta.host, beta.ipv4()?, gamma.host)?;
    beta.wait_direct(to, LIMIT)?;
    let stall = stream.longest_stall(FLOWS_FOR, || lab.block_udp())?;
    lab.pass_udp()?;
    let healed = beta.wait_direct(to, LIMIT)?;
    Ok(vec![ms(stall), ms(healed)])
}

pub(super) fn relay() -> Result<Round> {
    let lab = Lab::new(&["control", "beta", "gamma", "delta", "epsilon"])?;
    for name in ["beta", "gamma"] {
        lab.put_behind(lab.host(name)?, Nat::Symmetric)?;
    }
    let (mut coordinator, nodes) = join_all(&lab, &["beta", "gamma", "delta", "epsilon"])?;
    let [beta, gamma, delta, epsilon] = nodes.as_slice() else {
        unreachable!("four hosts were named")
    };
    let target = gamma.ipv4()?;
    wait_until("the relay carries", LIMIT, || {
        first_answer(beta.host, target, LIMIT).map(drop)
    })?;
    wait_both_ways((delta.host, delta.ipv4()?), (epsilon.host, epsilon.ipv4()?))?;
    delta.wait_direct(epsilon.ipv4()?, LIMIT)?;
    let mut pings = ping_on(delta.host, &epsilon.ipv4()?.to_string())?;
    coordinator.kill();
    coordinator.start_again()?;
    let start = Instant::now();
    first_answer(beta.host, target, LIMIT)?;
    let again = start.elapsed();
    let n_lost = wait_until("the pings end", LIMIT * 2, || {
        ensure!(pings.has_ended()?, "they go on");
        let log = pings.log();
        let words = log
            .split(", ")
            .find_map(|part| part.strip_suffix(" received"));
        let n_received: u32 = words.context(log.clone())?.parse()?;
        Ok(N_PINGS.saturating_sub(n_received))
    })?;
    Ok(vec![ms(again), f64::from(n_lost)])
}

/// A ping each 10 ms.
fn ping_on(from: &Host, target: &str) -> Result<Process> {
    let mut command = from.command("ping");
    command.args(["-n", "-q", "-i", "0.01", "-c", &N_PINGS.to_string(), target]);
    from.spawn("pings", command)
}

pub(super) fn home_relay() -> Result<Round> {
    let lab = Lab::new(&["control", "relay", "beta", "gamma"])?;
    lab.block_udp()?;
    let (mut coordinator, nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_slice() else {
        unreachable!("two hosts were named")
    };
    let host = lab.host("relay")?;
    let _relay = coordinator.start_relay(host, "tokyo", &nodes, LIMIT)?;
    let target = gamma.ipv4()?;
    first_answer(beta.host, target, LIMIT)?;
    // Its own relay goes with it, which both have been at from the start.
    coordinator.kill();
    Ok(vec![ms(first_answer(beta.host, target, LIMIT)?)])
}

pub(super) fn receiver_roams() -> Result<Round> {
    roam(["beta", "gamma"], "gamma")
}

pub(super) fn sender_roams() -> Result<Round> {
    roam(["beta", "gamma"], "beta")
}

/// One end of a stream loses its link, and has another one with another address 3 s later.
fn roam(names: [&str; 2], mover: &str) -> Result<Round> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (_coordinator, nodes) = join_all(&lab, &names)?;
    let [beta, gamma] = nodes.as_slice() else {
        unreachable!("two hosts were named")
    };
    let mover = lab.host(mover)?;
    let mut stream = Stream::start(beta.host, beta.ipv4()?, gamma.host)?;
    beta.wait_direct(gamma.ipv4()?, LIMIT)?;
    mover.sh("ip link set eth0 down")?;
    // The outage itself is what is measured here, not a wait for something.
    std::thread::sleep(AWAY);
    let took = stream.next_move(FLOWS_FOR, || {
        let gateway = lab.add_link(mover)?;
        mover
            .sh(&format!("ip route replace default via {gateway} dev eth1"))
            .map(drop)
    })?;
    Ok(vec![ms(took)])
}
