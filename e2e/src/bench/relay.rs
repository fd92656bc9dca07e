//! What a relay costs: the same two nodes directly, and by the coordinator's relay.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mesh_proto::local::PathStatus;
use serde_json::Value;

use super::{Bar, Outcome};
use crate::interop::wait_both_ways;
use crate::mesh::{Coordinator, Node};
use crate::net::Lab;
use crate::probe::ping;
use crate::process::{Process, ensure_success, stdout};
use crate::wait::wait_until;

/// The load lasts longer than so many pings, one each fiftieth of a second: `ping` spins when they are closer.
const N_PINGS: usize = 300;
const SECONDS_MIN: u32 = 7;
const SETTLED: Duration = Duration::from_secs(30);

/// How the packets of a pair travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Udp,
    Tls,
}

const WAYS: [Way; 3] = [Way::Direct, Way::Udp, Way::Tls];

/// Two nodes and their coordinator.
struct Pair<'lab> {
    coordinator: Coordinator<'lab>,
    from: Node<'lab>,
    to: Node<'lab>,
    _server: Process,
}

/// One load.
#[derive(Debug, Clone)]
struct Figures {
    gbps: f64,
    /// CPU seconds of both daemons and the coordinator for each GB.
    cpu_gb: f64,
    /// Those of the coordinator alone.
    relay_gb: f64,
    n_lost: usize,
    /// Round trips beside the load, in milliseconds, ascending.
    rtts: Vec<f64>,
}

/// Measures.
///
/// # Errors
/// When a node does not come up, or a pair does not take the way that it should.
pub fn run(n_rounds: u32, seconds: u32) -> Result<Outcome> {
    let seconds = seconds.max(SECONDS_MIN);
    let labs = WAYS
        .iter()
        .map(|_| Lab::new(&["control", "beta", "gamma"]))
        .collect::<Result<Vec<_>>>()?;
    let mut pairs = Vec::new();
    for (way, lab) in WAYS.into_iter().zip(&labs) {
        pairs.push((way, Pair::start(lab, way)?));
    }
    let mut text = "| round | way | direction | TCP 1 stream, Gbit/s | CPU s/GB, all (relay) | ping under load p50/p99 ms | lost of 300 |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    let mut asked = [Ratios::of(Way::Udp), Ratios::of(Way::Tls)];
    for number in 1..=n_rounds {
        for is_back in [false, true] {
            let direction = if is_back { "B to A" } else { "A to B" };
            let mut all = Vec::new();
            // Who is first changes, so that a machine that grows slower or faster favours nobody.
            let n_pairs = pairs.len();
            let first = usize::try_from(number)? % n_pairs;
            for idx in (0..n_pairs).map(|idx| (idx + first) % n_pairs) {
                let (way, pair) = pairs.get_mut(idx).context("no such pair")?;
                let figures = pair.load(seconds, is_back)?;
                pair.ensure_goes(*way)?;
                text += &row(number, *way, direction, &figures);
                all.push((*way, figures));
            }
            for ratios in &mut asked {
                ratios.add(&all);
            }
        }
    }
    Ok(Outcome {
        text,
        bars: asked.into_iter().flat_map(Ratios::bars).collect(),
    })
}

fn row(number: u32, way: Way, direction: &str, figures: &Figures) -> String {
    let quantile = |share: f64| -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index below 300"
        )]
        let idx = (share * figures.rtts.len() as f64) as usize;
        figures.rtts.get(idx).copied().unwrap_or(f64::NAN)
    };
    format!(
        "| {number} | {} | {direction} | {:.2} | {:.2} ({:.2}) | {:.2} / {:.2} | {} |\n",
        way.name(),
        figures.gbps,
        figures.cpu_gb,
        figures.relay_gb,
        quantile(0.5),
        quantile(0.99),
        figures.n_lost
    )
}

/// What is asked, load by load.
#[derive(Debug)]
struct Ratios {
    way: Way,
    gbps: Vec<Option<f64>>,
    cpu_gb: Vec<Option<f64>>,
    n_lost: Vec<Option<f64>>,
}

impl Ratios {
    const fn of(way: Way) -> Self {
        Self {
            way,
            gbps: Vec::new(),
            cpu_gb: Vec::new(),
            n_lost: Vec::new(),
        }
    }

    fn add(&mut self, all: &[(Way, Figures)]) {
        let of = |wanted: Way| all.iter().find(|(way, _)| *way == wanted);
        let (Some((_, direct)), Some((_, relayed))) = (of(Way::Direct), of(self.way)) else {
            return;
        };
        self.gbps.push(Some(relayed.gbps / direct.gbps));
        self.cpu_gb.push(Some(relayed.cpu_gb / direct.cpu_gb));
        let n_lost = u32::try_from(relayed.n_lost).map_or(f64::INFINITY, f64::from);
        self.n_lost.push(Some(n_lost));
    }

