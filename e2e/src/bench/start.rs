//! From the start of meshd to the first answer of a peer, with the map that it kept and no coordinator in reach.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome, median};
use crate::interop::wait_both_ways;
use crate::mesh::{Coordinator, Node};
use crate::net::{Host, Lab};
use crate::tool;
use crate::wait::wait_until;

/// Starts of each round.
const N_STARTS: usize = 5;
const LIMIT_SECONDS: &str = "20";
const READY: Duration = Duration::from_secs(25);

/// Measures.
///
/// # Errors
/// When a node does not come up.
pub fn run(n_rounds: u32) -> Result<Outcome> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let mut coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let mut beta = Node::join(lab.host("beta")?, &key)?;
    let gamma = Node::join(lab.host("gamma")?, &key)?;
    let target = gamma.ipv4()?;
    wait_both_ways((beta.host, beta.ipv4()?), (gamma.host, target))?;
    coordinator.kill();
    beta.process()?.terminate(READY)?;

    let mut rounds = Vec::new();
    let mut text =
        "| round | first ping after so many ms | median |\n| --- | --- | --- |\n".to_owned();
    for number in 1..=n_rounds {
        let mut times = Vec::new();
        for start in 0..N_STARTS {
            let name = format!("start-{number}-{start}");
            times.push(first_ping(&beta, &name, &target.to_string())?);
        }
        let words: Vec<_> = times.iter().map(|ms| format!("{ms:.0}")).collect();
        text += &format!(
            "| {number} | {} | {:.0} |\n",
            words.join(" "),
            median(&times)
        );
        rounds.push(Some(median(&times)));
    }
    let what = "first ping after a start with a kept map, no coordinator";
    Ok(Outcome {
        text,
        bars: vec![Bar::at_most(50.0, "ms", what, rounds)],
    })
}

/// Starts meshd as it was left, and ends it once the answer is there.
fn first_ping(node: &Node<'_>, name: &str, target: &str) -> Result<f64> {
    let host: &Host = node.host;
    let mut command = host.command(tool::python()?);
    command
        .arg(tool::root().join("e2e/bench/probe.py"))
        .args(["first-ping", target, LIMIT_SECONDS, "--"])
        .arg(tool::program("meshd")?)
        .args(node.daemon_args());
    let mut probe = host.spawn(name, command)?;
    let found = wait_until("the first ping", READY, || {
        let log = probe.log();
        let line = log.lines().find(|line| line.starts_with("{\"ms\""));
        let found: Value = serde_json::from_str(line.context("no answer yet")?)?;
        Ok(found)
    });
    let log = probe.log();
    probe.terminate(READY)?;
    let found = found.context(log)?;
    let ms = found["ms"].as_f64();
    ensure!(ms.is_some(), "no answer to {} pings", found["asked"]);
    ms.context("no time")
}
