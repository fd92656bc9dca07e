//! Unmodified clients against every kind of host: each call passed where the host's server speaks it, translated where it does not.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::Node;
use e2e::model::{LlamaServer, Ollama, OpenAiOnly};
use e2e::net::scenario;
use e2e::probe::counted;
use e2e::process::{ensure_success, stdout};
use e2e::tool;
use e2e::wait::wait_until;
use mesh_proto::share::Protocol;
use serde_json::{Map, Value, json};

use crate::mesh;

const PROMISED: Duration = Duration::from_secs(5);

/// What one kind of host serves.
#[derive(Debug, Clone, Copy)]
struct Kind {
    model: &'static str,
    /// Of a counting model, the letter of its words.
    letter: Option<char>,
    embed: Option<&'static str>,
    /// A model that calls a tool, at a server of the same kind.
    caller: Option<&'static str>,
}

const KINDS: [Kind; 4] = [
    // Ollama, with a model that counts, one that embeds and one that calls a tool.
    Kind {
        model: "tiny",
        letter: Some('t'),
        embed: Some("embed"),
        caller: Some("caller"),
    },
    // Ollama once more.
    Kind {
        model: "other",
        letter: Some('o'),
        embed: None,
        caller: None,
    },
    // A llama-server with a real model of 135 million parameters, and one that embeds.
    Kind {
        model: "smollm2",
        letter: None,
        embed: Some("embed-llama"),
        caller: Some("caller-llama"),
    },
    // Servers that know OpenAI's first calls alone.
    Kind {
        model: "small",
        letter: Some('s'),
        embed: Some("embed-plain"),
        caller: Some("caller-plain"),
    },
];

/// A client's script, and whether it embeds.
const CLIENTS: [(&str, bool); 4] = [
    ("openai_client.py", true),
    ("ollama_client.py", true),
    ("anthropic_client.py", false),
    ("langchain_client.py", true),
];

#[test]
fn every_client_works_with_every_kind_of_host() -> Result<()> {
    let hosts = ["beta", "eta", "theta", "gamma", "delta", "epsilon", "zeta"];
    let mut all = vec!["control"];
    all.extend(hosts);
    scenario(&all, |lab| {
        let (_coordinator, nodes) = mesh(lab, &hosts)?;
        let [beta, eta, theta, gamma, delta, epsilon, zeta] = nodes.as_slice() else {
            unreachable!("seven hosts were named")
        };
        let tiny = LlamaServer::start(gamma.host, "tiny", 9001)?;
        let embed = LlamaServer::start(gamma.host, "embed", 9002)?;
        let calls_llama = LlamaServer::start_as(gamma.host, "caller", "caller-llama", 8080)?;
        let _ollama = Ollama::start(
            gamma.host,
            "127.0.0.1:11434",
            &[("tiny", &tiny), ("embed", &embed), ("caller", &calls_llama)],
            &[],
        )?;
        let other = LlamaServer::start(delta.host, "other", 9001)?;
        let _second = Ollama::start(delta.host, "127.0.0.1:11434", &[("other", &other)], &[])?;
        let _smollm2 = LlamaServer::start(epsilon.host, "smollm2", 8080)?;
        let _vectors = LlamaServer::start_as(epsilon.host, "embed", "embed-llama", 8000)?;
        let small = LlamaServer::start(zeta.host, "small", 9001)?;
        let plain = LlamaServer::start_as(zeta.host, "embed", "embed-plain", 9002)?;
        let _small = OpenAiOnly::start(zeta.host, "127.0.0.1:8080", &small)?;
        let _plain = OpenAiOnly::start(zeta.host, "127.0.0.1:8000", &plain)?;
        let calls = LlamaServer::start_as(delta.host, "caller", "caller-plain", 9002)?;
        let _calls_plain = OpenAiOnly::start(delta.host, "127.0.0.1:8080", &calls)?;
        for host in [gamma, delta, epsilon, zeta] {
            host.share()?;
        }
        let guests = [beta, eta, theta];
        for guest in guests {
            for kind in KINDS {
                guest.wait_model(kind.model, PROMISED)?;
                for model in [kind.embed, kind.caller].into_iter().flatten() {
                    guest.wait_model(model, PROMISED)?;
                }
            }
        }
        announced(beta)?;
        for (i, client) in CLIENTS.into_iter().enumerate() {
            for (j, kind) in KINDS.into_iter().enumerate() {
                let guest = guests[(i + j) % guests.len()];
                let what = format!("{} of {} for {kind:?}", client.0, guest.host.name());
                run(guest, client, kind).context(what)?;
            }
        }
        measured(beta)
    })
}

/// Guests are told what each host's server speaks by itself.
fn announced(guest: &Node<'_>) -> Result<()> {
    for (model, wanted) in [
        (
            "tiny",
            &[
                Protocol::Ollama,
                Protocol::OpenAi,
                Protocol::Responses,
                Protocol::Messages,
            ][..],
        ),
        (
            "smollm2",
            &[Protocol::OpenAi, Protocol::Responses, Protocol::Messages],
        ),
        ("small", &[Protocol::OpenAi]),
    ] {
        let models = guest.models()?.models;
        let entry = models.iter().find(|entry| entry.model == model);
        let host = entry
            .and_then(|entry| entry.hosts.first())
            .context("no host")?;
        ensure!(host.speaks == wanted, "{model}: {:?}", host.speaks);
    }
    Ok(())
}

