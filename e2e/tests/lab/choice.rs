//! Which host a request goes to: away from those that are gone, back to those that return, and to the one that knows its prompt.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::Node;
use e2e::model::LlamaServer;
use e2e::net::scenario;
use e2e::probe::{Request, dig};
use e2e::wait::wait_until;
use serde_json::json;

use crate::mesh;

const PROMISED: Duration = Duration::from_secs(5);
/// How soon requests go elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(3);
const GATEWAY: &str = "http://ollama.proxima:11434/v1/chat/completions";

/// Asks with a preference for one host; who answered, and after how long.
fn ask(from: &Node<'_>, preferred: &Node<'_>) -> Result<(String, Duration)> {
    let body = r#"{"model":"tiny","max_tokens":3,"messages":[{"role":"user","content":"hi"}]}"#;
    let began = Instant::now();
    let prefer = format!("X-Proxima-Prefer: {}", preferred.host.name());
    let answer = Request::post(GATEWAY, body)
        .header(&prefer)
        .send(from.host)?;
    ensure!(answer.status == 200, "{answer:?}");
    let host = answer.header("x-proxima-host").context("nobody signed")?;
    Ok((host.to_owned(), began.elapsed()))
}

/// A host has just gone: no request may take long, and the names forget it in time.
fn ensure_left_out(guest: &Node<'_>, gone: &Node<'_>, how: &str) -> Result<()> {
    let (began, own) = (Instant::now(), gone.host.name());
    let addr = gone_addr(gone);
    let mut is_named = true;
    while began.elapsed() < ELSEWHERE || is_named {
        ensure!(
            began.elapsed() < PROMISED,
            "{how}: still named after {:?}",
            began.elapsed()
        );
        let (host, took) = ask(guest, gone)?;
        ensure!(took < ELSEWHERE, "{how}: an answer took {took:?}");
        ensure!(host != own, "{how}: it answered");
        is_named = dig(guest.host, None, "tiny.proxima", "A", false)?
            .data
            .contains(&addr);
    }
    let (_, took) = ask(guest, gone)?;
    ensure!(
        took < Duration::from_secs(1),
        "{how}: it is still tried: {took:?}"
    );
    Ok(())
}

/// The overlay address of a node, which cannot be asked any more, as its host keeps it.
fn gone_addr(node: &Node<'_>) -> String {
    let path = node.host.dir().join("overlay-address");
    std::fs::read_to_string(path).unwrap_or_default()
}

fn ensure_back(guest: &Node<'_>, host: &Node<'_>, how: &str) -> Result<()> {
    let addr = gone_addr(host);
    wait_until(&format!("{how}: it is used again"), PROMISED, || {
        let (answered, _) = ask(guest, host)?;
        ensure!(answered == host.host.name(), "{answered} answers");
        let answer = dig(guest.host, None, "tiny.proxima", "A", false)?;
        ensure!(answer.data.contains(&addr), "not named: {answer:?}");
        Ok(())
    })
}

#[test]
fn a_host_that_is_gone_is_left_out_in_three_seconds_and_used_again_in_five() -> Result<()> {
    scenario(&["control", "beta", "gamma", "delta"], |lab| {
        let (_coordinator, mut nodes) = mesh(lab, &["beta", "gamma", "delta"])?;
        let [beta, gamma, delta] = nodes.as_mut_slice() else {
            unreachable!("three hosts were named")
        };
        let mut servers = Vec::new();
        for node in [&*gamma, &*delta] {
            servers.push(LlamaServer::start(node.host, "tiny", 8080)?);
            node.share()?;
        }
        std::fs::write(
            gamma.host.dir().join("overlay-address"),
            gamma.ipv4()?.to_string(),
        )?;
        ensure_back(beta, gamma, "at first")?;

        gamma.process()?.signal("STOP")?;
        ensure_left_out(beta, gamma, "frozen")?;
        gamma.process()?.signal("CONT")?;
        ensure_back(beta, gamma, "thawed")?;

        lab.isolate(gamma.host)?;
        ensure_left_out(beta, gamma, "black-holed")?;
        lab.heal(gamma.host)?;
        ensure_back(beta, gamma, "healed")?;

        gamma.kill();
        ensure_left_out(beta, gamma, "killed")?;
        gamma.restart()?;
        ensure_back(beta, gamma, "restarted")
    })
}

