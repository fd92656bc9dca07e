//! Bad weather on the way: packets that get lost, come twice, or come in another order.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome, median};
use crate::interop::wait_both_ways;
use crate::mesh::{Node, join_all};
use crate::net::{Host, Lab};
use crate::probe::first_answer;
use crate::process::Process;
use crate::tool;
use crate::wait::wait_until;

const READY: Duration = Duration::from_secs(15);
const PORT: &str = "9100";
/// Of bytes in 30 s: 10 KiB/s.
const SLOWEST: f64 = 30.0 * 10.0 * 1024.0;
/// From this loss on, TCP takes an hour for what is asked, with a tunnel or without: half a minute of it is compared.
const HOPELESS: u8 = 20;
const HALF_MINUTE: &str = "30";
/// Up to this loss a transfer takes seconds, and differs by a fifth from the next one: so many times as many of them.
const SWIFT_UP_TO: u8 = 1;
const SWIFT_TIMES: u32 = 8;
/// Each way. Without any, TCP goes round so often in a second that a tunnel's own tenth of a millisecond is all that counts.
const DELAY_MS: u32 = 5;
/// A handshake may take so long.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How many packets are shuffled at a time.
const DEPTH: &str = "1000";
const RATE: u32 = 4_000;

/// How much to send.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Transfers with and without the tunnel, in turn.
    pub n_rounds: u32,
    /// Bytes of each, by loss of 1, 5 and 20 %.
    pub n_bytes: [u64; 3],
    /// Handshakes under a loss of 40 %.
    pub n_handshakes: u32,
    /// How long packets are shuffled, seconds.
    pub shuffled: u32,
}

impl Effort {
    /// What is asked for.
    pub const FULL: Self = Self {
        n_rounds: 5,
        n_bytes: [10_000_000, 10_000_000, 10_000_000],
        n_handshakes: 100,
        shuffled: 60,
    };
    /// To see that it works.
    pub const QUICK: Self = Self {
        n_rounds: 2,
        n_bytes: [10_000_000, 2_000_000, 300_000],
        n_handshakes: 20,
        shuffled: 10,
    };
}

/// Measures.
///
/// # Errors
/// When an end does not come up, or ends.
pub fn run(effort: Effort) -> Result<Outcome> {
    let mut outcome = Outcome {
        text: "| loss each way | bytes | tunnel, s | the same path without it, s | fewest bytes in 30 s: tunnel | without it |\n| --- | --- | --- | --- | --- | --- |\n".to_owned(),
        bars: Vec::new(),
    };
    for (percent, n_bytes) in [1, 5, 20].into_iter().zip(effort.n_bytes) {
        lose(percent, n_bytes, effort.n_rounds, &mut outcome)?;
    }
    handshakes(effort.n_handshakes, &mut outcome)?;
    shuffle(effort.shuffled, &mut outcome)?;
    Ok(outcome)
}

