//! What a node costs that does nothing, in a mesh of a thousand; and how it wakes after it was stopped.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Bar, Outcome, ms};
use crate::interop::wait_both_ways;
use crate::mesh::{Node, join_all};
use crate::net::Lab;
use crate::probe::first_answer;
use crate::tool;
use crate::wait::wait_until;

const N_PEERS: usize = 1_000;
const READY: Duration = Duration::from_secs(300);
/// Longer than a session lives without use, so that none is left.
const SETTLE: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(20);

/// How long to look, and how long to stop.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// How long the idle node is watched.
    pub watch: Duration,
    /// How long a node is stopped.
    pub stop: Duration,
}

/// What the kernel knows of a process.
#[derive(Debug, Clone, Copy)]
struct Used {
    cpu: Duration,
    n_wakes: u64,
}

/// Measures.
///
/// # Errors
/// When a node does not come up.
pub fn run(effort: Effort) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    idle(effort, &mut outcome)?;
    stopped(effort, &mut outcome)?;
    Ok(outcome)
}

fn idle(effort: Effort, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab::new(&["control", "beta", "crowd"])?;
    let (coordinator, mut nodes) = join_all(&lab, &["beta"])?;
    let beta = nodes.first_mut().context("a host was named")?;
    let key = coordinator.key(&["--reusable"])?;
    let host = lab.host("crowd")?;
    let mut command = host.command(tool::program("crowd")?);
    let [n_active, n_idle] = ["0".to_owned(), N_PEERS.to_string()];
    command.args([
        &key,
        beta.host.name(),
        &host.ipv4.to_string(),
        &n_active,
        &n_idle,
    ]);
    let mut crowd = host.spawn("crowd", command)?;
    wait_until("the whole crowd is in the map", READY, || {
        crowd.ensure_runs()?;
        let n_peers = beta.status()?.peers.len();
        ensure!(n_peers == N_PEERS, "{n_peers} peers");
        Ok(())
    })?;
    // What is measured is time that passes, from a moment on at which nothing is left to do.
    std::thread::sleep(SETTLE);
    let pid = beta.process()?.pid();
    let (before, start) = (used(pid)?, Instant::now());
    std::thread::sleep(effort.watch);
    let (after, span) = (used(pid)?, start.elapsed());
    let share = (after.cpu - before.cpu).as_secs_f64() / span.as_secs_f64() * 100.0;
    let n_wakes = u32::try_from(after.n_wakes - before.n_wakes)?;
    let wakes = f64::from(n_wakes) / span.as_secs_f64();
    let rss = beta.process()?.rss_mib()?;
    outcome.text += &format!(
        "{N_PEERS} peers in the map, no traffic, {} s: {wakes:.1} wake-ups a second.\n",
        span.as_secs()
    );
    outcome.bars.push(Bar::at_most(
        30.0,
        "MiB",
        "idle, 1,000 peers in the map: memory (RSS)",
        vec![Some(rss)],
    ));
    outcome.bars.push(Bar::at_most(
        0.1,
        "% of a core",
        "idle, 1,000 peers in the map: CPU",
        vec![Some(share)],
    ));
    Ok(())
}

/// The CPU time and the wake-ups of all threads so far.
fn used(pid: u32) -> Result<Used> {
    let mut all = Used {
        cpu: Duration::ZERO,
        n_wakes: 0,
    };
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let folder = task?.path();
        let text = std::fs::read_to_string(folder.join("schedstat"))?;
        let nanos = text.split(' ').next().context("no time")?.parse()?;
        all.cpu += Duration::from_nanos(nanos);
        let status = std::fs::read_to_string(folder.join("status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        all.n_wakes += line.context("no switches")?.trim().parse::<u64>()?;
    }
    Ok(all)
}

/// One end is stopped as by a suspend, and goes on.
fn stopped(effort: Effort, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (_coordinator, mut nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_mut_slice() else {
        unreachable!("two hosts were named")
    };
    let (own, target) = (beta.ipv4()?, gamma.ipv4()?);
    let mut times = Vec::new();
    for wakes_itself in [true, false] {
        wait_both_ways((beta.host, own), (gamma.host, target))?;
        let process = beta.process()?;
        process.signal("STOP")?;
        // Both clocks go on meanwhile, and so do the other node and the coordinator.
        std::thread::sleep(effort.stop);
        process.signal("CONT")?;
        let (from, to) = if wakes_itself {
            (beta.host, target)
        } else {
            (gamma.host, own)
        };
        times.push(Some(ms(first_answer(from, to, LIMIT)?)));
    }
    ensure_up(beta)?;
    outcome.bars.push(Bar::at_most(
        2_000.0,
        "ms",
        &format!(
            "stopped for {} s: first ping after it, from either end",
            effort.stop.as_secs()
        ),
        times,
    ));
    Ok(())
}

fn ensure_up(node: &Node<'_>) -> Result<()> {
    let status = node.status()?;
    ensure!(status.problems.is_empty(), "{:?}", status.problems);
    Ok(())
}
