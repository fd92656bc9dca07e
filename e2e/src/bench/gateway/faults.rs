//! Clients that leave or crawl, model servers that die, hosts that freeze and come back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::super::{Bar, Outcome, ms};
use super::Effort;
use super::stage::{self, PATH, READY, figure, gwbench};
use crate::mesh::{Coordinator, Node};
use crate::net::{Host, Lab};
use crate::probe::first_answer;
use crate::process::Process;
use crate::wait::wait_until;

const N_LEAVING: &str = "64";
const N_SLOW: &str = "500";
const RATE: &str = "20";
/// After so long the host is struck.
const STRIKE: Duration = Duration::from_secs(2);
/// From the strike to the end of the freeze.
const FROZEN: Duration = Duration::from_secs(6);

/// A host with a model server, and a guest.
struct Sides<'lab> {
    host: Node<'lab>,
    guest: Node<'lab>,
    _model: Process,
}

impl<'lab> Sides<'lab> {
    fn start(lab: &'lab Lab, key: &str) -> Result<Self> {
        let guest = Node::join(lab.host("beta")?, key)?;
        let host = Node::join(lab.host("gamma")?, key)?;
        let model = stage::backend(host.host, "127.0.0.1:11434", "a")?;
        host.ctl_ok(&["share", "on", "--slots", "128"])?;
        guest.wait_model("m", READY)?;
        host.wait_model("m", READY)?;
        first_answer(guest.host, host.ipv4()?, READY)?;
        guest.wait_direct(host.ipv4()?, READY)?;
        Ok(Self {
            host,
            guest,
            _model: model,
        })
    }
}

/// Clients that leave, alone and all at once; a model server that dies in mid-stream.
pub(super) fn leave(effort: Effort) -> Result<Outcome> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let sides = Sides::start(&lab, &coordinator.key(&["--reusable"])?)?;
    let own = sides.host.host;
    let service = format!("http://{}:11434{PATH}", sides.host.service_ipv4()?);
    // The stand-in is told what to do where it is.
    let model = "http://127.0.0.1:11434/";
    let mut bars = Vec::new();
    let mut by_case: Vec<(&str, &str, Vec<Option<f64>>)> = vec![
        ("stream_before", "a stream before its first byte", vec![]),
        ("stream_after", "a stream after its first byte", vec![]),
        (
            "whole_before",
            "a whole answer before its first byte",
            vec![],
        ),
        ("whole_after", "a whole answer after its first byte", vec![]),
    ];
    let (mut n_harmed, mut n_silent) = (Vec::new(), Vec::new());
    for _ in 0..effort.n_rounds {
        let report = gwbench(own, &["cancel", &service, model])?;
        for (key, _, rounds) in &mut by_case {
            rounds.push(report[*key].as_f64());
        }
        let report = gwbench(own, &["leave", &service, model, N_LEAVING, "3"])?;
        ensure!(
            report["n_at_work"] == 64,
            "not all were at the model server: {report}"
        );
        ensure!(
            figure(&report, "n_ok")? > 0.0,
            "nobody was answered: {report}"
        );
        n_harmed.push(Some(figure(&report, "n_bad")?));
        let report = gwbench(own, &["die", &service, model])?;
        ensure!(
            report["n_chunks"] == 10,
            "it did not die in mid-stream: {report}"
        );
        let is_told = report["has_error"] == true
            && report["is_whole"] == false
            && report["has_end_mark"] == false;
        n_silent.push(Some(if is_told { 0.0 } else { 1.0 }));
    }
    for (_, what, rounds) in by_case {
        bars.push(Bar::at_most(
            10.0,
            "ms",
            &format!("a client leaves {what}: its model server is told"),
            rounds,
        ));
    }
    bars.push(Bar::at_most(
        0.0,
        "requests",
        "64 clients leave at once: others' requests that fail in the 3 s after",
        n_harmed,
    ));
    bars.push(Bar::at_most(
        0.0,
        "streams",
        "the model server dies in mid-stream: no error event, or a clean end",
        n_silent,
    ));
    let text = format!(
        "Clients that leave, and a model server that dies: {} rounds by the gateway of the host itself.\n\n",
        effort.n_rounds
    );
    Ok(Outcome { text, bars })
}

/// Clients whose heads come by the byte.
pub(super) fn slow() -> Result<Outcome> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let sides = Sides::start(&lab, &coordinator.key(&["--reusable"])?)?;
    let url = format!("http://{}:11434{PATH}", sides.guest.service_ipv4()?);
    let report = gwbench(sides.guest.host, &["slow", &url, N_SLOW, "12"])?;
    ensure!(report["n_open"] == 500, "not all were let in: {report}");
    let n_left = figure(&report, "n_open")? - figure(&report, "n_closed")?;
    let bars = vec![
        Bar::at_most(
            0.0,
            "requests",
            "500 slow heads at a guest's gateway: others' requests that fail",
            vec![Some(figure(&report, "n_bad")?)],
        ),
        Bar::at_most(
            10.0,
            "ms",
            "500 slow heads at a guest's gateway: others' p99",
            vec![report["p99"].as_f64()],
        ),
        Bar::at_most(
            10_000.0,
            "ms",
            "500 slow heads: the last one is closed after",
            vec![report["last_closed"].as_f64().filter(|_| n_left == 0.0)],
        ),
    ];
    Ok(Outcome {
        text: String::new(),
        bars,
    })
}