/// Transfers over a path that loses, by the tunnel and beside it.
fn lose(percent: u8, n_bytes: u64, n_rounds: u32, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (_coordinator, nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_slice() else {
        unreachable!("two hosts were named")
    };
    let (own, target) = (beta.ipv4()?, gamma.ipv4()?);
    wait_both_ways((beta.host, own), (gamma.host, target))?;
    beta.wait_direct(target, READY)?;
    // One loss takes one packet of the wire, with the tunnel and without.
    for node in &nodes {
        lab.cut(node.host)?;
    }
    lab.lose(gamma.host, percent)?;
    let _delay = lab.delay((beta.host, gamma.host), DELAY_MS)?;
    let n_bytes_text = n_bytes.to_string();
    let n_asked = f64::from(u32::try_from(n_bytes)?);
    let (limit, n_rounds) = match percent {
        ..=SWIFT_UP_TO => (None, n_rounds * SWIFT_TIMES),
        HOPELESS.. => (Some(HALF_MINUTE), n_rounds + 2),
        _ => (None, n_rounds),
    };
    let mut servers = Vec::new();
    for address in [beta.host.ipv4, own] {
        let mut command = beta.host.command(tool::python()?);
        command
            .arg(tool::root().join("e2e/bench/transfer.py"))
            .args(["serve", &address.to_string(), PORT, &n_bytes_text]);
        let server = beta.host.spawn(&format!("serve-{address}"), command)?;
        wait_until("it serves", READY, || {
            ensure!(server.log().contains("ready"), "{}", server.log());
            Ok(())
        })?;
        servers.push(server);
    }
    let (mut plain, mut tunnel) = (Transfers::default(), Transfers::default());
    for number in 0..n_rounds {
        let mut ways = [(beta.host.ipv4, false), (own, true)];
        if number % 2 == 1 {
            ways.reverse();
        }
        for (address, is_tunnel) in ways {
            let got = fetch(gamma.host, &address.to_string(), &n_bytes_text, limit)?;
            ensure!(got["is_exact"] == true, "{percent} % loss: {got}");
            let seconds = got["seconds"].as_f64().context("no time")?;
            let n_got = got["n_bytes"].as_f64().context("no length")?;
            // Where not all came, the time that all would have taken.
            let seconds = seconds * n_asked / n_got.max(1.0);
            let way = if is_tunnel { &mut tunnel } else { &mut plain };
            way.seconds.push(seconds);
            way.fewest.extend(got["slowest"].as_f64());
        }
    }
    let words = |values: &[f64]| {
        let words: Vec<_> = values.iter().map(|value| format!("{value:.2}")).collect();
        words.join(" ")
    };
    let _ = writeln!(
        outcome.text,
        "| {percent} % | {n_bytes} | {} | {} | {} | {} |",
        words(&tunnel.seconds),
        words(&plain.seconds),
        tunnel.fewest_words(),
        plain.fewest_words()
    );
    let ratio = median(&tunnel.seconds) / median(&plain.seconds);
    outcome.bars.push(Bar::at_most(
        1.10,
        "× the path alone",
        &format!("{percent} % loss: time of {n_bytes} bytes, medians"),
        vec![Some(ratio)],
    ));
    outcome.bars.push(Bar::at_least(
        SLOWEST,
        "bytes",
        &format!("{percent} % loss: fewest in 30 s (or all, if it took less)"),
        vec![Some(tunnel.fewest().unwrap_or(SLOWEST))],
    ));
    Ok(())
}

/// The transfers of one way.
#[derive(Debug, Default)]
struct Transfers {
    seconds: Vec<f64>,
    /// Bytes in the emptiest half minute of each that took longer.
    fewest: Vec<f64>,
}

impl Transfers {
    fn fewest(&self) -> Option<f64> {
        self.fewest.iter().copied().reduce(f64::min)
    }

    fn fewest_words(&self) -> String {
        self.fewest()
            .map_or_else(|| "-".to_owned(), |fewest| format!("{fewest:.0}"))
    }
}

fn fetch(host: &Host, address: &str, n_bytes: &str, limit: Option<&str>) -> Result<Value> {
    let mut command = host.command(tool::python()?);
    command
        .arg(tool::root().join("e2e/bench/transfer.py"))
        .args(["fetch", address, PORT, n_bytes])
        .args(limit);
    let output = command.output()?;
    crate::process::ensure_success("fetch", &output)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// New sessions over a path that loses 40 % each way.
fn handshakes(n_wanted: u32, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (mut coordinator, mut nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_mut_slice() else {
        unreachable!("two hosts were named")
    };
    let target = gamma.ipv4()?;
    wait_both_ways((beta.host, beta.ipv4()?), (gamma.host, target))?;
    // Its relay would help, and the handshake itself is what is looked at.
    coordinator.kill();
    lab.lose(gamma.host, 40)?;
    let (mut n_done, mut times) = (0_u32, Vec::new());
    for _ in 0..n_wanted {
        beta.kill();
        beta.start_again()?;
        beta.wait_running()?;
        let start = Instant::now();
        if first_answer(beta.host, target, HANDSHAKE).is_ok() && start.elapsed() <= HANDSHAKE {
            n_done += 1;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let share = f64::from(n_done) / f64::from(n_wanted) * 100.0;
    let _ = writeln!(
        outcome.text,
        "\n{n_done} of {n_wanted} handshakes under 40 % loss each way within 30 s, half of them within {:.2} s.",
        median(&times)
    );
    outcome.bars.push(Bar::at_least(
        97.0,
        "% of handshakes",
        "40 % loss each way: done within 30 s",
        vec![Some(share)],
    ));
    Ok(())
}

/// Datagrams whose packets come twice each and in any order.
fn shuffle(seconds: u32, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let (_coordinator, nodes) = join_all(&lab, &["beta", "gamma"])?;
    let [beta, gamma] = nodes.as_slice() else {
        unreachable!("two hosts were named")
    };
    let report = shuffled(&lab, (beta, gamma), RATE, seconds)?;
    let (mut n_missing, mut n_twice) = (0, 0);
    for (sent, received) in [(&report[0], &report[1]), (&report[1], &report[0])] {
        let count = |value: &Value, key: &str| value[key].as_u64().context("no count");
        let n_once = count(received, "received")? - count(received, "twice")?;
        n_missing += count(sent, "sent")?.saturating_sub(n_once);
        n_twice += count(received, "twice")? + count(received, "wrong")?;
    }
    let _ = writeln!(
        outcome.text,
        "\n{RATE} datagrams a second each way for {seconds} s, each packet twice, in blocks of {DEPTH} shuffled."
    );
    let row = |what: &str, n: u64| {
        let n = f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        Bar::at_most(0.0, "datagrams", what, vec![Some(n)])
    };
    outcome.bars.push(row(
        "doubled and reordered up to 1,000 deep: delivered twice or wrong",
        n_twice,
    ));
    outcome.bars.push(row(
        "doubled and reordered up to 1,000 deep: not delivered",
        n_missing,
    ));
    Ok(())
}

/// Sends numbered datagrams both ways through weather that doubles and shuffles; the last report of each end.
///
/// # Errors
/// When a program ends early.
pub fn shuffled(
    lab: &Lab,
    (beta, gamma): (&Node<'_>, &Node<'_>),
    rate: u32,
    seconds: u32,
) -> Result<[Value; 2]> {
    let (own, target) = (beta.ipv4()?, gamma.ipv4()?);
    wait_both_ways((beta.host, own), (gamma.host, target))?;
    beta.wait_direct(target, READY)?;
    let mut weather = lab.weather((beta.host, gamma.host), DEPTH)?;
    let stream = |host: &Host, peer: std::net::Ipv4Addr| {
        let mut command = host.command(tool::program("numbered")?);
        command.args([
            &peer.to_string(),
            "9000",
            &rate.to_string(),
            &seconds.to_string(),
        ]);
        host.spawn("numbered", command)
    };
    let ends = [stream(beta.host, target)?, stream(gamma.host, own)?];
    let limit = Duration::from_secs(u64::from(seconds) + 20);
    let last = |process: &Process| -> Result<Value> {
        let log = process.log();
        let line = log.lines().next_back().context("no report yet")?;
        let report: Value = serde_json::from_str(line)?;
        ensure!(report["end"] == true, "it goes on: {report}");
        Ok(report)
    };
    let first = wait_until("one end is done", limit, || last(&ends[0]))?;
    let second = wait_until("the other end is done", limit, || last(&ends[1]))?;
    weather.ensure_runs()?;
    Ok([first, second])
}
