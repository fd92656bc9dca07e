//! Paths that take less than they seem to, and links that take more: each is found out and used.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::Node;
use e2e::net::{Lab, scenario};
use e2e::process::{Process, ensure_success};
use e2e::tool;
use e2e::wait::wait_until;
use mesh_proto::local::{PathStatus, PeerStatus};

/// What is moved, and how long that may take.
const BYTES: &str = "10000000";
const LIMIT: Duration = Duration::from_secs(10);
/// Until a path that takes more is found out: it is asked once a minute or two.
const DIRECT: Duration = Duration::from_secs(5);
const PORT: u16 = 5001;

fn peer(from: &Node<'_>, to: &Node<'_>) -> Result<PeerStatus> {
    let id = to.ipv4()?;
    let status = from.status()?;
    let found = status.peers.into_iter().find(|peer| peer.ipv4 == id);
    found.context("no such peer")
}

fn serve(on: &Node<'_>) -> Result<Process> {
    let mut command = on.host.command(tool::program("bulk")?);
    command.args(["serve", &format!("{}:{PORT}", on.ipv4()?)]);
    let process = on.host.spawn("bulk", command)?;
    wait_until("it serves", Duration::from_secs(5), || {
        let script = format!("ss -Hltn 'sport = {PORT}' | grep -q {PORT}");
        on.host.sh(&script).map(drop)
    })?;
    Ok(process)
}

/// Moves the bytes and gives how long that took.
fn transfer(direction: &str, from: &Node<'_>, to: &Node<'_>) -> Result<Duration> {
    let address = format!("{}:{PORT}", to.ipv4()?);
    let args = [direction, &address, BYTES, "0"];
    let output = from.host.run(tool::program("bulk")?, &args)?;
    ensure_success(&format!("bulk {direction}"), &output)?;
    let said = String::from_utf8_lossy(&output.stdout);
    done_after(&said)?.context("it did not end")
}

fn done_after(said: &str) -> Result<Option<Duration>> {
    let line = said.lines().find_map(|line| line.strip_prefix("done "));
    Ok(line.map(str::parse).transpose()?.map(Duration::from_millis))
}

fn black_hole(lab: &Lab, nodes: &[Node<'_>], mtu: u16) -> Result<()> {
    nodes
        .iter()
        .try_for_each(|node| lab.black_hole(node.host, mtu))
}

#[test]
fn ten_megabytes_pass_a_black_hole_of_any_length_within_ten_seconds() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        for name in ["beta", "gamma"] {
            lab.black_hole(lab.host(name)?, 1280)?;
        }
        let (_coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let _server = serve(gamma)?;
        // The first is there from the start, each of the others from one moment to the next.
        for mtu in [1280, 1499, 1420, 1396, 1341, 1300] {
            black_hole(lab, &nodes, mtu)?;
            for direction in ["up", "down"] {
                let took = transfer(direction, beta, gamma)?;
                ensure!(took <= LIMIT, "{direction} through {mtu}: {took:?}");
            }
            let seen = peer(beta, gamma)?;
            let is_direct = matches!(seen.path, PathStatus::Direct { .. });
            ensure!(is_direct, "through {mtu}: {:?}", seen.path);
            // Where the far end knew a shorter way from before, all passed before this end had to find out.
            wait_until("the path is found to be shorter", DIRECT, || {
                let path_mtu = peer(beta, gamma)?.path_mtu.context("no path MTU")?;
                ensure!(path_mtu + 60 <= mtu, "{path_mtu} through {mtu}");
                Ok(())
            })?;
            // Datagrams that are too long for the path come in fragments.
            for version in ["-4", "-6"] {
                let to = if version == "-4" {
                    seen.ipv4.to_string()
                } else {
                    seen.ipv6.to_string()
                };
                // The first may be lost, and is what the kernel learns by: ping ends with an error that it is told of.
                let ping = format!("ping {version} -q -i 0.2 -s 1390 -c 3 -w 2 {to}");
                let what = format!("long datagrams pass {mtu}");
                wait_until(&what, DIRECT, || beta.host.sh(&ping).map(drop))?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_black_hole_in_the_middle_of_a_transfer_is_survived() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let _server = serve(gamma)?;
        wait_until("the path takes what Ethernet carries", DIRECT, || {
            transfer("up", beta, gamma)?;
            let path_mtu = peer(beta, gamma)?.path_mtu;
            ensure!(path_mtu >= Some(1408), "{path_mtu:?}");
            Ok(())
        })?;
        for (direction, mtu) in [("up", 1400), ("down", 1290)] {
            let address = format!("{}:{PORT}", gamma.ipv4()?);
            let mut command = beta.host.command(tool::program("bulk")?);
            // 153 blocks in three seconds and a bit, if nothing comes between.
            command.args([direction, &address, BYTES, "20"]);
            let process = beta.host.spawn(&format!("bulk-{direction}"), command)?;
            wait_until("it moves", Duration::from_secs(5), || {
                ensure!(process.log().contains("begun"), "{}", process.log());
                Ok(())
            })?;
            black_hole(lab, &nodes, mtu)?;
            wait_until("all is there", LIMIT * 2, || {
                let took = done_after(&process.log())?;
                let took = took.with_context(|| process.log())?;
                ensure!(took <= LIMIT, "{direction} into {mtu}: {took:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_jumbo_link_is_used() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        for name in ["beta", "gamma"] {
            lab.set_link_mtu(lab.host(name)?, 9000)?;
        }
        let (_coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let _server = serve(gamma)?;
        wait_until("the path takes jumbo frames", DIRECT, || {
            transfer("down", beta, gamma)?;
            let path_mtu = peer(beta, gamma)?.path_mtu;
            ensure!(path_mtu >= Some(8900), "{path_mtu:?}");
            Ok(())
        })?;
        let said = beta.ctl_ok(&["status"])?;
        ensure!(said.contains("MTU 89"), "{said}");
        // Whole: that it may not be fragmented is asked for.
        let to = gamma.ipv4()?;
        beta.host
            .sh(&format!("ping -4 -q -c 1 -w 5 -M do -s 8800 {to}"))?;
        // The overlay follows when the links are made smaller, and so does the path.
        for node in &nodes {
            lab.set_link_mtu(node.host, 1500)?;
        }
        wait_until("the overlay is smaller", DIRECT, || {
            let link = beta.host.sh("cat /sys/class/net/proxima0/mtu")?;
            ensure!(link.trim() == "1440", "{link}");
            Ok(())
        })?;
        let took = transfer("up", beta, gamma)?;
        ensure!(took <= LIMIT, "{took:?}");
        let path_mtu = peer(beta, gamma)?.path_mtu;
        ensure!(path_mtu <= Some(1440), "{path_mtu:?}");
        Ok(())
    })
}
