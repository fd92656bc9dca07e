//! Ten million packets over a link that loses, with a stock WireGuard as the other end, across rekeys.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome};
use crate::interop::{StockPeer, Traffic, wait_both_ways};
use crate::mesh::{Coordinator, Node};
use crate::net::{Host, Lab};
use crate::process::Process;
use crate::tool;
use crate::wait::wait_until;

const LOSS_PERCENT: u8 = 2;
const PORT: &str = "9000";
const PAUSE: Duration = Duration::from_millis(500);
/// Ends a little later than it sends.
const AFTERWARDS: Duration = Duration::from_secs(30);

/// How much to send.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Datagrams a second, each way.
    pub rate: u32,
    /// For how long.
    pub seconds: u32,
    /// How many rekeys there must be; WireGuard agrees on new keys each 120 s.
    pub n_rekeys: usize,
}

impl Effort {
    /// Ten million datagrams both ways together, and two rekeys.
    pub const FULL: Self = Self {
        rate: 16_700,
        seconds: 300,
        n_rekeys: 2,
    };
    /// To see that it works.
    pub const QUICK: Self = Self {
        rate: 16_700,
        seconds: 20,
        n_rekeys: 0,
    };
}

/// Measures.
///
/// # Errors
/// When an end does not come up, or ends.
pub fn run(effort: Effort) -> Result<Outcome> {
    let newest = tool::root().join(".tools/bin/wireguard");
    ensure!(
        newest.exists(),
        "{} is missing: run `make bench-tools`",
        newest.display()
    );
    let lab = Lab::new(&["control", "beta", "stock"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let mut beta = Node::join(lab.host("beta")?, &key)?;
    let host = lab.host("stock")?;
    let mut stock = StockPeer::join_program(host, &key, &newest)?;
    let own = beta.ipv4()?;
    wait_both_ways((beta.host, own), (host, stock.ipv4))?;
    lab.lose(host, LOSS_PERCENT)?;

    let start = Instant::now();
    let first_handshake = stock.last_handshake()?;
    let mut handshakes = vec![first_handshake];
    let probes = [
        Traffic::start(beta.host, stock.ipv4)?,
        Traffic::start(host, own)?,
    ];
    let mut streams = [
        stream(beta.host, stock.ipv4, effort)?,
        stream(host, own, effort)?,
    ];
    let limit = Duration::from_secs(effort.seconds.into()) + AFTERWARDS;
    let ends = loop {
        std::thread::sleep(PAUSE);
        stock.ensure_runs()?;
        beta.process()?.ensure_runs()?;
        let last = stock.last_handshake()?;
        if handshakes.last() != Some(&last) {
            handshakes.push(last);
        }
        let states = [last_report(&streams[0])?, last_report(&streams[1])?];
        if states.iter().all(|state| state["end"] == true) {
            break states;
        }
        for stream in &mut streams {
            if let Err(err) = stream.ensure_runs()
                && last_report(stream)?["end"] != true
            {
                return Err(err);
            }
        }
        ensure!(start.elapsed() < limit, "the streams do not end");
    };
    let [from_meshd, from_stock] = probes.map(|probe| probe.finish().map(|gaps| gaps.longest));
    let silences = [from_meshd?, from_stock?];
    report(effort, &ends, silences, handshakes.len() - 1)
}

fn stream(host: &Host, peer: std::net::Ipv4Addr, effort: Effort) -> Result<Process> {
    let mut command = host.command(tool::program("numbered")?);
    command.args([
        &peer.to_string(),
        PORT,
        &effort.rate.to_string(),
        &effort.seconds.to_string(),
    ]);
    let process = host.spawn("numbered", command)?;
    wait_until("the stream begins", Duration::from_secs(10), || {
        last_report(&process).map(drop)
    })?;
    Ok(process)
}

fn last_report(process: &Process) -> Result<Value> {
    let log = process.log();
    let (lines, _) = log.rsplit_once('\n').context("no report yet")?;
    let last = lines.lines().next_back().unwrap_or_default();
    serde_json::from_str(last).with_context(|| last.to_owned())
}

fn report(
    effort: Effort,
    ends: &[Value; 2],
    silences: [Duration; 2],
    n_rekeys: usize,
) -> Result<Outcome> {
    let count = |end: usize, key: &str| -> Result<f64> {
        let value = ends.get(end).and_then(|end| end[key].as_f64());
        value.with_context(|| format!("no {key}"))
    };
    let mut text = "| way | sent | received | lost % | wrong | twice | longest silence ms | longest silence between echoes ms |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n".to_owned();
    let (mut n_sent, mut n_bad, mut longest_ms) = (0.0, 0.0, 0.0_f64);
    for (way, from, to) in [
        ("meshd to wireguard-go", 0, 1),
        ("wireguard-go to meshd", 1, 0),
    ] {
        let (sent, received) = (count(from, "sent")?, count(to, "received")?);
        let (wrong, twice) = (count(to, "wrong")?, count(to, "twice")?);
        let silence_ms = count(to, "longest_silence_ms")?;
        let echo_ms = silences.get(from).map_or(0.0, Duration::as_secs_f64) * 1e3;
        text += &format!(
            "| {way} | {sent:.0} | {received:.0} | {:.2} | {wrong:.0} | {twice:.0} | {silence_ms:.0} | {echo_ms:.0} |\n",
            (1.0 - received / sent) * 100.0
        );
        n_sent += sent;
        n_bad += wrong + twice;
        longest_ms = longest_ms.max(silence_ms);
    }
    text += &format!(
        "\n{n_rekeys} rekeys; each packet has a chance of {LOSS_PERCENT} % to be lost on its way.\n"
    );
    let all = f64::from(effort.rate) * f64::from(effort.seconds) * 2.0;
    let rekeys = f64::from(u32::try_from(n_rekeys)?);
    let wanted = f64::from(u32::try_from(effort.n_rekeys)?);
    let lossy = "2 % loss, beside wireguard-go (newest): ";
    Ok(Outcome {
        text,
        bars: vec![
            // The last burst of each way may be cut short by the clock.
            Bar::at_least(
                (all * 0.998).min(1e7),
                "packets",
                &format!("{lossy}sent"),
                vec![Some(n_sent)],
            ),
            Bar::at_least(
                wanted,
                "rekeys",
                &format!("{lossy}rekeys"),
                vec![Some(rekeys)],
            ),
            Bar::at_most(
                0.0,
                "packets",
                &format!("{lossy}wrong or twice"),
                vec![Some(n_bad)],
            ),
            Bar::at_most(
                1_000.0,
                "ms",
                &format!("{lossy}longest silence"),
                vec![Some(longest_ms)],
            ),
        ],
    })
}
