//! Nodes that find no direct path: by the relay of the coordinator, by one that stands alone, through a proxy.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{Coordinator, Node};
use e2e::net::scenario;
use e2e::probe::ping;
use e2e::process::{ensure_success, stdout};
use e2e::tool;
use e2e::wait::{time_until, wait_until};
use mesh_proto::local::PathStatus;

/// Data must pass within this, from the first packet on.
const FIRST_DATA: Duration = Duration::from_secs(3);
/// After a relay came back.
const DATA_AGAIN: Duration = Duration::from_secs(5);

fn ensure_relayed(from: &Node<'_>, to: &Node<'_>) -> Result<()> {
    let target = to.ipv4()?;
    let status = from.status()?;
    let peer = status.peers.iter().find(|peer| peer.ipv4 == target);
    let path = &peer.context("no such peer")?.path;
    ensure!(
        matches!(path, PathStatus::Relayed { .. }),
        "the path is {path:?}"
    );
    Ok(())
}

/// Many packets of full size, close behind each other, and none may be lost.
fn ensure_lossless(from: &Node<'_>, to: &Node<'_>) -> Result<()> {
    let target = to.ipv4()?;
    let script = format!("ping -q -c 200 -i 0.01 -s 1200 -W 3 {target}");
    let said = from.host.sh(&script)?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    Ok(())
}

#[test]
fn nodes_without_udp_reach_each_other_by_the_relay() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        lab.block_udp()?;
        let (mut coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let target = gamma.ipv4()?;
        time_until("the first packet comes back", FIRST_DATA, || {
            ping(beta.host, target)
        })?;
        ensure_relayed(beta, gamma)?;
        let said = beta.ctl_ok(&["netcheck"])?;
        ensure!(said.contains("UDP:       blocked"), "{said}");
        ensure_lossless(beta, gamma)?;
        ensure_lossless(gamma, beta)?;
        // The relay is killed and comes back.
        coordinator.kill();
        coordinator.restart()?;
        time_until("data passes again", DATA_AGAIN, || ping(beta.host, target))?;
        ensure_relayed(beta, gamma)?;
        // UDP passes again: the path becomes direct, and nothing is lost on the way.
        lab.pass_udp()?;
        wait_until("the path is direct", Duration::from_secs(60), || {
            ping(beta.host, target)?;
            ensure!(ensure_relayed(beta, gamma).is_err(), "still by the relay");
            Ok(())
        })
    })
}

/// Waits until data goes to the relay by UDP.
fn wait_udp(from: &Node<'_>, to: &Node<'_>) -> Result<()> {
    let target = to.ipv4()?;
    let n_sent = || from.metric("meshd_relay_udp_datagrams_total{direction=\"tx\"}");
    let before = n_sent()?;
    wait_until("data goes by UDP", Duration::from_secs(20), || {
        ping(from.host, target)?;
        ensure!(n_sent()? > before, "none yet");
        ensure_relayed(from, to)
    })
}

#[test]
fn data_goes_to_the_relay_by_udp_where_that_passes() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        lab.block_udp_between(lab.host("beta")?, lab.host("gamma")?)?;
        let (mut coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let target = gamma.ipv4()?;
        time_until("the first packet comes back", FIRST_DATA, || {
            ping(beta.host, target)
        })?;
        wait_udp(beta, gamma)?;
        wait_udp(gamma, beta)?;
        ensure_lossless(beta, gamma)?;
        ensure_lossless(gamma, beta)?;
        // UDP passes no more in the middle of it: the links carry on.
        lab.block_udp()?;
        time_until("data passes by the links", DATA_AGAIN, || {
            ping(beta.host, target)
        })?;
        wait_until(
            "nothing is tried by UDP any more",
            Duration::from_secs(10),
            || {
                ensure_lossless(beta, gamma)?;
                ensure_lossless(gamma, beta)
            },
        )?;
        ensure_relayed(beta, gamma)?;
        // The relay is killed and comes back, and so does UDP.
        lab.pass_udp()?;
        coordinator.kill();
        coordinator.restart()?;
        time_until("data passes again", DATA_AGAIN, || ping(beta.host, target))?;
        wait_udp(beta, gamma)?;
        ensure_lossless(beta, gamma)
    })
}

