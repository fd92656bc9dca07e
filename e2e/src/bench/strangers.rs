//! Strangers at the UDP port: garbage, and handshakes that are right as far as can be seen without a look at the key.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome, ms};
use crate::interop::wait_both_ways;
use crate::mesh::{Node, join_all};
use crate::net::{Host, Lab};
use crate::probe::first_answer;
use crate::process::Process;
use crate::tool;
use crate::wait::wait_until;

/// Where a node listens when nothing else does there.
const PORT: u16 = 41_820;
/// What the honest ones send, datagrams a second.
const RATE: u32 = 5_000;
const LIMIT: Duration = Duration::from_secs(20);

/// How much the strangers send.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Datagrams of garbage.
    pub n_garbage: u64,
    /// How long a flood of handshakes lasts, seconds.
    pub flood: u32,
}

/// Initiations a second.
const FLOOD_RATE: u32 = 50_000;

/// Measures.
///
/// # Errors
/// When a node does not come up, or ends.
pub fn run(effort: Effort) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    garbage(effort.n_garbage, &mut outcome)?;
    for n_sources in [1, 500] {
        flood(effort.flood, n_sources, &mut outcome)?;
    }
    Ok(outcome)
}

/// How many of the datagrams that are sent for so long arrive, of a hundred.
fn delivered(from: &Host, to: (&Host, Ipv4Addr), own: Ipv4Addr, seconds: u32) -> Result<f64> {
    let mut ends = stream(from, to, own, seconds)?;
    delivered_by(&mut ends, seconds)
}

fn stream(
    from: &Host,
    (to, target): (&Host, Ipv4Addr),
    own: Ipv4Addr,
    seconds: u32,
) -> Result<[Process; 2]> {
    let start = |host: &Host, peer: Ipv4Addr| {
        let mut command = host.command(tool::program("numbered")?);
        command.args([
            &peer.to_string(),
            "9000",
            &RATE.to_string(),
            &seconds.to_string(),
        ]);
        // Of one log the last line is the end's.
        host.spawn(&format!("numbered-{seconds}"), command)
    };
    Ok([start(from, target)?, start(to, own)?])
}

fn delivered_by(ends: &mut [Process; 2], seconds: u32) -> Result<f64> {
    let limit = Duration::from_secs(u64::from(seconds) * 2 + 30);
    let [first, second] = ends;
    let last = |end: &mut Process| -> Result<Value> {
        ensure!(end.has_ended()?, "it goes on");
        let log = end.log();
        let line = log.lines().next_back().context("no report")?;
        Ok(serde_json::from_str(line)?)
    };
    let first = wait_until("one end is done", limit, || last(first))?;
    let second = wait_until("the other end is done", limit, || last(second))?;
    let count = |value: &Value, key: &str| value[key].as_f64().context("no count");
    let sent = count(&first, "sent")? + count(&second, "sent")?;
    let received = count(&first, "received")? + count(&second, "received")?;
    Ok(received / sent * 100.0)
}

