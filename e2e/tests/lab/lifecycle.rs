//! What goes wrong between up and down, and that it heals or is told.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::net::scenario;
use e2e::probe::ping;
use e2e::process::stderr;
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
