//! A mesh of a thousand nodes: what it costs a node that talks to fifty of them, against the same node with one peer.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome};
use crate::interop::wait_both_ways;
use crate::mesh::{Coordinator, Node};
use crate::net::Lab;
use crate::process::{Process, ensure_success};
use crate::tool;
use crate::wait::wait_until;

const N_PEERS: usize = 1_000;
const N_ACTIVE: usize = 50;
const READY: Duration = Duration::from_secs(180);
const RSS_BASE_MIB: f64 = 16.0;
const RSS_EACH_KIB: f64 = 16.0;

/// Two nodes with a stream between them.
struct Mesh<'lab> {
    coordinator: Coordinator<'lab>,
    from: Node<'lab>,
    to: Node<'lab>,
    _server: Process,
    key: String,
}

/// Measures.
///
/// # Errors
/// When a node does not come up.
pub fn run(n_rounds: u32, seconds: u32) -> Result<Outcome> {
    let small_lab = Lab::new(&["control", "beta", "gamma"])?;
    let large_lab = Lab::new(&["control", "beta", "gamma", "crowd"])?;
    let mut small = Mesh::start(&small_lab)?;
    let mut large = Mesh::start(&large_lab)?;
    let crowd = large.join_crowd(&large_lab)?;
    let rss_small = small.from.process()?.rss_mib()?;
    let rss_large = large.from.process()?.rss_mib()?;

    let mut text = format!(
        "| round | way | one peer, Gbit/s | {N_PEERS} peers, {N_ACTIVE} active, Gbit/s | ratio |\n| --- | --- | --- | --- | --- |\n"
    );
    let mut ways = [Vec::new(), Vec::new()];
    for number in 1..=n_rounds {
        for (is_back, ratios) in [false, true].into_iter().zip(&mut ways) {
            let mut figures = [0.0; 2];
            // Who is first changes, so that a machine that grows slower or faster favours nobody.
            let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
            for which in order {
                let mesh = if which == 0 {
                    // The crowd shares the machine's cores: the small mesh must not pay for it.
                    crowd.signal("STOP")?;
                    &small
                } else {
                    crowd.signal("CONT")?;
                    &large
                };
                if let Some(figure) = figures.get_mut(which) {
                    *figure = mesh.throughput(seconds, is_back)?;
                }
            }
            let [one, many] = figures;
            let way = if is_back { "in" } else { "out" };
            text += &format!(
                "| {number} | {way} | {one:.2} | {many:.2} | {:.2} |\n",
                many / one
            );
            ratios.push(Some(many / one));
        }
    }
    crowd.signal("CONT")?;
    let answers = wait_answers(&crowd, N_ACTIVE)?;
    text += &format!(
        "\nMemory of the node before the streams: {rss_small:.1} MiB with one peer, {rss_large:.1} MiB with {N_PEERS}. \
         Each active peer asks five times a second for an echo; {answers} were answered in all.\n"
    );
    let n_idle = f64::from(u32::try_from(N_PEERS - N_ACTIVE)?);
    let rss_bar = RSS_BASE_MIB + RSS_EACH_KIB * n_idle / 1024.0;
    let [out, back] = ways;
    let unit = "× one peer";
    Ok(Outcome {
        text,
        bars: vec![
            Bar::at_least(0.95, unit, "1,000 peers, 50 active: TCP out", out),
            Bar::at_least(0.95, unit, "1,000 peers, 50 active: TCP in", back),
            Bar::at_most(
                rss_bar,
                "MiB",
                "1,000 peers, 50 active: memory (RSS)",
                vec![Some(rss_large)],
            ),
        ],
    })
}

impl<'lab> Mesh<'lab> {
    fn start(lab: &'lab Lab) -> Result<Self> {
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable"])?;
        let from = Node::join(lab.host("beta")?, &key)?;
        let to = Node::join(lab.host("gamma")?, &key)?;
        wait_both_ways((from.host, from.ipv4()?), (to.host, to.ipv4()?))?;
        let mut command = to.host.command("iperf3");
        command.arg("-s");
        let server = to.host.spawn("iperf3", command)?;
        Ok(Self {
            coordinator,
            from,
            to,
            _server: server,
            key,
        })
    }

    /// Fills the mesh up and waits until both nodes know all, and the active ones get answers.
    fn join_crowd(&mut self, lab: &'lab Lab) -> Result<Process> {
        let host = lab.host("crowd")?;
        let n_idle = N_PEERS - N_ACTIVE - 1;
        let mut command = host.command(tool::program("crowd")?);
        command.args([
            self.key.as_str(),
            self.from.host.name(),
            &host.ipv4.to_string(),
            &N_ACTIVE.to_string(),
            &n_idle.to_string(),
        ]);
        let mut crowd = host.spawn("crowd", command)?;
        wait_until("the crowd gets answers", READY, || {
            crowd.ensure_runs()?;
            wait_answers(&crowd, N_ACTIVE)
        })?;
        for node in [&self.from, &self.to] {
            wait_until("the whole crowd is in the map", READY, || {
                let n_peers = node.status()?.peers.len();
                ensure!(n_peers == N_PEERS, "{n_peers} peers");
                Ok(())
            })?;
        }
        let n_nodes = self.coordinator.nodes()?.len();
        ensure!(n_nodes == N_PEERS + 1, "{n_nodes} nodes");
        Ok(crowd)
    }

    fn throughput(&self, seconds: u32, is_back: bool) -> Result<f64> {
        let (target, seconds) = (self.to.ipv4()?.to_string(), seconds.to_string());
        let mut args = vec!["-c", &target, "-J", "-t", &seconds];
        if is_back {
            args.push("-R");
        }
        let output = self.from.host.run("iperf3", &args)?;
        ensure_success("iperf3", &output)?;
        let result: Value = serde_json::from_slice(&output.stdout)?;
        let bits = result["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.context("no throughput")? / 1e9)
    }
}

/// How many echo requests of the crowd were answered; fails while less than `n_wanted` of its members have had one.
fn wait_answers(crowd: &Process, n_wanted: usize) -> Result<u64> {
    let log = crowd.log();
    let (lines, _) = log.rsplit_once('\n').context("nothing said yet")?;
    let last = lines.lines().next_back().unwrap_or_default();
    let state: Value = serde_json::from_str(last).with_context(|| last.to_owned())?;
    let n_answered = state["members"].as_u64().context("no members")?;
    ensure!(
        n_answered >= n_wanted as u64,
        "{n_answered} of {n_wanted} members were answered"
    );
    state["answers"].as_u64().context("no answers")
}
