//! What goes wrong between up and down, and that it heals or is told.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{Coordinator, Node, READY};
use e2e::net::scenario;
use e2e::probe::ping;
use e2e::process::{ensure_success, stderr, stdout};
use e2e::wait::wait_until;
use mesh_proto::local::RunState;

use crate::mesh;

#[test]
fn an_overlay_that_cannot_be_made_is_told_at_once_and_made_when_the_cause_is_gone() -> Result<()> {
    scenario(&["control", "beta"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta"])?;
        let beta = nodes.first().context("a host was named")?;
        let own = beta.ipv4()?;
        beta.ctl_ok(&["down"])?;
        beta.host
            .sh(&format!("ip link add other0 type bridge && ip link set other0 up && ip route add {own}/32 dev other0"))?;
        let refused = beta.ctl(&["up", "--timeout", "20s"])?;
        let said = stderr(&refused);
        ensure!(
            refused.status.code() == Some(1) && said.contains("other0"),
            "{refused:?}"
        );
        beta.host.sh("ip link del other0")?;
        wait_until(
            "the overlay is made after all",
            Duration::from_secs(10),
            || {
                let status = beta.status()?;
                ensure!(status.state == RunState::Running, "{status:?}");
                ensure!(status.problems.is_empty(), "{status:?}");
                Ok(())
            },
        )
    })
}

#[test]
fn a_rotated_key_carries_traffic_and_survives_a_restart() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, mut nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_mut_slice() else {
            unreachable!("two hosts were named")
        };
        let target = gamma.ipv4()?;
        wait_until("the peer answers", Duration::from_secs(5), || {
            ping(beta.host, target)
        })?;
        beta.ctl_ok(&["rotate"])?;
        wait_until("traffic by the new key", Duration::from_secs(10), || {
            ping(beta.host, target)
        })?;
        beta.kill();
        beta.restart()?;
        wait_until("traffic after a restart", Duration::from_secs(10), || {
            ping(beta.host, target)
        })
    })
}

#[test]
fn a_member_that_was_deleted_meanwhile_uses_the_key_and_a_known_one_does_not() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (mut coordinator, nodes) = mesh(lab, &["beta"])?;
        let beta = nodes.first().context("a host was named")?;
        let gamma = Node::start(lab.host("gamma")?)?;
        let address_of = |coordinator: &Coordinator<'_>, name: &str| {
            let nodes = coordinator.nodes()?;
            let node = nodes.iter().find(|node| node.name.as_str() == name);
            Ok::<_, anyhow::Error>(node.with_context(|| format!("{nodes:?}"))?.ipv4)
        };
        let before = beta.ipv4()?;
        beta.ctl_ok(&["down"])?;
        ensure_success("delete", &coordinator.admin(&["node", "delete", "beta"])?)?;
        let key = coordinator.key(&[])?;
        beta.ctl_ok(&["up", "--auth-key", &key])?;
        ensure_has_addresses_and_routes(beta)?;
        let status = beta.status()?;
        ensure!(status.state == RunState::Running, "{status:?}");
        ensure!(
            beta.ipv4()? == address_of(&coordinator, "beta")? && beta.ipv4()? != before,
            "it is up with the address that it had before: {status:?}"
        );
        wait_until("the coordinator is heard", READY, || {
            let status = beta.status()?;
            let is_heard = status
                .coordinator
                .as_ref()
                .is_some_and(|it| it.is_connected);
            ensure!(is_heard && status.problems.is_empty(), "{status:?}");
            Ok(())
        })?;
        let spent = gamma.ctl(&["up", "--auth-key", &key])?;
        ensure!(spent.status.code() == Some(4), "{spent:?}");

        // Known, it keeps what it has, and the key stays good.
        let (own, second) = (beta.ipv4()?, coordinator.key(&[])?);
        beta.ctl_ok(&["up", "--auth-key", &second])?;
        beta.ctl_ok(&["down"])?;
        beta.ctl_ok(&["up", "--auth-key", &second])?;
        ensure!(beta.ipv4()? == own, "{:?}", beta.status()?);
        // With no coordinator in reach it works by its map, and says that the key is not used.
        let third = coordinator.key(&[])?;
        coordinator.kill();
        beta.ctl_ok(&["down"])?;
        let alone = beta.ctl(&["up", "--auth-key", &third])?;
        ensure_success("up without a coordinator", &alone)?;
        ensure!(stderr(&alone).contains("not spent"), "{alone:?}");
        coordinator.restart()?;
        wait_until("the warning goes", Duration::from_secs(30), || {
            let status = beta.status()?;
            ensure!(status.problems.is_empty(), "{status:?}");
            Ok(())
        })?;
        gamma.ctl_ok(&["up", "--auth-key", &second])?;
        gamma.ctl_ok(&["logout"])?;
        gamma.ctl_ok(&["up", "--auth-key", &third]).map(drop)
    })
}

#[test]
fn the_interface_is_whole_when_up_returns() -> Result<()> {
    scenario(&["control", "beta"], |lab| {
        let (coordinator, nodes) = mesh(lab, &["beta"])?;
        let beta = nodes.first().context("a host was named")?;
        ensure_has_addresses_and_routes(beta)?;
        for _ in 0..5 {
            beta.ctl_ok(&["down"])?;
            beta.ctl_ok(&["up"])?;
            ensure_has_addresses_and_routes(beta)?;
        }
        // Refused first, then joined anew with another address, while the map of old is still kept.
        for _ in 0..5 {
            let deleted = coordinator.admin(&["node", "delete", "beta"])?;
            ensure_success("delete", &deleted)?;
            wait_until("it is refused", READY, || {
                let status = beta.status()?;
                ensure!(status.state == RunState::Refused, "{status:?}");
                Ok(())
            })?;
            let key = coordinator.key(&[])?;
            beta.ctl_ok(&["up", "--auth-key", &key])?;
            ensure_has_addresses_and_routes(beta)?;
        }
        Ok(())
    })
}

/// The overlay interface has the addresses that the coordinator gave the node, and the routes to the mesh by them.
fn ensure_has_addresses_and_routes(node: &Node<'_>) -> Result<()> {
    // Asked before `meshctl status`, which would give a late one time.
    let shown = |what: &str| {
        let mut command = node.host.command("ip");
        let output = command.args(what.split(' ')).output()?;
        ensure_success(what, &output)?;
        anyhow::Ok(stdout(&output))
    };
    let addrs = shown("-brief addr show dev proxima0")?;
    let routes = shown("route show dev proxima0")? + &shown("-6 route show dev proxima0")?;
    let status = node.status()?;
    let own = status.node.as_ref().context("it is no member")?;
    ensure!(
        addrs.contains(&format!("{}/32", own.ipv4)) && addrs.contains(&format!("{}/128", own.ipv6)),
        "{addrs} {status:?}"
    );
    ensure!(
        routes.contains(&format!("src {}", own.ipv4))
            && routes.contains(&format!("src {}", own.ipv6)),
        "{routes} {status:?}"
    );
    Ok(())
}
