//! A full disk: what is refused, what goes on, and that it heals by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::disk::SmallDisk;
use e2e::mesh::{Coordinator, Node, READY};
use e2e::net::scenario;
use e2e::probe::{Request, ping};
use e2e::process::{ensure_success, stderr, stdout};
use e2e::tool;
use e2e::wait::wait_until;
use mesh_proto::local::RunState;

use crate::coordinator::{acknowledged, ended_without_loss};
use crate::ensure_resolves;

/// The daemon looks every 15 seconds.
const HEALED: Duration = Duration::from_secs(30);

#[test]
fn the_coordinator_refuses_joins_in_words_loses_none_and_heals_without_a_restart() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let control = lab.host("control")?;
        // SQLite's log alone takes four MiB before it begins anew.
        let disk = SmallDisk::mount(&control.dir().join("coordinator"), 16_384)?;
        let mut coordinator = Coordinator::start(control)?;
        let key = coordinator.key(&["--reusable"])?;
        let beta = Node::join(lab.host("beta")?, &key)?;
        let gamma = Node::start(lab.host("gamma")?)?;
        let mut command = gamma.host.command(tool::program("join-race")?);
        command.args([&key, "flood"]);
        let mut flood = gamma.host.spawn("flood", command)?;
        let joins_go_on = |what: &str, flood: &mut e2e::process::Process| {
            let wanted = acknowledged(flood).len() + 5;
            wait_until(what, READY, || {
                flood.ensure_runs()?;
                let n_joined = acknowledged(flood).len();
                ensure!(n_joined >= wanted, "{n_joined} of {wanted}");
                Ok(())
            })
        };
        joins_go_on("joins work", &mut flood)?;

        disk.fill()?;
        wait_until("a join is refused in words", READY, || {
            let refused = gamma.ctl(&["up", "--auth-key", &key, "--timeout", "10s"])?;
            ensure!(refused.status.code() == Some(1), "{refused:?}");
            let said = stderr(&refused);
            ensure!(said.contains("disk full?"), "{said}");
            Ok(())
        })?;
        // At the very end of a disk one small write may still fit where the next does not, until the flood has taken that too.
        wait_until("the trouble is told", READY, || {
            let health = coordinator.admin(&["health"])?;
            let said = stdout(&health) + &stderr(&health);
            ensure!(!health.status.success() && said.contains("full"), "{said}");
            Ok(())
        })?;
        wait_until("programs are told too", READY, || {
            let probe = Request::get(&format!("{}/healthz", coordinator.url));
            let mut probe = probe.command(gamma.host);
            probe.args(["--insecure", "-o", "/dev/null", "-w", "%{http_code}"]);
            let probe = probe.output()?;
            ensure!(stdout(&probe) == "503", "{probe:?}");
            Ok(())
        })?;
        let status = beta.status()?;
        let is_heard = status
            .coordinator
            .as_ref()
            .is_some_and(|it| it.is_connected);
        ensure!(status.state == RunState::Running && is_heard, "{status:?}");

        disk.free()?;
        joins_go_on("joins work again, by themselves", &mut flood)?;
        gamma.ctl_ok(&["up", "--auth-key", &key])?;
        ensure_success("health", &coordinator.admin(&["health"])?)?;
        wait_until("the mesh works", READY, || ping(beta.host, gamma.ipv4()?))?;

        // Killed on the full disk and started there, it says why it cannot run; with room, nothing is missing.
        disk.fill()?;
        let n_said = coordinator.log().len();
        coordinator.start_again()?;
        wait_until("it gives up", READY, || {
            ensure!(coordinator.has_ended()?, "it runs");
            Ok(())
        })?;
        let log = coordinator.log();
        let said = log.get(n_said..).unwrap_or_default();
        ensure!(said.contains("disk is full"), "{said}");
        disk.free()?;
        coordinator.restart()?;
        ended_without_loss(flood, &coordinator)?;
        Ok(())
    })
}

#[test]
fn a_node_goes_on_says_what_is_wrong_and_keeps_its_map_again_when_there_is_room() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let mut coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable"])?;
        let host = lab.host("beta")?;
        let disk = SmallDisk::mount(&host.dir().join("meshd"), 256)?;
        let mut beta = Node::join(host, &key)?;
        let gamma = Node::join(lab.host("gamma")?, &key)?;
        let target = gamma.ipv4()?;
        wait_until("the peer answers", READY, || ping(beta.host, target))?;

        disk.fill()?;
        let mut name = "gamma".to_owned();
        let mut n_renamed = 0;
        let mut rename = |coordinator: &Coordinator<'_>| {
            n_renamed += 1;
            let new = format!("delta{n_renamed}");
            let renamed = coordinator.admin(&["node", "rename", &name, &new])?;
            ensure_success("rename", &renamed)?;
            name = new;
            wait_until("the change is used", READY, || {
                ensure_resolves(&beta, &format!("{name}.node.proxima"), &gamma)
            })?;
            anyhow::Ok(name.clone())
        };
        // The first changes may still find room at the end of what is written already.
        wait_until("the trouble is told", READY, || {
            rename(&coordinator)?;
            let status = beta.status()?;
            let told = status
                .problems
                .iter()
                .find(|problem| problem.code == "state_unwritable");
            let told = told.with_context(|| format!("{status:?}"))?;
            ensure!(told.message.contains("No space left"), "{told:?}");
            ensure!(status.state == RunState::Running, "{status:?}");
            Ok(())
        })?;
        ping(beta.host, target)?;
        ping(gamma.host, beta.ipv4()?)?;
        let share = beta.ctl(&["share", "on"])?;
        let said = stderr(&share);
        ensure!(
            share.status.code() == Some(1) && said.contains("No space left"),
            "{said}"
        );
        // Off is off, and on is on, also where that cannot be written down; the owner hears what it is worth.
        for (verb, state) in [("down", RunState::Stopped), ("up", RunState::Running)] {
            let done = beta.ctl(&[verb])?;
            let said = stderr(&done);
            ensure!(
                done.status.code() == Some(1) && said.contains("No space left"),
                "{verb}: {said}"
            );
            wait_until(verb, READY, || {
                ensure!(beta.status()?.state == state, "{:?}", beta.status()?);
                Ok(())
            })?;
        }
        wait_until("traffic is back", READY, || ping(beta.host, target))?;

        let last = rename(&coordinator)?;
        disk.free()?;
        wait_until("it heals by itself", HEALED, || {
            let status = beta.status()?;
            ensure!(status.problems.is_empty(), "{status:?}");
            Ok(())
        })?;
        // What it kept is whole and new: it starts from it with no coordinator in reach.
        coordinator.kill();
        beta.kill();
        beta.restart()?;
        beta.wait_running()?;
        ensure_resolves(&beta, &format!("{last}.node.proxima"), &gamma)
    })
}
