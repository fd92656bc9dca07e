//! What a gateway adds to a request: meshd beside nginx as a plain proxy, in front of a model server that answers at once.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::median;
use crate::mesh::{Coordinator, Node};
use crate::net::{Host, Lab};
use crate::probe::Request;
use crate::process::{Process, ensure_success};
use crate::tool;
use crate::wait::wait_until;

const READY: Duration = Duration::from_secs(20);
const SECONDS: &str = "2";
const PATH: &str = "/v1/chat/completions";

/// Measures; gives a table.
///
/// # Errors
/// When a server does not come up.
pub fn run(n_rounds: u32) -> Result<String> {
    let lab = Lab::new(&["control", "beta", "gamma"])?;
    let coordinator = Coordinator::start(lab.host("control")?)?;
    let key = coordinator.key(&["--reusable"])?;
    let beta = Node::join(lab.host("beta")?, &key)?;
    let mut gamma = Node::join(lab.host("gamma")?, &key)?;
    let host = gamma.host;
    let _servers = [
        backend(host, "127.0.0.1:11434")?,
        backend(host, "0.0.0.0:9100")?,
    ];
    let nginx = nginx(host)?;
    gamma.ctl_ok(&["share", "on", "--slots", "128"])?;
    beta.wait_model("m", READY)?;
    gamma.wait_model("m", READY)?;
    let (overlay, service) = (gamma.ipv4()?, gamma.service_ipv4()?);
    let url = |authority: String| format!("http://{authority}{PATH}");

    // Where the client is, what it asks, and whose CPU counts.
    let on_host = [
        (
            "on the host, direct",
            url("127.0.0.1:9100".to_owned()),
            Who::Nobody,
        ),
        (
            "on the host, nginx",
            url("127.0.0.1:9201".to_owned()),
            Who::Nginx,
        ),
        (
            "on the host, meshd's gateway",
            url(format!("{service}:11434")),
            Who::Meshd,
        ),
    ];
    let by_tunnel = [
        (
            "from another node, direct",
            url(format!("{overlay}:9100")),
            Who::Meshd,
        ),
        (
            "from another node, nginx",
            url(format!("{overlay}:9201")),
            Who::Nginx,
        ),
        (
            "from another node, the host's door",
            url(format!("{overlay}:11434")),
            Who::Meshd,
        ),
        (
            "from another node, its own gateway and the door",
            url(format!("{service}:11434")),
            Who::Meshd,
        ),
    ];
    let mut table = "| way | p50 ms | added p50 | added p99 | requests/s, 64 clients | CPU s per 1,000 requests | stream: added first byte | added per chunk |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n".to_owned();
    for (from, ways) in [
        (gamma.host, on_host.as_slice()),
        (beta.host, by_tunnel.as_slice()),
    ] {
        let mut cells: Vec<Vec<Cell>> = ways.iter().map(|_| Vec::new()).collect();
        for _ in 0..n_rounds {
            for ((_, url, who), cells) in ways.iter().zip(&mut cells) {
                let process = match who {
                    Who::Nobody => None,
                    Who::Nginx => Some(&nginx),
                    Who::Meshd => Some(&*gamma.process()?),
                };
                cells.push(measure(from, url, process)?);
            }
        }
        let of = |cells: &[Cell], pick: fn(&Cell) -> f64| {
            median(&cells.iter().map(pick).collect::<Vec<_>>())
        };
        let direct = cells.first().context("no rows")?;
        for ((name, _, _), row) in ways.iter().zip(&cells) {
            let added = |pick: fn(&Cell) -> f64| of(row, pick) - of(direct, pick);
            writeln!(
                table,
                "| {name} | {:.3} | {:.3} | {:.3} | {:.0} | {:.3} | {:.3} | {:.3} |",
                of(row, |cell| cell.p50),
                added(|cell| cell.p50),
                added(|cell| cell.p99),
                of(row, |cell| cell.per_second),
                of(row, |cell| cell.cpu_per_thousand),
                added(|cell| cell.first_byte),
                added(|cell| cell.delay)
            )?;
        }
    }
    Ok(table)
}

enum Who {
    Nobody,
    Nginx,
    Meshd,
}

struct Cell {
    p50: f64,
    p99: f64,
    per_second: f64,
    cpu_per_thousand: f64,
    first_byte: f64,
    delay: f64,
}

fn backend(host: &Host, listen: &str) -> Result<Process> {
    let mut command = host.command(tool::program("gwbench")?);
    command.args(["backend", listen]);
    let process = host.spawn("backend", command)?;
    let port = listen.rsplit(':').next().context("no port")?;
    wait_answer(host, &format!("http://127.0.0.1:{port}"))?;
    Ok(process)
}

fn wait_answer(host: &Host, base: &str) -> Result<()> {
    wait_until("the server answers", READY, || {
        let answer = Request::get(&format!("{base}/api/version")).send(host)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

fn nginx(host: &Host) -> Result<Process> {
    let dir = host.dir().display().to_string();
    let config = host.dir().join("nginx.conf");
    std::fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
    upstream model {{ server 127.0.0.1:11434; keepalive 256; keepalive_requests 1000000; }}
    server {{
        listen 9201;
        location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; }}
    }}
}}
"
        ),
    )?;
    let mut command = host.command("nginx");
    command.arg("-c").arg(&config);
    let process = host.spawn("nginx", command)?;
    wait_answer(host, "http://127.0.0.1:9201")?;
    Ok(process)
}

fn measure(from: &Host, url: &str, process: Option<&Process>) -> Result<Cell> {
    let program = tool::program("gwbench")?;
    let gwbench = |what: &str, n_clients: &str| -> Result<Value> {
        let output = from.run(&program, &[what, url, n_clients, SECONDS])?;
        ensure_success("gwbench", &output)?;
        let measured: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(measured["n_bad"] == 0, "{url}: {measured}");
        Ok(measured)
    };
    let cpu = || process.map(Process::cpu_time).transpose();
    let float = |value: &Value, key: &str| {
        value[key]
            .as_f64()
            .with_context(|| format!("no {key} in {value}"))
    };
    let single = gwbench("load", "1")?;
    let before = cpu()?;
    let many = gwbench("load", "64")?;
    let spent = cpu()?.zip(before).map_or(0.0, |(after, before)| {
        after.saturating_sub(before).as_secs_f64()
    });
    let stream = gwbench("stream", "1")?;
    let n = float(&many, "n")?;
    Ok(Cell {
        p50: float(&single, "p50")?,
        p99: float(&single, "p99")?,
        per_second: n / float(&many, "seconds")?,
        cpu_per_thousand: spent / n.max(1.0) * 1_000.0,
        first_byte: float(&stream, "first_p50")?,
        delay: float(&stream, "delay_p50")?,
    })
}