/// Two hosts of one model: the one that serves is frozen, then killed and started again.
pub(super) fn hosts(effort: Effort) -> Result<Outcome> {
    let lab = Lab::new(&["control", "beta", "gamma", "delta"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let guest = Node::join(lab.host("beta")?, &key)?;
    let mut models = Vec::new();
    let mut hosts = Vec::new();
    for (place, name) in [("gamma", "a"), ("delta", "b")] {
        let host = Node::join(lab.host(place)?, &key)?;
        models.push(stage::backend(host.host, "127.0.0.1:11434", name)?);
        host.ctl_ok(&["share", "on", "--slots", "128"])?;
        host.wait_model("m", READY)?;
        first_answer(guest.host, host.ipv4()?, READY)?;
        guest.wait_direct(host.ipv4()?, READY)?;
        hosts.push((name, host));
    }
    wait_until("the guest knows both hosts", READY, || {
        let told = serde_json::to_string(&guest.models()?)?;
        ensure!(
            ["gamma", "delta"].iter().all(|host| told.contains(host)),
            "{told}"
        );
        Ok(())
    })?;
    let url = format!("http://{}:11434{PATH}", guest.service_ipv4()?);
    let guest = guest.host;
    let (mut out, mut failed, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.n_rounds {
        let before = steady_while(guest, &url, "2", || Ok(now_ms()))?;
        let by_first = before
            .asked
            .iter()
            .filter(|one| one.from.as_deref() == Some("a"));
        let at = usize::from(by_first.count() * 2 < before.asked.len());
        let (name, host) = hosts.get_mut(at).context("two hosts")?;

        let process = host.process()?;
        let struck = steady_while(guest, &url, "10", || {
            std::thread::sleep(STRIKE);
            process.signal("STOP")?;
            let at = now_ms();
            std::thread::sleep(FROZEN);
            process.signal("CONT")?;
            Ok(at)
        })?;
        let frozen = struck.at..struck.at + ms(FROZEN);
        let slow = |one: &&Asked| frozen.contains(&one.at) && one.took > 500.0;
        let last = struck
            .asked
            .iter()
            .filter(slow)
            .map(|one| one.at - struck.at);
        out.push(Some(last.fold(0.0, f64::max)));
        let n_failed = struck.asked.iter().filter(|one| one.from.is_none()).count();
        failed.push(Some(f64::from(u32::try_from(n_failed)?)));

        host.kill();
        let gone = steady_while(guest, &url, "4", || Ok(now_ms()))?;
        ensure!(
            gone.asked
                .iter()
                .all(|one| one.from.as_deref() != Some(*name)),
            "the host answers though it was killed"
        );
        let mut ready = 0.0;
        let killed = steady_while(guest, &url, "12", || {
            host.restart()?;
            ready = now_ms();
            Ok(ready)
        })?;
        let served = killed
            .asked
            .iter()
            .filter(|one| one.from.as_deref() == Some(*name));
        let first = served
            .map(|one| one.at - ready)
            .fold(f64::INFINITY, f64::min);
        back.push(Some(first.max(0.0)).filter(|ms| ms.is_finite()));
    }
    let bars = vec![
        Bar::at_most(
            3_000.0,
            "ms",
            "a host is frozen: the last request that it holds up is asked after",
            out,
        ),
        Bar::at_most(
            0.0,
            "requests",
            "a host is frozen: requests that fail",
            failed,
        ),
        Bar::at_most(
            3_000.0,
            "ms",
            "a host that was killed is started again: its first request after",
            back,
        ),
    ];
    Ok(Outcome {
        text: String::new(),
        bars,
    })
}

/// One question of a steady row; times in milliseconds since 1970.
struct Asked {
    at: f64,
    took: f64,
    from: Option<String>,
}

struct Struck {
    at: f64,
    asked: Vec<Asked>,
}

/// Asks at a steady rate while something happens, which gives its time.
fn steady_while(
    from: &Host,
    url: &str,
    seconds: &str,
    happens: impl FnOnce() -> Result<f64>,
) -> Result<Struck> {
    let (at, report) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| gwbench(from, &["steady", url, RATE, seconds]));
        let at = happens();
        let report = asking
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"));
        anyhow::Ok((at?, report??))
    })?;
    let asked = report.as_array().context("no list")?.iter().map(|one| {
        Ok(Asked {
            at: figure(one, "at_ms")?,
            took: figure(one, "took")?,
            from: one["from"]
                .as_str()
                .map(str::to_owned)
                .filter(|_| one["status"] == 200),
        })
    });
    Ok(Struck {
        at,
        asked: asked.collect::<Result<_>>()?,
    })
}

fn now_ms() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    ms(now.unwrap_or_default())
}
