//! Getting in, and being kept out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use e2e::control::random_bytes;
use e2e::mesh::{Coordinator, Node};
use e2e::net::scenario;
use e2e::probe::{Request, ping};
use e2e::process::{ensure_success, stderr, stdout};
use e2e::tool;
use e2e::wait::wait_until;
use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::code;
use mesh_proto::key::{CoordinatorKey, CoordinatorPrivateKey};
use mesh_proto::local::RunState;
use serde_json::Value;

#[test]
fn nodes_join_with_a_key_and_reach_each_other() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let beta = Node::join(lab.host("beta")?, &coordinator.first_key)?;
        let gamma = Node::join(lab.host("gamma")?, &coordinator.key(&[])?)?;
        for (from, to) in [(&beta, &gamma), (&gamma, &beta)] {
            let target = to.status()?.node.context("not joined")?;
            wait_until("the peer answers", Duration::from_secs(5), || {
                ping(from.host, target.ipv4)?;
                ping(from.host, target.ipv6)
            })?;
            let answer = from.ctl_ok(&["ping", target.name.as_str(), "--json"])?;
            let answer: Value = serde_json::from_str(&answer)?;
            ensure!(answer["schema_version"] == 1, "{answer}");
            let status = from.status()?;
            ensure!(status.state == RunState::Running, "{status:?}");
            let peer = status.peers.iter().find(|peer| peer.name == target.name);
            ensure!(peer.is_some_and(|peer| peer.is_online), "{status:?}");
        }
        ensure!(
            coordinator.nodes()?.len() == 2,
            "{:?}",
            coordinator.nodes()?
        );
        ensure_success("wait", &beta.ctl(&["wait", "--timeout", "5s"])?)
    })
}

#[test]
fn down_and_up_keep_the_identity_and_logout_forgets_it() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let (coordinator, nodes) = crate::mesh(lab, &["beta", "gamma"])?;
        let [beta, gamma] = nodes.as_slice() else {
            unreachable!("two hosts were named")
        };
        let (before, target) = (beta.ipv4()?, gamma.ipv4()?);
        beta.ctl_ok(&["down"])?;
        ensure!(
            beta.status()?.state == RunState::Stopped,
            "{:?}",
            beta.status()?
        );
        ensure!(
            ping(beta.host, target).is_err(),
            "the overlay is still there"
        );
        beta.ctl_ok(&["up"])?;
        ensure!(beta.ipv4()? == before, "the address changed");
        wait_until("traffic is back", Duration::from_secs(5), || {
            ping(beta.host, target)
        })?;
        beta.share()?;
        beta.ctl_ok(&["logout"])?;
        ensure!(
            beta.status()?.state == RunState::NeedsLogin,
            "{:?}",
            beta.status()?
        );
        let share: Value = serde_json::from_str(&beta.ctl_ok(&["share", "--json"])?)?;
        ensure!(
            share["is_on"] == false,
            "it would share in the next mesh: {share}"
        );
        wait_until("the coordinator forgot it", Duration::from_secs(5), || {
            let nodes = coordinator.nodes()?;
            ensure!(nodes.len() == 1, "{nodes:?}");
            Ok(())
        })?;
        let again = beta.ctl(&["up"])?;
        ensure!(again.status.code() == Some(4), "{again:?}");
        Ok(())
    })
}

/// Tries a key that must be refused; gives all that was said.
fn refusal(node: &Node<'_>, auth_key: &str) -> Result<String> {
    let output = node.ctl(&["up", "--auth-key", auth_key, "--timeout", "10s"])?;
    ensure!(!output.status.success(), "it was let in: {output:?}");
    ensure!(output.status.code() != Some(101), "it panicked: {output:?}");
    let json = node.ctl(&["up", "--auth-key", auth_key, "--timeout", "10s", "--json"])?;
    Ok(stderr(&output) + &stdout(&json) + &stderr(&json))
}

#[test]
fn keys_that_are_wrong_damaged_spent_expired_or_forged_are_refused_in_words() -> Result<()> {
    scenario(&["control", "beta", "gamma"], |lab| {
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let _beta = Node::join(lab.host("beta")?, &coordinator.first_key)?;
        let gamma = Node::start(lab.host("gamma")?)?;
        let check = |what: &str, auth_key: &str, wanted: &str| {
            let said = refusal(&gamma, auth_key)?;
            ensure!(
                said.contains(wanted),
                "{what}: `{wanted}` is not in: {said}"
            );
            anyhow::Ok(())
        };

        check("wrong", "letmein", "auth keys begin with `pxk_`")?;
        let damaged = coordinator.first_key.replacen("pxk_", "pxk_a", 1);
        check("damaged", &damaged, "damaged")?;
        check("spent", &coordinator.first_key, code::AUTH_KEY_SPENT)?;

        let short = coordinator.admin_json(&["key", "create", "--ttl", "1s"])?;
        let expires_at = short["expires_at_ms"].as_u64().context("no expiry")?;
        wait_until("the key expires", Duration::from_secs(5), || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
            ensure!(now > u128::from(expires_at) + 10, "not yet");
            Ok(())
        })?;
        let short = short["key"].as_str().context("no key")?;
        check("expired", short, code::AUTH_KEY_EXPIRED)?;

        // Forged by somebody who knows the coordinator, and by somebody with a coordinator of his own.
        let identity = Request::get(&format!("{}/api/v1/identity", coordinator.url));
        let identity = curl_insecure(&identity, &gamma)?;
        let key: CoordinatorKey = identity["coordinator_key"]
            .as_str()
            .context("no key")?
            .parse()?;
        let urls = vec![coordinator.url.clone()];
        let guessed = AuthKey::new(&key, random_bytes()?, [7; 6], urls.clone());
        check("forged", &guessed.reveal(), code::AUTH_KEY_UNKNOWN)?;
        let other = CoordinatorPrivateKey::from_bytes(&random_bytes()?).public();
        let other = AuthKey::new(&other, random_bytes()?, [7; 6], urls);
        let said = refusal(&gamma, &other.reveal())?;
        ensure!(
            !said.contains(code::AUTH_KEY_UNKNOWN),
            "the secret went to a stranger: {said}"
        );
        ensure!(said.contains("coordinator"), "{said}");

        ensure!(gamma.status()?.node.is_none(), "{:?}", gamma.status()?);
        ensure!(
            coordinator.nodes()?.len() == 1,
            "{:?}",
            coordinator.nodes()?
        );
        Ok(())
    })
}

fn curl_insecure(request: &Request, node: &Node<'_>) -> Result<Value> {
    let output = request.command(node.host).arg("--insecure").output()?;
    ensure_success("curl", &output)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_thousand_racing_joins_on_a_one_use_key_give_one_node() -> Result<()> {
    scenario(&["control", "beta"], |lab| {
        let coordinator = Coordinator::start(lab.host("control")?)?;
        let program = tool::program("join-race")?;
        let output = lab
            .host("beta")?
            .run(program, &[&coordinator.first_key, "1000"])?;
        ensure_success("join-race", &output)?;
        let counts: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(counts["joined"] == 1, "{counts}");
        let spent = counts[code::AUTH_KEY_SPENT].as_u64().unwrap_or(0);
        let limited = counts[code::RATE_LIMITED].as_u64().unwrap_or(0);
        ensure!(spent + limited == 999, "{counts}");
        ensure!(spent > 0, "none of them got as far as the key: {counts}");
        ensure!(
            coordinator.nodes()?.len() == 1,
            "{:?}",
            coordinator.nodes()?
        );
        Ok(())
    })
}
