//! The coordinator dies and comes back, or does not.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::control::random_bytes;
use e2e::mesh::{Coordinator, Node, READY};
use e2e::model::LlamaServer;
use e2e::net::scenario;
use e2e::probe::{Request, counted, ping};
use e2e::process::{Process, ensure_success};
use e2e::tool;
use e2e::wait::wait_until;
use mesh_proto::local::RunState;

use crate::{ensure_resolves, mesh};

const N_KILLS: usize = 100;

/// The ids that the flood of joins was told it got.
pub(crate) fn acknowledged(flood: &Process) -> BTreeSet<String> {
    let log = flood.log();
    let whole_lines = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let ids = whole_lines
        .lines()
        .filter_map(|line| line.strip_prefix("joined "));
    ids.map(str::to_owned).collect()
}

/// Ends the flood; gives the ids that it was told it got, all of which the coordinator must know.
pub(crate) fn ended_without_loss(
    mut flood: Process,
    coordinator: &Coordinator<'_>,
) -> Result<BTreeSet<String>> {
    flood.kill();
    let joined = acknowledged(&flood);
    let nodes = coordinator.nodes()?;
    let known: BTreeSet<_> = nodes.iter().map(|node| node.id.to_string()).collect();
    let lost: Vec<_> = joined.difference(&known).collect();
    ensure!(
        lost.is_empty(),
        "{} of {} joins are lost: {lost:?}",
        lost.len(),
        joined.len()
    );
    Ok(joined)
}

#[test]
fn killed_at_a_hundred_random_moments_it_loses_no_acknowledged_join() -> Result<()> {
    scenario(&["control", "beta"], |lab| {
        let mut coordinator = Coordinator::start(lab.host("control")?)?;
        let key = coordinator.key(&["--reusable", "--ttl", "2h"])?;
        let host = lab.host("beta")?;
        let mut command = host.command(tool::program("join-race")?);
        command.args([&key, "flood"]);
        let mut flood = host.spawn("flood", command)?;
        let moments: Vec<u8> = (0..N_KILLS.div_ceil(32))
            .map(|_| random_bytes())
            .collect::<Result<Vec<_>>>()?
            .concat();
        for moment in &moments[..N_KILLS] {
            // The strike falls so many acknowledgements and microseconds after the start of this life.
            let before = acknowledged(&flood).len();
            let wanted = before + 1 + usize::from(moment % 6);
            wait_until("joins go on", READY, || {
                flood.ensure_runs()?;
                let n_joined = acknowledged(&flood).len();
                ensure!(n_joined >= wanted, "{n_joined} of {wanted}");
                Ok(())
            })?;
            std::thread::sleep(Duration::from_micros(u64::from(*moment) * 100));
            coordinator.kill();
            coordinator.start_again()?;
        }
        coordinator.wait_ready()?;
        let joined = ended_without_loss(flood, &coordinator)?;
        ensure!(joined.len() >= N_KILLS, "only {} joins", joined.len());
        let nodes = coordinator.nodes()?;
        let addresses: BTreeSet<_> = nodes.iter().map(|node| node.ipv4).collect();
        ensure!(addresses.len() == nodes.len(), "an address was given twice");
        check_database(&coordinator)
    })
}

fn check_database(coordinator: &Coordinator<'_>) -> Result<()> {
    let script = "import sqlite3, sys, glob
for path in glob.glob(sys.argv[1] + '/*.db') + glob.glob(sys.argv[1] + '/*.sqlite*'):
    if not path.endswith(('-wal', '-shm')):
        (answer,) = sqlite3.connect(path).execute('pragma integrity_check').fetchone()
        assert answer == 'ok', answer
        print(path)";
    let folder = coordinator.state_dir().display().to_string();
    let mut command = Command::new(tool::python()?);
    let output = command.args(["-c", script, &folder]).output()?;
    ensure_success("integrity check", &output)?;
    ensure!(!output.stdout.is_empty(), "no database in {folder}");
    Ok(())
}

