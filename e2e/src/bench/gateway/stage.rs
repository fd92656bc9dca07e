//! The model server, the gateways before it, and what each of them uses.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::net::Host;
use crate::probe::Request;
use crate::process::{Process, ensure_success};
use crate::tool;
use crate::wait::wait_until;

/// How long a server may take to answer.
pub(super) const READY: Duration = Duration::from_secs(20);
/// LiteLLM imports for half a minute where the core is slow.
const READY_PYTHON: Duration = Duration::from_secs(180);
/// The route that is measured.
pub(super) const PATH: &str = "/v1/chat/completions";

/// This process, and all that it starts, on one core until dropped.
#[derive(Debug)]
pub(super) struct Pinned {
    before: String,
}

impl Pinned {
    pub(super) fn to_one_core() -> Result<Self> {
        let pid = std::process::id().to_string();
        let output = Command::new("taskset").args(["-c", "-p", &pid]).output()?;
        ensure_success("taskset", &output)?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let before = told
            .trim()
            .rsplit(": ")
            .next()
            .context("no list of cores")?;
        let last = before.rsplit([',', '-']).next().context("no core")?;
        pin(last)?;
        Ok(Self {
            before: before.to_owned(),
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(err) = pin(&self.before) {
            tracing::warn!(%err, "still on one core");
        }
    }
}

fn pin(cores: &str) -> Result<()> {
    let pid = std::process::id().to_string();
    let output = Command::new("taskset")
        .args(["-a", "-c", "-p", cores, &pid])
        .output()?;
    ensure_success("taskset", &output)
}

/// Starts the stand-in model server.
pub(super) fn backend(host: &Host, listen: &str, name: &str) -> Result<Process> {
    let mut command = host.command(tool::program("gwbench")?);
    command.args(["backend", listen, name]);
    let process = host.spawn("backend", command)?;
    let port = listen.rsplit(':').next().context("no port")?;
    wait_answer(host, &format!("http://127.0.0.1:{port}/api/version"), READY)?;
    Ok(process)
}

fn wait_answer(host: &Host, url: &str, limit: Duration) -> Result<()> {
    wait_until("the server answers", limit, || {
        let answer = Request::get(url).send(host)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
}

/// nginx as an unbuffered proxy with kept connections.
pub(super) fn nginx(host: &Host) -> Result<Process> {
    let dir = host.dir().display().to_string();
    let config = host.dir().join("nginx.conf");
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000; client_max_body_size 64m; proxy_request_buffering off;
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
    wait_answer(host, "http://127.0.0.1:9201/api/version", READY)?;
    Ok(process)
}

/// HAProxy with one thread, kept connections, and no waiting for more to send.
pub(super) fn haproxy(host: &Host) -> Result<Process> {
    let config = host.dir().join("haproxy.cfg");
    fs::write(
        &config,
        "global
    nbthread 1
    maxconn 4096
defaults
    mode http
    option http-no-delay
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind :9202
    default_backend model
backend model
    http-reuse always
    server one 127.0.0.1:11434
",
    )?;
    let mut command = host.command("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    let process = host.spawn("haproxy", command)?;
    wait_answer(host, "http://127.0.0.1:9202/api/version", READY)?;
    Ok(process)
}

/// LiteLLM's proxy with one worker.
pub(super) fn litellm(host: &Host) -> Result<Process> {
    let config = host.dir().join("litellm.yaml");
    fs::write(
        &config,
        "model_list:
  - model_name: m
    litellm_params:
      model: openai/m
      api_base: http://127.0.0.1:11434/v1
      api_key: none
litellm_settings:
  telemetry: false
  set_verbose: false
",
    )?;
    let mut command = host.command(tool::litellm()?);
    command.arg("--config").arg(&config);
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        "9203",
        "--num_workers",
        "1",
    ]);
    // It fetches its price list from the net otherwise.
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
    command.env("LITELLM_LOG", "ERROR");
    // Without a key it starts only when told so.
    command.env(
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY",
        "true",
    );
    let mut process = host.spawn("litellm", command)?;
    let url = "http://127.0.0.1:9203/health/liveliness";
    wait_until("LiteLLM answers", READY_PYTHON, || {
        process.ensure_runs()?;
        let answer = Request::get(url).send(host)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    Ok(process)
}

/// Runs one of the clients, and gives what it tells.
pub(super) fn gwbench(from: &Host, args: &[&str]) -> Result<Value> {
    let output = from.run(tool::program("gwbench")?, args)?;
    ensure_success(&format!("gwbench {args:?}"), &output)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A figure of a report.
pub(super) fn figure(report: &Value, key: &str) -> Result<f64> {
    let value = report[key].as_f64();
    value.with_context(|| format!("no {key} in {report}"))
}

/// The CPU time of all threads so far, to the nanosecond.
pub(super) fn cpu_time(process: &Process) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{}/task", process.pid()))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let nanos = text.split(' ').next().context("no time")?.parse()?;
        all += Duration::from_nanos(nanos);
    }
    Ok(all)
}

/// Forgets the peak of memory so far.
pub(super) fn reset_peak(process: &Process) -> Result<()> {
    Ok(fs::write(
        format!("/proc/{}/clear_refs", process.pid()),
        "5",
    )?)
}

/// The most memory (RSS) since the last reset, in MiB.
pub(super) fn peak_mib(process: &Process) -> Result<f64> {
    Ok(f64::from(process.memory_kib("VmHWM")?) / 1024.0)
}
