//! A node in userspace mode beside a WireGuard with an interface: TCP through its SOCKS5 proxy, and its memory.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::tunnels::{self, NEWEST};
use super::{Bar, Outcome};
use crate::mesh::{Coordinator, Node};
use crate::net::{Host, Lab};
use crate::process::{ensure_success, stdout};
use crate::tool;
use crate::wait::wait_until;

const PROXY: &str = "127.0.0.1:1055";
const READY: Duration = Duration::from_secs(20);

/// Measures.
///
/// # Errors
/// When a node or a tunnel does not come up.
pub fn run(effort: tunnels::Effort) -> Result<Outcome> {
    let once = tunnels::Effort {
        n_rounds: 1,
        ..effort
    };
    let (mut rounds, mut peaks) = (Vec::new(), Vec::new());
    let mut text = "| round | wireguard-go, TUN, Gbit/s | SOCKS5, sending | SOCKS5, receiving | RSS peak MiB |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for number in 1..=effort.n_rounds {
        // Side by side in time: the machine drifts.
        let (_, pass) = tunnels::pass("userspace", &[NEWEST], once, &["--cells", "tcp"])?;
        let tunnel = |cell: &str| pass.median(NEWEST, &[cell, "gbps"]);
        let (there, back) = (tunnel("tcp1f"), tunnel("tcp1r"));
        let tunnel = there
            .zip(back)
            .map(|(there, back)| f64::midpoint(there, back));
        let tunnel = tunnel.context("wireguard-go never came up")?;
        let (put, fetch, peak) = socks(effort.seconds)?;
        text += &format!("| {number} | {tunnel:.2} | {put:.2} | {fetch:.2} | {peak:.0} |\n");
        rounds.push((put / tunnel, fetch / tunnel));
        peaks.push(Some(peak));
    }
    let unit = format!("× {NEWEST}");
    let ways = [
        (
            "TCP by SOCKS5, sending, against a TUN",
            rounds.iter().map(|(put, _)| Some(*put)).collect(),
        ),
        (
            "TCP by SOCKS5, receiving, against a TUN",
            rounds.iter().map(|(_, fetch)| Some(*fetch)).collect(),
        ),
    ];
    let mut bars: Vec<Bar> = ways
        .into_iter()
        .map(|(what, ratios)| Bar::at_least(0.7, &unit, what, ratios))
        .collect();
    let what = "memory (RSS) in userspace mode, at its peak";
    bars.push(Bar::at_most(64.0, "MiB", what, peaks));
    Ok(Outcome { text, bars })
}

/// Rates both ways, and the peak of memory.
fn socks(seconds: u32) -> Result<(f64, f64, f64)> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let mut beta = Node::start(lab.host("beta")?)?;
    beta.ctl_ok(&["up", "--userspace", "--auth-key", &key])?;
    let gamma = Node::join(lab.host("gamma")?, &key)?;
    let mut command = gamma.host.command(tool::program("socks-flow")?);
    command.args(["serve", "0.0.0.0:5201"]);
    let _server = gamma.host.spawn("socks-flow", command)?;
    let dst = format!("{}:5201", gamma.ipv4()?);
    let warm = ["put", PROXY, dst.as_str(), "0.3"];
    wait_until("bytes pass directly", READY, || {
        rate(beta.host, &warm)?;
        let pong = beta.ctl_ok(&["ping", "gamma"])?;
        ensure!(!pong.contains("relay"), "{pong}");
        Ok(())
    })?;
    let seconds = seconds.to_string();
    let put = rate(beta.host, &["put", PROXY, &dst, &seconds])?;
    let fetch = rate(beta.host, &["fetch", PROXY, &dst, &seconds])?;
    let path = format!("/proc/{}/status", beta.process()?.pid());
    let status = std::fs::read_to_string(path)?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.context("no peak")?.trim().trim_end_matches(" kB");
    let kib: f64 = kib.parse()?;
    Ok((put, fetch, kib / 1024.0))
}

fn rate(host: &Host, args: &[&str]) -> Result<f64> {
    let output = host.run(tool::program("socks-flow")?, args)?;
    ensure_success(&format!("socks-flow {args:?}"), &output)?;
    let report: Value = serde_json::from_str(&stdout(&output))?;
    report["gbps"].as_f64().context("no rate")
}