const N_CONVERSATIONS: usize = 8;
const N_TURNS: usize = 10;

/// Holds all conversations at once, each turn at the URL that `url` picks; what the last answers were.
fn converse(
    guest: &Node<'_>,
    mark: &str,
    url: impl Fn(usize, usize) -> String + Sync,
) -> Result<()> {
    let start = Barrier::new(N_CONVERSATIONS);
    let hold = |number: usize| -> Result<()> {
        let document = format!("{mark} {number}: ").repeat(1_000 / (mark.len() + 4));
        let mut messages = vec![json!({ "role": "system", "content": document })];
        start.wait();
        for turn in 0..N_TURNS {
            let question = format!("Question {turn}?");
            messages.push(json!({ "role": "user", "content": question }));
            let body = json!({ "model": "tiny", "max_tokens": 8, "messages": messages });
            let answer = Request::post(&url(number, turn), &body.to_string()).send(guest.host)?;
            ensure!(answer.status == 200, "{answer:?}");
            let said = answer.json()?["choices"][0]["message"].take();
            ensure!(said["content"].is_string(), "{answer:?}");
            messages.push(said);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let held: Vec<_> = (0..N_CONVERSATIONS)
            .map(|number| scope.spawn(move || hold(number)))
            .collect();
        held.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a conversation panicked"))?
        })
    })
}

/// Tokens of prompts that the servers computed so far, those left out that they still held.
fn n_computed(servers: &[LlamaServer<'_>]) -> Result<f64> {
    let each = servers
        .iter()
        .map(|server| server.metric("prompt_tokens_total"));
    each.sum()
}

#[test]
#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn conversations_stay_with_the_host_that_knows_their_prompt() -> Result<()> {
    let hosts = ["gpu1", "gpu2", "gpu3", "gpu4"];
    scenario(
        &["control", "beta", "gpu1", "gpu2", "gpu3", "gpu4"],
        |lab| {
            let (_coordinator, nodes) = mesh(lab, &["beta", "gpu1", "gpu2", "gpu3", "gpu4"])?;
            let (beta, sharing) = nodes.split_first().context("five nodes")?;
            let mut servers = Vec::new();
            for node in sharing {
                // What a slot let go of is computed again, as Ollama does it.
                let options = ["--cache-ram", "0"];
                servers.push(LlamaServer::start_with(node.host, "tiny", 8080, &options)?);
                node.share()?;
            }
            wait_until("all four are in the catalogue", PROMISED, || {
                let models = beta.models()?.models;
                let n_hosts = models.first().map_or(0, |model| model.hosts.len());
                ensure!(n_hosts == hosts.len(), "only {n_hosts}");
                Ok(())
            })?;

            let before = n_computed(&servers)?;
            converse(beta, "round robin", |number, turn| {
                let host = hosts[(number + turn) % hosts.len()];
                format!("http://tiny.{host}.node.proxima:11434/v1/chat/completions")
            })?;
            let between = n_computed(&servers)?;
            converse(beta, "as it is chosen", |_, _| GATEWAY.to_owned())?;
            let after = n_computed(&servers)?;
            let (in_turns, chosen) = (between - before, after - between);
            let fall = 1.0 - chosen / in_turns;
            println!(
                "prompt tokens computed: {in_turns} in turns, {chosen} as chosen, {fall:.3} less"
            );
            ensure!(fall >= 0.8, "{chosen} of {in_turns}: only {fall:.3} less");
            Ok(())
        },
    )
}
