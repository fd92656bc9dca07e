//! meshd dies and comes back; hosts vanish.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::model::LlamaServer;
use e2e::net::scenario;
use e2e::process::ensure_success;
use e2e::wait::{time_until, wait_until};

use crate::{ensure_gone, ensure_resolves, mesh};

#[test]
fn killed_it_repairs_routes_and_names_and_carries_traffic_within_a_second() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, mut nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_mut_slice() else {
            unreachable!("two hosts were named")
        };
        let target = gamma.ipv4()?.to_string();
        let routes = "ip -o address show proxima0 | tr -s ' ' | cut -d' ' -f2-4; ip route; ip -6 route show dev proxima0; ip rule; nft list ruleset";
        wait_until("the peer answers", Duration::from_secs(5), || {
            e2e::probe::ping(beta.host, gamma.ipv4()?)
        })?;
        let before = beta.host.sh(routes)?;
        ensure!(
            before.contains("proxima0"),
            "no route by the overlay: {before}"
        );
        let own = beta.ipv4()?.to_string();
        for round in 1..=4 {
            beta.kill();
            beta.start_again()?;
            // One probe each 20 ms until the first is answered, from the very start of the program; in every other round
            // sent by the peer, which still believes in the session that died.
            let (from, target) = if round % 2 == 1 {
                (beta.host, &target)
            } else {
                (gamma.host, &own)
            };
            let probe = [
                "-n",
                "-q",
                "-i",
                "0.02",
                "-c",
                "1",
                "-w",
                "5",
                target.as_str(),
            ];
            let (output, time) = time_until("traffic", Duration::from_secs(5), || {
                let output = from.run("ping", &probe)?;
                ensure_success("ping", &output)?;
                Ok(output)
            })?;
            ensure!(
                time <= Duration::from_secs(1),
                "round {round}: traffic after {time:?}: {output:?}"
            );
            wait_until("names are back", Duration::from_secs(2), || {
                ensure_resolves(beta, "gamma.node.proxima", gamma)
            })?;
            let after = beta.host.sh(routes)?;
            ensure!(
                sorted(&after) == sorted(&before),
                "before:\n{before}\nafter:\n{after}"
            );
        }
        beta.process()?.terminate(Duration::from_secs(10))?;
        let left = beta.host.sh("ip -o link show; ip route; ip -6 route")?;
        ensure!(
            !left.contains("proxima0"),
            "left behind after a clean end:\n{left}"
        );
        Ok(())
    })
}

fn sorted(text: &str) -> Vec<&str> {
    // Counters move, and the kernel draws a link-local address for each new device.
    let is_steady = |line: &&str| !line.contains("counter") && !line.contains("fe80:");
    let mut lines: Vec<_> = text.lines().map(str::trim).filter(is_steady).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_host_cut_off_silently_leaves_names_and_catalogue_in_five_seconds() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let _model = LlamaServer::start(gamma.host, "tiny", 8080)?;
        gamma.share()?;
        beta.wait_model("tiny", Duration::from_secs(5))?;
        wait_until("the name is there", Duration::from_secs(5), || {
            ensure_resolves(beta, "tiny.proxima", gamma)
        })?;
        lab.isolate(gamma.host)?;
        wait_until("the host is out", Duration::from_secs(5), || {
            ensure_gone(beta, "tiny.proxima")?;
            let models = beta.models()?.models;
            let entry = models.iter().find(|entry| entry.model == "tiny");
            let is_served =
                entry.is_some_and(|entry| entry.hosts.iter().any(|host| host.is_healthy));
            ensure!(!is_served, "{models:?}");
            Ok(())
        })?;
        lab.heal(gamma.host)?;
        wait_until("the host is back", Duration::from_secs(40), || {
            ensure_resolves(beta, "tiny.proxima", gamma)
        })
        .context("after it was connected again")
    })
}
