//! A stock WireGuard as a peer of meshd.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::interop::{StockPeer, Traffic, wait_both_ways};
use e2e::mesh::{Coordinator, Node};
use e2e::net::scenario;
use e2e::wait::{holds_for, wait_until};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn wireguard_go_holds_a_tunnel_through_a_rekey_without_a_second_of_silence() -> Result<()> {
    scenario(&["control", "beta", "stock"], |lab| {
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable"])?;
        let beta = Node::join(lab.host("beta")?, &key)?;
        let host = lab.host("stock")?;
        let mut stock = StockPeer::join(host, &key)?;
        let own = beta.ipv4()?;
        wait_both_ways((beta.host, own), (host, stock.ipv4))?;

        let traffic = [
            Traffic::start(beta.host, stock.ipv4)?,
            Traffic::start(host, own)?,
        ];
        let before = stock.last_handshake()?;
        // Handshakes are told in whole seconds, so the next one must fall into another.
        holds_for("the tunnel", Duration::from_secs(3), || stock.ensure_runs())?;
        stock.force_rekey()?;
        wait_until("a new handshake", Duration::from_secs(5), || {
            ensure!(stock.last_handshake()? > before, "none yet");
            Ok(())
        })?;
        holds_for("the tunnel", Duration::from_secs(4), || stock.ensure_runs())?;
        for traffic in traffic {
            let gaps = traffic.finish()?;
            ensure!(gaps.longest < SECOND, "{gaps:?}");
            ensure!(gaps.n_answers >= 30, "{gaps:?}");
        }
        Ok(())
    })
}
