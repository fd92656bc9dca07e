//! Strangers at the UDP port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::interop::{Traffic, wait_both_ways};
use e2e::mesh::Node;
use e2e::net::{Host, scenario};
use e2e::process::{ensure_success, stdout};
use e2e::tool;
use e2e::wait::wait_until;
use serde_json::Value;

use crate::mesh;

const N_DATAGRAMS: u64 = 100_000;

/// Where a node listens when nothing else does there.
const PORT: u16 = 41_820;

/// Counts what a host sends from its tunnels' port to another host.
fn count_answers(from: &Host, to: &Host) -> Result<()> {
    from.sh(&format!(
        "nft -f - <<END
table inet watch {{
    counter answers {{}}
    chain out {{
        type filter hook output priority 0;
        ip daddr {} meta l4proto udp counter name answers
        ip6 daddr {} meta l4proto udp counter name answers
    }}
}}
END",
        to.ipv4, to.ipv6
    ))
    .map(drop)
}

fn send(from: &Host, to: SocketAddr, seed: u64) -> Result<Value> {
    let program = tool::program("garbage")?;
    let [to, n, seed] = [to.to_string(), N_DATAGRAMS.to_string(), seed.to_string()];
    let output = from.run(program, &[&to, &n, &seed])?;
    ensure_success("garbage", &output)?;
    Ok(serde_json::from_str(&stdout(&output))?)
}

/// A metric's value, all its labels together.
fn metric(node: &Node<'_>, name: &str) -> Result<u64> {
    let text = node.ctl_ok(&["metrics"])?;
    let lines = text.lines().filter(|line| line.starts_with(name));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(values.sum())
}

/// What it allocated. Pages of its code come and go with what runs, and were given back a moment ago.
fn memory_kib(node: &mut Node<'_>) -> Result<u32> {
    node.process()?.memory_kib("RssAnon")
}

#[test]
fn garbage_is_not_answered_and_disturbs_nobody() -> Result<()> {
    scenario(&["control", "beta", "gamma", "stranger"], |lab| {
        let (_coordinator, mut nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_mut_slice() else {
            unreachable!("two hosts were named")
        };
        let stranger = lab.host("stranger")?;
        let (own, other) = (beta.ipv4()?, gamma.ipv4()?);
        wait_both_ways((beta.host, own), (gamma.host, other))?;
        count_answers(beta.host, stranger)?;
        // What the first thousands of datagrams make it allocate, it keeps.
        let warm = send(stranger, SocketAddr::new(beta.host.ipv4.into(), PORT), 1)?;
        let before_kib = memory_kib(beta)?;

        let traffic = [
            Traffic::start(gamma.host, own)?,
            Traffic::start(beta.host, other)?,
        ];
        wait_until("traffic flows", Duration::from_secs(5), || {
            traffic
                .iter()
                .try_for_each(|traffic| traffic.gaps().map(drop))
        })?;
        let mut n_sent = warm["n_sent"].as_u64().context("n_sent")?;
        let underlay: [IpAddr; 2] = [beta.host.ipv4.into(), beta.host.ipv6.into()];
        for (seed, ip) in (2..).zip(underlay) {
            let report = send(stranger, SocketAddr::new(ip, PORT), seed)?;
            n_sent += report["n_sent"].as_u64().context("n_sent")?;
            ensure!(report["n_bytes_answered"] == 0, "answered: {report}");
        }
        for traffic in traffic {
            let gaps = traffic.finish()?;
            ensure!(gaps.longest < Duration::from_secs(1), "{gaps:?}");
        }
        ensure!(
            n_sent > N_DATAGRAMS * 2,
            "only {n_sent} datagrams left the stranger"
        );
        let counted = beta.host.sh("nft list counter inet watch answers")?;
        ensure!(counted.contains("packets 0 bytes 0"), "answered: {counted}");
        let n_dropped = metric(beta, "meshd_drops_total")?;
        // The kernel throws away what meshd is too slow for; most must have come through, or this shows nothing.
        ensure!(n_dropped > n_sent / 4, "meshd saw {n_dropped} of {n_sent}");
        let grown_kib = memory_kib(beta)?.saturating_sub(before_kib);
        ensure!(grown_kib < 4096, "it grew by {grown_kib} KiB");
        beta.process()?.ensure_runs()
    })
}
