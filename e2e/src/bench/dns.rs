//! Names per second: meshd's resolver beside dnsmasq, with the same names, asked by dnsperf.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::median;
use crate::mesh::{Coordinator, Node};
use crate::model::{LlamaServer, Ollama};
use crate::net::Lab;
use crate::process::{Process, ensure_success, stdout};
use crate::wait::wait_until;

/// A host offers no more.
const N_NAMES: usize = 1_000;
const READY: Duration = Duration::from_secs(20);

/// Measures; gives a table.
///
/// # Errors
/// When a server does not come up.
pub fn run(n_rounds: u32) -> Result<String> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let mut beta = Node::join(lab.host("beta")?, &key)?;
    let gamma = Node::join(lab.host("gamma")?, &key)?;
    let tiny = LlamaServer::start(gamma.host, "tiny", 9001)?;
    let names: Vec<String> = (0..N_NAMES)
        .map(|number| format!("model-{number:04}"))
        .collect();
    let models: Vec<_> = names.iter().map(|name| (name.as_str(), &tiny)).collect();
    let _ollama = Ollama::start(gamma.host, "127.0.0.1:11434", &models, &[])?;
    gamma.share()?;
    let last = names.last().context("no names")?;
    beta.wait_model(last, READY)?;

    let host = beta.host;
    let (own, service, target) = (beta.ipv4()?, beta.service_ipv4()?, gamma.ipv4()?);
    let hosts: String = names
        .iter()
        .map(|name| format!("{target} {name}.proxima\n"))
        .collect();
    let queries: String = names
        .iter()
        .map(|name| format!("{name}.proxima. A\n"))
        .collect();
    std::fs::write(host.dir().join("hosts"), hosts)?;
    std::fs::write(host.dir().join("queries"), queries)?;
    let mut command = host.command("dnsmasq");
    command
        .args([
            "-k",
            "-p",
            "5300",
            "-a",
            "127.0.0.1",
            "--bind-interfaces",
            "-R",
            "-h",
            "--local-ttl=5",
        ])
        .args(["-u", "root", "--pid-file=", "-c", "10000", "--addn-hosts"])
        .arg(host.dir().join("hosts"));
    let mut dnsmasq = host.spawn("dnsmasq", command)?;

    // Its listener on the overlay address, as the service address reaches it by way of the tunnel device.
    let sockets = host.sh(&format!("ss -Hlun src {own}"))?;
    let listener = sockets
        .split_whitespace()
        .find_map(|word| word.strip_prefix(&format!("{own}:")));
    let listener = listener.context("no DNS listener")?.to_owned();
    let mut table = "| server | queries/s, flat out | CPU µs a query | average latency µs, 1 client |\n| --- | --- | --- | --- |\n".to_owned();
    let mut rows: Vec<(&str, Vec<Cell>)> = Vec::new();
    for _ in 0..n_rounds {
        for (name, address, port) in [
            ("dnsmasq", "127.0.0.1".to_owned(), "5300".to_owned()),
            ("meshd, its listener", own.to_string(), listener.clone()),
            (
                "meshd, by the service address",
                service.to_string(),
                "53".to_owned(),
            ),
        ] {
            let process = if name == "dnsmasq" {
                &mut dnsmasq
            } else {
                beta.process()?
            };
            let cell = measure(host, process, &address, &port)?;
            match rows.iter_mut().find(|(other, _)| *other == name) {
                Some((_, cells)) => cells.push(cell),
                None => rows.push((name, vec![cell])),
            }
        }
    }
    for (name, cells) in rows {
        let of = |pick: fn(&Cell) -> f64| median(&cells.iter().map(pick).collect::<Vec<_>>());
        writeln!(
            table,
            "| {name} | {:.0} | {:.1} | {:.0} |",
            of(|cell| cell.per_second),
            of(|cell| cell.cpu_us),
            of(|cell| cell.latency_us)
        )?;
    }
    Ok(table)
}

struct Cell {
    per_second: f64,
    cpu_us: f64,
    latency_us: f64,
}

fn measure(
    host: &crate::net::Host,
    server: &mut Process,
    address: &str,
    port: &str,
) -> Result<Cell> {
    let queries = host.dir().join("queries").display().to_string();
    let dnsperf = |more: &[&str]| -> Result<String> {
        let mut args = vec!["-s", address, "-p", port, "-d", &queries];
        args.extend(more);
        let output = host.run("dnsperf", &args)?;
        ensure_success("dnsperf", &output)?;
        Ok(stdout(&output))
    };
    wait_until("the server answers", READY, || {
        let text = dnsperf(&["-n", "1", "-c", "1", "-q", "1"])?;
        ensure!(number(&text, "Queries lost:")? < 1.0, "{text}");
        Ok(())
    })?;
    let before = server.cpu_time()?;
    let flat = dnsperf(&["-l", "5", "-c", "8", "-q", "100"])?;
    let spent = server.cpu_time()?.saturating_sub(before).as_secs_f64();
    let done = number(&flat, "Queries completed:")?;
    ensure!(flat.contains("NOERROR"), "{flat}");
    let single = dnsperf(&["-l", "2", "-c", "1", "-q", "1"])?;
    Ok(Cell {
        per_second: number(&flat, "Queries per second:")?,
        cpu_us: spent / done.max(1.0) * 1e6,
        latency_us: number(&single, "Average Latency (s):")? * 1e6,
    })
}

fn number(text: &str, label: &str) -> Result<f64> {
    let rest = text
        .split(label)
        .nth(1)
        .with_context(|| format!("no `{label}` in {text}"))?;
    let word = rest.split_whitespace().next().context("no number")?;
    word.parse().with_context(|| word.to_owned())
}