#[test]
fn a_node_behind_an_http_proxy_is_of_the_mesh() -> Result<()> {
    scenario(&["control", "proxy", "beta", "gamma"], |lab| {
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable"])?;
        let (proxy, inside) = (lab.host("proxy")?, lab.host("beta")?);
        lab.confine(inside, proxy)?;
        let address = format!("{}:3128", proxy.ipv4);
        let mut command = proxy.command(tool::program("connect-proxy")?);
        command.arg(&address);
        let _proxy = proxy.spawn("connect-proxy", command)?;
        let beta = Node::start_behind(inside, Some(format!("http://{address}")))?;
        wait_until(
            "it joins through the proxy",
            Duration::from_secs(10),
            || ensure_success("up", &beta.ctl(&["up", "--auth-key", &key])?),
        )?;
        let gamma = Node::join(lab.host("gamma")?, &key)?;
        let target = gamma.ipv4()?;
        time_until("the first packet comes back", FIRST_DATA, || {
            ping(beta.host, target)
        })?;
        ensure_relayed(&beta, &gamma)?;
        ensure_lossless(&gamma, &beta)
    })
}

#[test]
fn a_relay_that_stands_alone_carries_on_without_the_coordinator() -> Result<()> {
    scenario(&["control", "relay", "beta", "gamma"], |lab| {
        lab.block_udp()?;
        let (mut coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let host = lab.host("relay")?;
        let _relay = coordinator.start_relay(host, "tokyo", &nodes, Duration::from_secs(10))?;
        let target = gamma.ipv4()?;
        time_until("the first packet comes back", FIRST_DATA, || {
            ping(beta.host, target)
        })?;
        // The coordinator's own relay goes with it.
        coordinator.kill();
        let since = Instant::now();
        time_until("data passes by the other relay", DATA_AGAIN, || {
            ping(beta.host, target)
        })?;
        ensure_relayed(beta, gamma)?;
        ensure!(since.elapsed() < DATA_AGAIN * 2, "it took too long");
        ensure_lossless(beta, gamma)
    })
}

#[test]
fn a_node_that_offers_a_relay_carries_for_its_mesh_as_long_as_it_does() -> Result<()> {
    scenario(&["control", "beta", "gamma", "delta"], |lab| {
        lab.block_udp()?;
        let (mut coordinator, nodes) = crate::mesh(lab, &["beta", "gamma", "delta"])?;
        let [beta, gamma, delta] = nodes.as_slice() else {
            unreachable!("three hosts were named")
        };
        let host = delta.host;
        // Not reached, it is not named, and its owner is told what to do.
        host.sh("nft add table inet shut
            nft 'add chain inet shut input { type filter hook input priority 0; }'
            nft add rule inet shut input tcp dport 41821 reject with tcp reset")?;
        delta.ctl_ok(&["set", "relay=on"])?;
        wait_until(
            "it is told that it is not reached",
            Duration::from_secs(10),
            || {
                let said = stdout(&delta.ctl(&["status"])?);
                ensure!(said.contains("open TCP and UDP port 41821"), "{said}");
                Ok(())
            },
        )?;
        ensure!(!beta.knows_relay("delta")?, "it is named all the same");
        host.sh("nft delete table inet shut")?;
        wait_until("the mesh knows the relay", Duration::from_secs(40), || {
            ensure!(
                beta.knows_relay("delta")? && gamma.knows_relay("delta")?,
                "not yet"
            );
            let said = stdout(&delta.ctl(&["status"])?);
            ensure!(!said.contains("41821"), "{said}");
            Ok(())
        })?;
        // The coordinator's own relay goes with it.
        let target = gamma.ipv4()?;
        time_until("the first packet comes back", FIRST_DATA, || {
            ping(beta.host, target)
        })?;
        coordinator.kill();
        time_until("data passes by the node's relay", DATA_AGAIN, || {
            ping(beta.host, target)
        })?;
        let path = beta.path(target)?;
        ensure!(
            matches!(&path, PathStatus::Relayed { name, .. } if name == "delta"),
            "the path is {path:?}"
        );
        ensure_lossless(beta, gamma)?;
        ensure!(
            delta.metric("meshd_offered_relay_datagrams_total")? >= 400.0,
            "it carried less than that"
        );
        coordinator.restart()?;
        wait_until(
            "the mesh knows the relay again",
            Duration::from_secs(40),
            || {
                ensure!(
                    coordinator.log().matches("a node offers a relay").count() >= 2,
                    "not yet"
                );
                Ok(())
            },
        )?;
        delta.ctl_ok(&["set", "relay=off"])?;
        wait_until("it is taken out", Duration::from_secs(10), || {
            ensure!(!beta.knows_relay("delta")?, "it is still named");
            Ok(())
        })?;
        time_until("data passes by the coordinator's", DATA_AGAIN, || {
            ping(beta.host, target)
        })?;
        Ok(())
    })
}
