//! Unmodified clients chat with a model by its name and by `ollama.proxima`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::Node;
use e2e::model::{LlamaServer, Ollama};
use e2e::net::scenario;
use e2e::probe::{Request, counted};
use e2e::process::{ensure_success, stdout};
use e2e::tool;
use e2e::wait::wait_until;
use serde_json::Value;

use crate::mesh;

const PROMISED: Duration = Duration::from_secs(5);

/// Runs one of the Python clients; it prints one JSON object with what it saw.
fn client(node: &Node<'_>, script: &str, base_url: &str, model: &str) -> Result<Value> {
    let script = tool::client_script(script);
    let output = node.host.run(
        tool::python()?,
        &[&script.to_string_lossy(), base_url, model],
    )?;
    ensure_success(&format!("{} {base_url}", script.display()), &output)?;
    serde_json::from_slice(&output.stdout).with_context(|| stdout(&output))
}

/// What the host's models are behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Ollama,
    LlamaAlone,
}

/// Plays with a guest and a host that shares one model, which the guest has heard of.
fn with_host(
    server: Server,
    model: &str,
    test: impl FnOnce(&Node<'_>, &Node<'_>, &LlamaServer<'_>) -> Result<()>,
) -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [guest, host] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let (port, has_ollama) = match server {
            Server::Ollama => (9001, true),
            Server::LlamaAlone => (8080, false),
        };
        let llama = LlamaServer::start(host.host, model, port)?;
        let served = [(model, &llama)];
        let _ollama = has_ollama
            .then(|| Ollama::start(host.host, "127.0.0.1:11434", &served, &[]))
            .transpose()?;
        host.share()?;
        guest.wait_model(model, PROMISED)?;
        test(guest, host, &llama)
    })
}

#[test]
fn openai_and_ollama_clients_list_and_stream() -> Result<()> {
    with_host(Server::Ollama, "tiny", |beta, gamma, _| {
        // From the guest, and on the host itself, whose own gateway serves it too.
        for node in [beta, gamma] {
            for base in [
                "ollama.proxima:11434",
                "tiny.proxima:11434",
                "ollama.proxima",
                "tiny.proxima",
            ] {
                if base.starts_with("tiny") && std::ptr::eq(node, gamma) && !base.contains(':') {
                    continue;
                }
                for script in ["openai_client.py", "ollama_client.py"] {
                    let seen = client(node, script, &format!("http://{base}"), "tiny")
                        .with_context(|| format!("from {}", node.host.name()))?;
                    let names = seen["models"].to_string();
                    ensure!(names.contains("tiny"), "{script} {base}: {seen}");
                    for key in ["streamed", "whole"] {
                        let text = seen[key].as_str().context("no text")?;
                        ensure!(counted(text, 't')? == 64, "{script} {base} {key}: {seen}");
                    }
                    let n_chunks = seen["n_chunks"].as_u64().unwrap_or(0);
                    ensure!(
                        n_chunks >= 32,
                        "{script} {base}: it came in {n_chunks} pieces"
                    );
                    ensure!(seen["n_prompt_tokens"] == 23, "{script} {base}: {seen}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn an_openai_only_server_is_shared_as_it_is() -> Result<()> {
    with_host(Server::LlamaAlone, "tiny", |beta, _, _| {
        for base in ["http://ollama.proxima:11434", "http://tiny.proxima:11434"] {
            let seen = client(beta, "openai_client.py", base, "tiny")?;
            ensure!(
                counted(seen["streamed"].as_str().context("no text")?, 't')? == 64,
                "{seen}"
            );
        }
        let said = beta.ctl_ok(&["run", "tiny", "hi"])?;
        ensure!(counted(&said, 't')? == 512, "{said}");
        Ok(())
    })
}

#[test]
fn meshctl_run_and_curl_stream_from_an_ollama_host() -> Result<()> {
    with_host(Server::Ollama, "tiny", |beta, _, _| {
        let said = beta.ctl_ok(&["run", "tiny", "hi"])?;
        ensure!(counted(&said, 't')? == 512, "{said}");

        for base in [
            "http://tiny.proxima:11434",
            "http://ollama.proxima:11434",
            "http://tiny.proxima",
        ] {
            let body = r#"{"model":"tiny","messages":[{"role":"user","content":"hi"}]}"#;
            let answer = Request::post(&format!("{base}/api/chat"), body).send(beta.host)?;
            ensure!(
                answer.header("content-type") == Some("application/x-ndjson"),
                "{answer:?}"
            );
            let lines = answer.json_lines()?;
            let text: String = lines
                .iter()
                .filter_map(|line| line["message"]["content"].as_str())
                .collect();
            ensure!(counted(&text, 't')? == 512, "{base}: {text}");
            let last = lines.last().context("no lines")?;
            ensure!(
                last["done"] == true && last["done_reason"] == "stop",
                "{base}: {last}"
            );
            ensure!(
                last["prompt_eval_count"] == 23 && last["eval_count"] == 513,
                "{base}: {last}"
            );
        }
        // A model name in the address says which model is meant.
        let body = r#"{"messages":[{"role":"user","content":"hi"}],"stream":false,"options":{"num_predict":3}}"#;
        let answer = Request::post("http://tiny.proxima:11434/api/chat", body).send(beta.host)?;
        ensure!(
            answer.json()?["message"]["content"] == " t1 t2 t3",
            "{answer:?}"
        );

        let missing = beta.ctl(&["run", "no-such-model", "hi"])?;
        ensure!(missing.status.code() == Some(5), "{missing:?}");
        Ok(())
    })
}

#[test]
fn a_client_that_hangs_up_ends_the_generation() -> Result<()> {
    with_host(Server::Ollama, "slow", |beta, _, slow| {
        for base in ["http://slow.proxima:11434", "http://ollama.proxima:11434"] {
            for (path, is_stream) in [
                ("/api/chat", true),
                ("/api/chat", false),
                ("/v1/chat/completions", true),
                ("/v1/chat/completions", false),
            ] {
                let what = format!("{base}{path}, stream {is_stream}");
                let body = format!(
                    r#"{{"model":"slow","stream":{is_stream},"messages":[{{"role":"user","content":"hi"}}]}}"#
                );
                let request =
                    Request::post(&format!("{base}{path}"), &body).within(Duration::from_secs(60));
                let mut curl = request.command(beta.host);
                curl.args([
                    "-H",
                    "Content-Type: application/json",
                    "--data-binary",
                    &body,
                ]);
                let mut curl = beta.host.spawn("curl", curl)?;
                let before = curl.log().len();
                wait_until(
                    &format!("{what}: it generates"),
                    Duration::from_secs(20),
                    || {
                        curl.ensure_runs()?;
                        ensure!(slow.n_busy()? == 1, "nothing is generated");
                        ensure!(!is_stream || curl.log().len() > before, "nothing has come");
                        Ok(())
                    },
                )?;
                curl.kill();
                wait_until(&format!("{what}: it stops"), Duration::from_secs(2), || {
                    ensure!(slow.n_busy()? == 0, "it still generates");
                    Ok(())
                })?;
            }
        }
        Ok(())
    })
}