    fn bars(self) -> Vec<Bar> {
        let unit = "× direct";
        let what = |text: &str| format!("{}: {text}", self.way.name());
        vec![
            Bar::at_least(0.3, unit, &what("TCP, one stream"), self.gbps),
            Bar::at_most(
                3.0,
                unit,
                &what("CPU seconds per GB, all processes"),
                self.cpu_gb,
            ),
            Bar::at_most(0.0, "of 300", &what("pings lost under load"), self.n_lost),
        ]
    }
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Udp => "relay, UDP",
            Self::Tls => "relay, TLS",
        }
    }
}

impl<'lab> Pair<'lab> {
    fn start(lab: &'lab Lab, way: Way) -> Result<Self> {
        match way {
            Way::Direct => {}
            Way::Udp => lab.block_udp_between(lab.host("beta")?, lab.host("gamma")?)?,
            Way::Tls => lab.block_udp()?,
        }
        lab.use_cubic()?;
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable"])?;
        let from = Node::join(lab.host("beta")?, &key)?;
        let to = Node::join(lab.host("gamma")?, &key)?;
        wait_both_ways((from.host, from.ipv4()?), (to.host, to.ipv4()?))?;
        let mut command = to.host.command("iperf3");
        command.arg("-s");
        let server = to.host.spawn("iperf3", command)?;
        let pair = Self {
            coordinator,
            from,
            to,
            _server: server,
        };
        let target = pair.to.ipv4()?;
        wait_until("the path is as it shall be", SETTLED, || {
            ping(pair.from.host, target)?;
            pair.ensure_goes(way)
        })?;
        Ok(pair)
    }

    /// Fails when the path is another one.
    fn ensure_goes(&self, way: Way) -> Result<()> {
        let target = self.to.ipv4()?;
        let status = self.from.status()?;
        let peer = status.peers.iter().find(|peer| peer.ipv4 == target);
        let path = &peer.context("no such peer")?.path;
        let is_relayed = matches!(path, PathStatus::Relayed { .. });
        ensure!(is_relayed == (way != Way::Direct), "the path is {path:?}");
        let n_udp = self
            .from
            .metric("meshd_relay_udp_datagrams_total{direction=\"tx\"}")?;
        ensure!(
            (n_udp > 0.0) == (way == Way::Udp),
            "{n_udp} datagrams went to the relay by UDP"
        );
        Ok(())
    }

    /// One TCP stream, and pings beside it.
    fn load(&mut self, seconds: u32, is_back: bool) -> Result<Figures> {
        let before = self.cpu()?;
        let (target, seconds) = (self.to.ipv4()?.to_string(), seconds.to_string());
        let mut args = vec!["-c", &target, "-J", "-t", &seconds];
        args.extend(is_back.then_some("-R"));
        let host = self.from.host;
        let (stream, pings) = std::thread::scope(|scope| {
            let n_pings = N_PINGS.to_string();
            let target = target.clone();
            let pings = scope.spawn(move || {
                host.run(
                    "ping",
                    &["-n", "-i", "0.02", "-W", "3", "-c", &n_pings, &target],
                )
            });
            let stream = host.run("iperf3", &args);
            (stream, pings.join())
        });
        let after = self.cpu()?;
        let stream = stream?;
        ensure_success("iperf3", &stream)?;
        let result: Value = serde_json::from_slice(&stream.stdout)?;
        let received = &result["end"]["sum_received"];
        let gb = received["bytes"].as_f64().context("no bytes")? / 1e9;
        let bits = received["bits_per_second"]
            .as_f64()
            .context("no throughput")?;
        let pings = pings.map_err(|_| anyhow::anyhow!("the pings' thread panicked"))??;
        let mut rtts = round_trips(&stdout(&pings));
        rtts.sort_by(f64::total_cmp);
        let each = |idx: usize| -> f64 {
            let of = |cpu: &[Duration; 3]| cpu.get(idx).map_or(0.0, Duration::as_secs_f64);
            (of(&after) - of(&before)) / gb
        };
        Ok(Figures {
            gbps: bits / 1e9,
            cpu_gb: each(0) + each(1) + each(2),
            relay_gb: each(2),
            n_lost: N_PINGS.saturating_sub(rtts.len()),
            rtts,
        })
    }

    fn cpu(&mut self) -> Result<[Duration; 3]> {
        Ok([
            self.from.process()?.cpu_time()?,
            self.to.process()?.cpu_time()?,
            self.coordinator.process()?.cpu_time()?,
        ])
    }
}

/// The times that `ping` tells, in milliseconds, each answer once.
fn round_trips(said: &str) -> Vec<f64> {
    let answers = said.lines().filter(|line| !line.contains("(DUP!)"));
    let times = answers.filter_map(|line| line.split_once("time=")?.1.split(' ').next());
    times.filter_map(|time| time.parse().ok()).collect()
}