#[test]
fn restored_from_an_older_backup_it_is_believed_at_once() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let mut coordinator = Coordinator::start(lab.host("control")?)?;
        let beta = Node::join(lab.host("beta")?, &coordinator.key(&[])?)?;
        let backup = coordinator.state_dir().with_extension("backup");
        let copy = |from: &Path, to: &Path| {
            let _ = std::fs::remove_dir_all(to);
            let output = Command::new("cp").arg("-a").args([from, to]).output()?;
            ensure_success("cp", &output)
        };
        coordinator.kill();
        copy(coordinator.state_dir(), &backup)?;
        // Some more lives that the backup does not know of.
        for _ in 0..3 {
            coordinator.restart()?;
        }
        let gamma = Node::join(lab.host("gamma")?, &coordinator.key(&[])?)?;
        wait_until("the new node is known", READY, || {
            ensure_resolves(&beta, "gamma.node.proxima", &gamma)
        })?;
        coordinator.kill();
        copy(&backup, coordinator.state_dir())?;
        coordinator.restart()?;
        wait_until("the older map is taken", Duration::from_secs(25), || {
            let status = beta.status()?;
            ensure!(status.problems.is_empty(), "{status:?}");
            ensure!(status.peers.is_empty(), "{status:?}");
            Ok(())
        })?;
        wait_until(
            "the forgotten node is told",
            Duration::from_secs(25),
            || {
                let state = gamma.status()?.state;
                ensure!(state == RunState::Refused, "{state:?}");
                Ok(())
            },
        )?;
        gamma.ctl_ok(&["up", "--auth-key", &coordinator.key(&[])?])?;
        wait_until("it is known again", READY, || {
            ensure_resolves(&beta, "gamma.node.proxima", &gamma)
        })
    })
}

#[test]
fn without_it_traffic_names_and_chat_go_on_and_a_rebooted_node_comes_back() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (mut coordinator, mut nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_mut_slice() else {
            unreachable!("two hosts were named")
        };
        let _model = LlamaServer::start(gamma.host, "tiny", 8080)?;
        gamma.share()?;
        beta.wait_model("tiny", Duration::from_secs(5))?;
        let target = gamma.ipv4()?;
        let works = |beta: &Node<'_>, gamma: &Node<'_>| {
            ping(beta.host, target)?;
            ensure_resolves(beta, "gamma.node.proxima", gamma)?;
            ensure_resolves(beta, "tiny.proxima", gamma)?;
            let body =
                r#"{"model":"tiny","max_tokens":20,"messages":[{"role":"user","content":"hi"}]}"#;
            for name in ["tiny.proxima", "ollama.proxima"] {
                let url = format!("http://{name}:11434/v1/chat/completions");
                let answer = Request::post(&url, body).send(beta.host)?;
                let answer = answer.json()?;
                let text = answer["choices"][0]["message"]["content"].as_str();
                ensure!(
                    counted(text.context("no content")?, 't')? == 20,
                    "{name}: {answer}"
                );
            }
            anyhow::Ok(())
        };
        works(beta, gamma).context("with the coordinator")?;
        coordinator.kill();
        works(beta, gamma).context("right after the coordinator died")?;

        // A reboot: the daemon gone without a word, and what it left in the kernel too.
        beta.kill();
        beta.host.sh("ip link del proxima0 2>/dev/null || true")?;
        beta.restart()?;
        beta.wait_running()?;
        wait_until("the rebooted node is back", Duration::from_secs(5), || {
            works(beta, gamma)
        })
        .context("without the coordinator")?;
        gamma.kill();
        gamma.restart()?;
        gamma.wait_running()?;
        wait_until("the rebooted host is back", Duration::from_secs(10), || {
            works(beta, gamma)
        })
        .context("without the coordinator, the host rebooted")?;
        let status = beta.status()?;
        ensure!(
            status.coordinator.is_some_and(|one| !one.is_connected),
            "it says that it is connected"
        );

        coordinator.restart()?;
        wait_until(
            "the nodes find the coordinator again",
            Duration::from_secs(30),
            || {
                for node in [&*beta, &*gamma] {
                    let status = node.status()?;
                    ensure!(
                        status.coordinator.is_some_and(|one| one.is_connected),
                        "{}",
                        node.host.name()
                    );
                }
                Ok(())
            },
        )?;
        works(beta, gamma).context("with the coordinator back")
    })
}