fn garbage(n_datagrams: u64, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab::new(&["control", "beta", "gamma", "stranger"])?;
    let (_coordinator, mut nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_mut_slice() else {
        unreachable!("two hosts were named")
    };
    let (own, other) = (beta.ipv4()?, gamma.ipv4()?);
    wait_both_ways((beta.host, own), (gamma.host, other))?;
    let stranger = lab.host("stranger")?;
    let victim = SocketAddr::new(beta.host.ipv4.into(), PORT);
    // What the first thousands of datagrams make it allocate, it keeps; and the pages of its program that it gave back
    // after the start come in again with the first minute's work, garbage or none.
    send_garbage(stranger, victim, 500_000, 1)?;
    let undisturbed = delivered(gamma.host, (beta.host, own), other, 60)?;
    let before_mib = beta.process()?.rss_mib()?;
    let mut command = stranger.command(tool::program("garbage")?);
    command.args([&victim.to_string(), &n_datagrams.to_string(), "7"]);
    let mut sender = stranger.spawn("garbage", command)?;
    let disturbed = delivered(gamma.host, (beta.host, own), other, 20)?;
    let is_shorter = sender.has_ended()?;
    wait_until("all garbage is sent", Duration::from_secs(900), || {
        ensure!(sender.has_ended()?, "it goes on");
        Ok(())
    })?;
    let log = sender.log();
    let report: Value = serde_json::from_str(log.lines().next_back().context("no report")?)?;
    let grown_mib = (beta.process()?.rss_mib()? - before_mib).max(0.0);
    let n_answered = report["n_bytes_answered"].as_f64();
    outcome.text += &format!(
        "{} datagrams of garbage left the stranger; {RATE} honest ones a second each way meanwhile{}.\n",
        report["n_sent"],
        if is_shorter {
            ", and somewhat longer"
        } else {
            ""
        }
    );
    let what = |what: &str| format!("UDP garbage, {n_datagrams} datagrams: {what}");
    outcome.bars.extend([
        Bar::at_most(0.0, "bytes", &what("answered"), vec![n_answered]),
        Bar::at_most(1.0, "MiB", &what("memory grows by"), vec![Some(grown_mib)]),
        Bar::at_least(
            90.0,
            "% of undisturbed",
            &what("honest traffic"),
            vec![Some(disturbed / undisturbed * 100.0)],
        ),
    ]);
    Ok(())
}

fn send_garbage(from: &Host, to: SocketAddr, n: u64, seed: u64) -> Result<()> {
    let program = tool::program("garbage")?;
    let [to, n, seed] = [to.to_string(), n.to_string(), seed.to_string()];
    crate::process::ensure_success("garbage", &from.run(program, &[&to, &n, &seed])?)
}

fn flood(seconds: u32, n_sources: u32, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab::new(&["control", "beta", "gamma", "delta", "stranger"])?;
    let (coordinator, nodes) = join_all(&lab, &["beta", "gamma", "delta"])?;
    let [beta, gamma, delta] = nodes.as_slice() else {
        unreachable!("three hosts were named")
    };
    let (own, other) = (beta.ipv4()?, gamma.ipv4()?);
    wait_both_ways((beta.host, own), (gamma.host, other))?;
    let undisturbed = delivered(gamma.host, (beta.host, own), other, 5)?;
    let known = coordinator.nodes()?;
    let entry = known.iter().find(|node| node.ipv4 == own);
    let key = entry.context("not known")?.node_key.to_string();
    let mut flood = start_flood(&lab, beta, &key, seconds, n_sources)?;
    let mut ends = stream(gamma.host, (beta.host, own), other, seconds - 2)?;
    // It has never talked to the one that is flooded.
    let took = first_answer(delta.host, own, LIMIT)?;
    let disturbed = delivered_by(&mut ends, seconds)?;
    let log = wait_until("the flood ends", LIMIT * 2, || {
        ensure!(flood.has_ended()?, "it goes on");
        Ok(flood.log())
    })?;
    let report: Value = serde_json::from_str(log.lines().next_back().context("no report")?)?;
    outcome.text += &format!(
        "{} initiations in {:.0} s from {n_sources} sources, {} answers.\n",
        report["n_sent"],
        report["seconds"].as_f64().unwrap_or_default(),
        report["n_answers"]
    );
    let what =
        |what: &str| format!("{FLOOD_RATE} initiations a second, {n_sources} sources: {what}");
    outcome.bars.extend([
        Bar::at_least(
            80.0,
            "% of undisturbed",
            &what("honest traffic"),
            vec![Some(disturbed / undisturbed * 100.0)],
        ),
        Bar::at_most(
            5_000.0,
            "ms",
            &what("a new peer is answered"),
            vec![Some(ms(took))],
        ),
    ]);
    Ok(())
}

/// Starts a stranger's flood against a node, and waits until it begins.
///
/// # Errors
/// When it does not begin.
pub fn start_flood(
    lab: &Lab,
    victim: &Node<'_>,
    key: &str,
    seconds: u32,
    n_sources: u32,
) -> Result<Process> {
    let stranger = lab.host("stranger")?;
    let mut command = stranger.command(tool::program("flood")?);
    command.args([
        &format!("{}:{PORT}", victim.host.ipv4),
        key,
        &FLOOD_RATE.to_string(),
        &seconds.to_string(),
        &n_sources.to_string(),
    ]);
    let flood = stranger.spawn("flood", command)?;
    wait_until("the flood begins", LIMIT, || {
        ensure!(flood.log().contains("ready"), "{}", flood.log());
        Ok(())
    })?;
    Ok(flood)
}
