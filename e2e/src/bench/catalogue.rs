//! A catalogue of a thousand hosts with twenty models each: what it costs a guest, and how soon a change is known.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Bar, Outcome, ms};
use crate::mesh::{Coordinator, Node};
use crate::net::Lab;
use crate::process::Process;
use crate::tool;
use crate::wait::{time_until, wait_until};

const N_HOSTS: usize = 1_000;
const N_MODELS: usize = 20;
/// Members besides the two real nodes that follow their maps.
const N_READERS: usize = 30;
/// Different models, as hosts in groups of fifty have the same.
const N_ENTRIES: usize = 400;
/// Each join and each offer is told to all who follow the map: a crowd that joins at once takes its time.
const READY: Duration = Duration::from_secs(900);
const LIMIT: Duration = Duration::from_secs(30);

/// Measures.
///
/// # Errors
/// When a node does not come up, or a change is not known at all.
pub fn run(n_rounds: u32) -> Result<Outcome> {
    let lab = Lab::new(&["control", "beta", "gamma", "hosts"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let mut guests = [
        Node::join(lab.host("beta")?, &key)?,
        Node::join(lab.host("gamma")?, &key)?,
    ];
    let host = lab.host("hosts")?;
    let mut command = host.command(tool::program("hosts")?);
    let [hosts, models, readers] = [N_HOSTS, N_MODELS, N_READERS].map(|n| n.to_string());
    command.args([&key, &hosts, &models, &readers]);
    let mut crowd = host.spawn("hosts", command)?;
    let ((), ready) = time_until("all hosts are in the catalogue", READY, || {
        crowd.ensure_runs()?;
        for guest in &guests {
            let n = guest.models()?.models.len();
            ensure!(n >= N_ENTRIES, "{n} models");
        }
        Ok(())
    })?;
    let (mut by_guests, mut by_readers) = (Vec::new(), Vec::new());
    let first = n_changes(&crowd);
    for number in first..first + usize::try_from(n_rounds)? {
        let news = format!("news{number}");
        let mut known = Vec::new();
        for guest in &guests {
            wait_until("the change is known", LIMIT, || {
                let said = guest.ctl(&["models", &news, "--json"])?;
                let said = String::from_utf8_lossy(&said.stdout).into_owned();
                ensure!(said.contains(&format!("\"{news}:1b\"")), "{said}");
                Ok(())
            })?;
            known.push(SystemTime::now().duration_since(UNIX_EPOCH)?);
        }
        let change = wait_until("all readers know", LIMIT, || {
            crowd.ensure_runs()?;
            change(&crowd, number)
        })?;
        let at = change["at_ms"].as_f64().context("no time")?;
        let last = known.iter().max().context("two guests")?;
        by_guests.push(Some(ms(*last) - at));
        by_readers.push(change["took_ms"].as_f64());
    }
    let mut rss_mib = Vec::new();
    for guest in &mut guests {
        rss_mib.push(Some(guest.process()?.rss_mib()?));
    }
    let text = format!(
        "{N_HOSTS} hosts with {N_MODELS} models each; {N_READERS} of them and two real nodes follow the map. They joined 16 at a time, and all models were in the catalogue after {:.0} s.\n",
        ready.as_secs_f64()
    );
    let bars = vec![
        Bar::at_most(
            40.0,
            "MiB",
            "a guest of 1,000 hosts × 20 models: memory (RSS) of its meshd",
            rss_mib,
        ),
        Bar::at_most(
            5_000.0,
            "ms",
            "a host offers one model more: the real guests know",
            by_guests,
        ),
        Bar::at_most(
            5_000.0,
            "ms",
            "a host offers one model more: the last of all others knows",
            by_readers,
        ),
    ];
    Ok(Outcome { text, bars })
}

fn n_changes(crowd: &Process) -> usize {
    crowd.log().matches("took_ms").count()
}

/// What was told of a change.
fn change(crowd: &Process, number: usize) -> Result<Value> {
    let name = format!("\"news{number}:1b\"");
    let log = crowd.log();
    let line = log.lines().find(|line| line.contains(&name));
    Ok(serde_json::from_str(line.context("not yet")?)?)
}
