//! The network under a node changes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::net::scenario;
use e2e::probe::ping;
use e2e::process::ensure_success;
use e2e::wait::{time_until, wait_until};

use crate::mesh;

#[test]
fn another_way_out_is_taken_at_once_though_no_address_changed() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        // Both ways are there from the start; only where packets are led changes.
        let second = lab.add_link(lab.host("beta")?)?;
        let (coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let target = gamma.ipv4()?;
        wait_until("the peer answers", Duration::from_secs(5), || {
            ping(beta.host, target)
        })?;
        lab.isolate(beta.host)?;
        ensure!(ping(beta.host, target).is_err(), "it is not cut off");
        beta.host
            .sh(&format!("ip route replace default via {second} dev eth1"))?;
        let renamed = coordinator.admin(&["node", "rename", "gamma", "delta"])?;
        ensure_success("rename", &renamed)?;
        let (_, time) = time_until(
            "its coordinator reaches it",
            Duration::from_secs(40),
            || {
                let status = beta.status()?;
                let peer = status.peers.first().context("no peer")?;
                ensure!(peer.name.as_str() == "delta", "{status:?}");
                Ok(())
            },
        )?;
        // The map stream's own patience is 33 seconds.
        ensure!(time < Duration::from_secs(5), "only after {time:?}");
        ping(beta.host, target)?;
        ping(gamma.host, beta.ipv4()?)
    })
}
