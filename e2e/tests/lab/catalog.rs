//! What is shared reaches everybody, and what is not shared no longer does not.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::model::{LlamaServer, Ollama};
use e2e::net::scenario;
use e2e::probe::{Request, dig};
use e2e::wait::wait_until;

use crate::{ensure_gone, ensure_resolves, mesh};

const PROMISED: Duration = Duration::from_secs(5);

#[test]
fn a_model_pulled_or_removed_on_a_host_is_seen_by_all_in_five_seconds() -> Result<()> {
    scenario(&["control", "beta", "gamma", "delta"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma", "delta"])?;
        let [beta, gamma, delta] = nodes.as_slice() else {
            unreachable!("three hosts were named")
        };
        let tiny = LlamaServer::start(gamma.host, "tiny", 9001)?;
        let other = LlamaServer::start(gamma.host, "other", 9002)?;
        let ollama = Ollama::start(
            gamma.host,
            "127.0.0.1:11434",
            &[("tiny", &tiny)],
            &[("other:7b", &other)],
        )?;
        gamma.share()?;
        for guest in [beta, delta] {
            guest.wait_model("tiny", PROMISED)?;
            ensure_gone(guest, "other-7b.proxima")?;
        }
        ollama.pull("other:7b")?;
        wait_until("the pulled model is everywhere", PROMISED, || {
            for guest in [beta, delta] {
                for name in ["other-7b.proxima", "other.7b.proxima", "other.proxima"] {
                    ensure_resolves(guest, name, gamma)?;
                }
                let list = Request::get("http://ollama.proxima:11434/api/tags").send(guest.host)?;
                ensure!(list.body.contains("other:7b"), "{list:?}");
            }
            Ok(())
        })?;
        ollama.delete("other:7b")?;
        wait_until("the removed model is nowhere", PROMISED, || {
            for guest in [beta, delta] {
                ensure_gone(guest, "other-7b.proxima")?;
                let list = Request::get("http://ollama.proxima:11434/api/tags").send(guest.host)?;
                ensure!(!list.body.contains("other:7b"), "{list:?}");
            }
            Ok(())
        })?;
        ensure_resolves(beta, "tiny.proxima", gamma)?;

        gamma.ctl_ok(&["share", "off"])?;
        wait_until("nothing is shared", PROMISED, || {
            ensure_gone(beta, "tiny.proxima")
        })
    })
}

#[test]
fn two_hosts_of_one_model_answer_together_and_one_takes_over() -> Result<()> {
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
        wait_until("both hosts are named", PROMISED, || {
            let answer = dig(beta.host, None, "tiny.proxima", "A", false)?;
            ensure!(answer.data.len() == 2, "{answer:?}");
            Ok(())
        })?;
        gamma.kill();
        wait_until("only the living one is named", PROMISED, || {
            ensure_resolves(beta, "tiny.proxima", delta)
        })?;
        let body = r#"{"model":"tiny","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;
        let url = "http://ollama.proxima:11434/v1/chat/completions";
        for _ in 0..3 {
            let answer = Request::post(url, body).send(beta.host)?;
            ensure!(
                answer.status == 200 && answer.body.contains("t5"),
                "{answer:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_wish_is_seen_by_hosts_and_a_named_user_has_it_fulfilled() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (_coordinator, nodes) = mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let tiny = LlamaServer::start(gamma.host, "tiny", 9001)?;
        let other = LlamaServer::start(gamma.host, "other", 9002)?;
        let _ollama = Ollama::start(
            gamma.host,
            "127.0.0.1:11434",
            &[("tiny", &tiny)],
            &[("other:7b", &other)],
        )?;
        gamma.share()?;
        beta.wait_model("tiny", PROMISED)?;

        let body = r#"{"model":"other:7b","messages":[{"role":"user","content":"hi"}]}"#;
        let url = "http://ollama.proxima:11434/v1/chat/completions";
        let unknown = Request::post(url, body).send(beta.host)?;
        ensure!(unknown.status == 404, "{unknown:?}");
        let near = Request::post(url, &body.replace("other:7b", "tinny")).send(beta.host)?;
        ensure!(
            near.status == 404 && near.body.contains("tiny"),
            "no near name: {near:?}"
        );
        beta.ctl_ok(&["models", "want", "other:7b"])?;
        let wanted = gamma.ctl_ok(&["share", "suggestions"])?;
        ensure!(
            wanted.contains("other:7b") && wanted.contains("does not have it"),
            "{wanted}"
        );

        let pull = ["models", "pull", "other:7b", "--on", "gamma"];
        let refused = beta.ctl(&pull)?;
        ensure!(refused.status.code() == Some(6), "{refused:?}");
        let user = beta.status()?.node.map(|node| node.user.to_string());
        let users = format!("users:{}", user.unwrap_or_default());
        gamma.ctl_ok(&["share", "set", "--pulls", &users, "--pull-budget", "1MB"])?;
        let small = beta.ctl(&pull)?;
        ensure!(
            small.status.code() == Some(1)
                && String::from_utf8_lossy(&small.stderr).contains("are left of"),
            "{small:?}"
        );
        gamma.ctl_ok(&["share", "set", "--pull-budget", "2MB"])?;
        beta.ctl_ok(&pull)?;
        beta.wait_model("other:7b", PROMISED)?;
        let answer = Request::post(url, body).send(beta.host)?;
        ensure!(answer.status == 200, "{answer:?}");
        let top = beta.ctl_ok(&["top", "--once"])?;
        ensure!(top.contains("gamma") && top.contains("other:7b"), "{top}");
        Ok(())
    })
}
