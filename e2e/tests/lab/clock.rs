//! Nodes whose wall clock is wrong, and is set back or forward while they are down: WireGuard's stamps only ever grow.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::interop::StockPeer;
use e2e::mesh::{Coordinator, Node};
use e2e::net::scenario;
use e2e::probe::ping;
use e2e::wait::time_until;

use crate::mesh;

/// From a node's start with another clock to an answer through the tunnel.
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn a_node_whose_clock_was_set_by_days_or_years_connects_within_five_seconds() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (mut coordinator, mut nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_mut_slice() else {
            unreachable!("two hosts were named")
        };
        let targets = [gamma.ipv4()?, beta.ipv4()?];
        ping(beta.host, targets[0])?;
        for is_coordinator_up in [true, false] {
            if !is_coordinator_up {
                // Nobody says that the node was started anew.
                coordinator.kill();
            }
            for offset in ["+3650d", "-3650d", "+1d", "-1d", "+0d"] {
                // The restarted node speaks first, or the other one does.
                for is_first in [true, false] {
                    beta.set_clock(offset);
                    beta.restart()?;
                    let [to_gamma, to_beta] = targets;
                    let (from, to) = if is_first {
                        (beta.host, to_gamma)
                    } else {
                        (gamma.host, to_beta)
                    };
                    let what = format!(
                        "clock {offset}, coordinator up: {is_coordinator_up}, first word by {}",
                        from.name()
                    );
                    let (_, took) = time_until("an answer", LIMIT * 2, || ping(from, to))
                        .with_context(|| what.clone())?;
                    ensure!(took <= LIMIT, "{what}: an answer after {took:?}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_stock_wireguard_takes_a_node_whose_clock_was_set_back() -> Result<()> {
    scenario(&["control", "beta", "stock"], |lab| {
        let mut coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable"])?;
        let mut beta = Node::join(lab.host("beta")?, &key)?;
        let stock = StockPeer::join(lab.host("stock")?, &key)?;
        let answer = |beta: &Node<'_>| {
            time_until("an answer", LIMIT * 2, || ping(beta.host, stock.ipv4)).map(|(_, took)| took)
        };
        answer(&beta)?;
        // Nobody says that the node was started anew; the other one keeps what it knows, and has no word of its own to say.
        coordinator.kill();
        for offset in ["-1d", "-3650d", "+0d", "-1d"] {
            beta.set_clock(offset);
            beta.restart()?;
            let took = answer(&beta).with_context(|| format!("clock {offset}"))?;
            ensure!(took <= LIMIT, "clock {offset}: an answer after {took:?}");
        }
        // It is the mark that makes the difference.
        beta.kill();
        std::fs::remove_file(beta.host.dir().join("meshd/stamps.mark"))?;
        beta.set_clock("-3650d");
        beta.restart()?;
        beta.wait_running()?;
        ensure!(
            ping(beta.host, stock.ipv4).is_err(),
            "a stamp of ten years ago was taken"
        );
        Ok(())
    })
}