/// And, once it has answered, how fast it is.
fn measured(guest: &Node<'_>) -> Result<()> {
    wait_until("the pace of hosts is told", PROMISED, || {
        for entry in guest.models()?.models {
            let is_chat = KINDS.iter().any(|kind| kind.model == entry.model);
            let speeds = entry.hosts.iter().map(|host| host.speed);
            ensure!(
                !is_chat || speeds.flatten().any(|speed| speed.tokens_per_second > 0.0),
                "{entry:?}"
            );
        }
        Ok(())
    })
}

fn run(guest: &Node<'_>, client: (&str, bool), kind: Kind) -> Result<()> {
    let (script, embeds) = client;
    let script = tool::client_script(script);
    let script = script.to_string_lossy();
    let mut args = vec![&*script, "http://ollama.proxima:11434", kind.model];
    let embed = kind.embed.filter(|_| embeds);
    args.extend(embed.into_iter().flat_map(|embed| ["--embed", embed]));
    args.extend(
        kind.caller
            .into_iter()
            .flat_map(|caller| ["--caller", caller]),
    );
    let output = guest.host.run(tool::python()?, &args)?;
    ensure_success("the client", &output)?;
    let seen: Value = serde_json::from_slice(&output.stdout).with_context(|| stdout(&output))?;
    check(&seen, kind).with_context(|| seen.to_string())?;
    ensure!(
        seen.get("embeddings").is_some() == embed.is_some(),
        "embeddings: {seen}"
    );
    ensure!(
        seen.get("calls").is_some() == kind.caller.is_some(),
        "calls: {seen}"
    );
    if let Some(calls) = seen["calls"].as_object() {
        called(calls)?;
    }
    if let Some(rows) = seen["embeddings"].as_array() {
        let is_row = |row: &Value| row.as_u64().is_some_and(|n| n > 1) && *row == rows[0];
        ensure!(rows.len() == 2 && rows.iter().all(is_row), "{rows:?}");
    }
    Ok(())
}

/// The tool was called, whole and streamed, and once more after its result was told.
fn called(calls: &Map<String, Value>) -> Result<()> {
    for (way, calls) in calls {
        let is_it = match way.as_str() {
            "reason" => *calls == "tool_calls" || *calls == "tool_use",
            _ => *calls == json!([["weather", { "city": "Bern" }]]),
        };
        ensure!(is_it, "{way}: {calls}");
    }
    Ok(())
}

fn check(seen: &Value, kind: Kind) -> Result<()> {
    if let Some(names) = seen["models"].as_array() {
        for kind in KINDS {
            let is_it = |name: &Value| {
                name.as_str()
                    .is_some_and(|name| name.starts_with(kind.model))
            };
            ensure!(names.iter().any(is_it), "{} is not listed", kind.model);
        }
    }
    answered(seen, kind)?;
    let n_least = if kind.letter.is_some() { 32 } else { 2 };
    ensure!(
        seen["n_chunks"].as_u64().is_some_and(|n| n >= n_least),
        "it came in too few pieces"
    );
    let responses = &seen["responses"];
    if responses.is_object() {
        answered(responses, kind)?;
        ensure!(
            responses["repeated"] == responses["streamed"],
            "the closing event says something else"
        );
    }
    if let Some(letter) = kind.letter {
        for (key, n_words) in [("completions", 16), ("generated", 64)] {
            if let Some(text) = seen[key].as_str() {
                ensure!(counted(text, letter)? == n_words, "{key}");
            }
        }
        if seen["stop_reason"].is_string() {
            ensure!(seen["stop_reason"] == "max_tokens", "stop_reason");
        }
    }
    if let Some(errors) = seen["errors"].as_object() {
        let unknown = &errors["unknown"];
        ensure!(unknown["status"] == 404, "unknown: {unknown}");
        let words = unknown["message"].as_str().unwrap_or_default();
        ensure!(words.contains("no-such-model"), "unknown: {words}");
        if let Some(wrong) = errors.get("wrong") {
            ensure!(wrong["status"] == 400, "wrong: {wrong}");
        }
    }
    Ok(())
}

/// Whole and streamed, and with the right counts.
fn answered(seen: &Value, kind: Kind) -> Result<()> {
    for key in ["streamed", "whole"] {
        let text = seen[key].as_str().context("no text")?;
        match kind.letter {
            Some(letter) => ensure!(counted(text, letter)? == 64, "{key}: {text}"),
            None => ensure!(!text.trim().is_empty(), "{key} is empty"),
        }
    }
    let (n_in, n_out) = (&seen["n_prompt_tokens"], &seen["n_output_tokens"]);
    if kind.letter.is_some() {
        ensure!(*n_in == 23 && *n_out == 64, "counts {n_in} and {n_out}");
    } else {
        let is_count = |n: &Value| n.as_u64().is_some_and(|n| n > 0);
        ensure!(
            is_count(n_in) && is_count(n_out),
            "counts {n_in} and {n_out}"
        );
    }
    Ok(())
}
