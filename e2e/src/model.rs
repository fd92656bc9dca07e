//! Model servers on hosts: llama.cpp's own, and the stand-in for Ollama's API in front of it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::net::Host;
use crate::probe::Request;
use crate::process::Process;
use crate::tool;
use crate::wait::wait_until;

/// The 135M model takes a while to load on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// llama.cpp's server with one model.
#[derive(Debug)]
pub struct LlamaServer<'lab> {
    host: &'lab Host,
    process: Process,
    url: String,
}

impl<'lab> LlamaServer<'lab> {
    /// Starts one on a loopback port and waits until it has loaded its model.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &'lab Host, model: &str, port: u16) -> Result<Self> {
        Self::start_as(host, model, model, port)
    }

    /// The same under another name of the model.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_as(host: &'lab Host, model: &str, alias: &str, port: u16) -> Result<Self> {
        Self::launch(host, model, alias, port, &[])
    }

    /// The same with more options of the server's.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_with(host: &'lab Host, model: &str, port: u16, options: &[&str]) -> Result<Self> {
        Self::launch(host, model, model, port, options)
    }

    fn launch(
        host: &'lab Host,
        model: &str,
        alias: &str,
        port: u16,
        more: &[&str],
    ) -> Result<Self> {
        let mut command = host.command(tool::python()?);
        command.arg(tool::llama_server_script());
        command.arg("-m").arg(tool::model(model)?);
        command.args(["--alias", alias, "--host", "127.0.0.1"]);
        command.args(["--port", &port.to_string(), "-t", "1", "-np", "2"]);
        command.args(["--metrics", "--no-webui"]).args(more);
        if model == "embed" {
            command.arg("--embeddings");
        }
        let mut process = host.spawn(&format!("llama-{alias}"), command)?;
        let url = format!("http://127.0.0.1:{port}");
        wait_until("llama-server has its model", READY, || {
            process.ensure_runs()?;
            let answer = Request::get(&format!("{url}/health")).send(host)?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })?;
        Ok(Self { host, process, url })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// One of its figures, `prompt_tokens_total`.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let answer = Request::get(&format!("{}/metrics", self.url)).send(self.host)?;
        let line = format!("llamacpp:{name} ");
        let value = answer
            .body
            .lines()
            .find_map(|text| text.strip_prefix(&line));
        let value = value.with_context(|| format!("no {name}: {answer:?}"))?;
        Ok(value.trim().parse()?)
    }

    /// How many requests it works on.
    ///
    /// # Errors
    /// When it does not tell.
    pub fn n_busy(&self) -> Result<usize> {
        let slots = Request::get(&format!("{}/slots", self.url))
            .send(self.host)?
            .json()?;
        let slots = slots.as_array().context("no slots")?;
        Ok(slots
            .iter()
            .filter(|slot| slot["is_processing"] == true)
            .count())
    }

    /// Kills it without a word.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

/// A server that speaks OpenAI's first calls alone, in front of a llama-server.
#[derive(Debug)]
pub struct OpenAiOnly {
    _process: Process,
}

impl OpenAiOnly {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &Host, listen: &str, server: &LlamaServer<'_>) -> Result<Self> {
        let mut command = host.command(tool::program("openai-only")?);
        command.args(["--listen", listen, "--server", server.url()]);
        let mut process = host.spawn(&format!("openai-only-{}", port_of(listen)), command)?;
        wait_until("the OpenAI server answers", READY, || {
            process.ensure_runs()?;
            let answer = Request::get(&format!("http://{listen}/health")).send(host)?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })?;
        Ok(Self { _process: process })
    }
}

/// The stand-in for Ollama, which notes every request that reaches it.
#[derive(Debug)]
pub struct Ollama<'lab> {
    host: &'lab Host,
    process: Process,
    log: PathBuf,
    url: String,
}

impl<'lab> Ollama<'lab> {
    /// Starts it. `models` are there from the start, `library` can be pulled; both name the llama-server behind.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(
        host: &'lab Host,
        listen: &str,
        models: &[(&str, &LlamaServer<'_>)],
        library: &[(&str, &LlamaServer<'_>)],
    ) -> Result<Self> {
        let log = host.dir().join("ollama-requests.jsonl");
        let mut command = host.command(tool::program("ollama-standin")?);
        command.args(["--listen", listen]).arg("--log").arg(&log);
        for (name, server) in models {
            command.args(["--model", &format!("{name}={}", server.url())]);
        }
        for (name, server) in library {
            command.args(["--library", &format!("{name}={}", server.url())]);
        }
        let mut process = host.spawn("ollama", command)?;
        let port = port_of(listen);
        let url = format!("http://127.0.0.1:{port}");
        wait_until("the Ollama stand-in answers", READY, || {
            process.ensure_runs()?;
            let answer = Request::get(&format!("{url}/")).send(host)?;
            ensure!(answer.body == "Ollama is running", "{answer:?}");
            Ok(())
        })?;
        Ok(Self {
            host,
            process,
            log,
            url,
        })
    }

    /// Every request that reached it, in order.
    ///
    /// # Errors
    /// When a line of its log is not JSON.
    pub fn requests(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().context("the request log")
    }

    /// Pulls a model from its library, as its owner would.
    ///
    /// # Errors
    /// When it is refused.
    pub fn pull(&self, model: &str) -> Result<()> {
        let body = serde_json::json!({ "model": model, "stream": false });
        let url = format!("{}/api/pull", self.url);
        let answer = Request::post(&url, &body.to_string()).send(self.host)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }

    /// Deletes a model, as its owner would.
    ///
    /// # Errors
    /// When it is refused.
    pub fn delete(&self, model: &str) -> Result<()> {
        let body = serde_json::json!({ "model": model });
        let url = format!("{}/api/delete", self.url);
        let mut request = Request::post(&url, &body.to_string());
        "DELETE".clone_into(&mut request.method);
        let answer = request.send(self.host)?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }

    /// Kills it without a word.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

fn port_of(listen: &str) -> &str {
    listen.rsplit(':').next().unwrap_or(listen)
}
