//! Joins made-up machines. `join-race AUTH_KEY N` races N of them for one key and prints how many joined and why the
//! others did not. `join-race AUTH_KEY flood` joins one after the other until it is stopped, whatever happens to the
//! coordinator, and prints each acknowledged id.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::control::{Client, Refusal, random_bytes};
use mesh_proto::auth_key::AuthKey;
use mesh_proto::key::{MachinePrivateKey, NodePrivateKey};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// Connections that are made at the same time before the start; the rest would only wait in the kernel.
const N_DIALS: usize = 64;
const RETRY: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let auth_key: AuthKey = args.next().context("an auth key")?.parse()?;
    let how = args.next().context("a number, or `flood`")?;
    if how == "flood" {
        flood(&auth_key).await?;
    }
    let n_machines: usize = how.parse()?;
    let auth_key = Arc::new(auth_key);
    let start = Arc::new(Barrier::new(n_machines));
    let dials = Arc::new(tokio::sync::Semaphore::new(N_DIALS));
    let mut machines = JoinSet::new();
    for number in 0..n_machines {
        let (auth_key, start, dials) = (
            Arc::clone(&auth_key),
            Arc::clone(&start),
            Arc::clone(&dials),
        );
        machines.spawn(async move {
            let client = {
                let _permit = dials.acquire().await;
                dial(&auth_key).await
            };
            start.wait().await;
            race(client, &auth_key, number).await
        });
    }
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    while let Some(outcome) = machines.join_next().await {
        *counts.entry(outcome?).or_default() += 1;
    }
    println!("{}", serde_json::to_string(&counts)?);
    Ok(())
}

async fn flood(auth_key: &AuthKey) -> Result<Infallible> {
    let mut number = 0_u32;
    loop {
        // Nobody listens while the coordinator is down; it is back soon.
        let Ok(mut client) = dial(auth_key).await else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        number += 1;
        let node_key = NodePrivateKey::from_bytes(random_bytes()?).public();
        let registered = client
            .register(auth_key, node_key, &format!("flood{number}"))
            .await;
        if let Ok(registered) = registered {
            println!("joined {}", registered.node_id);
        }
    }
}

async fn dial(auth_key: &AuthKey) -> Result<Client> {
    let machine_key = MachinePrivateKey::from_bytes(&random_bytes()?);
    Client::connect(auth_key, machine_key).await
}

async fn race(client: Result<Client>, auth_key: &AuthKey, number: usize) -> String {
    let registered = match (client, random_bytes()) {
        (Ok(mut client), Ok(secret)) => {
            let node_key = NodePrivateKey::from_bytes(secret).public();
            client
                .register(auth_key, node_key, &format!("racer{number}"))
                .await
        }
        (Err(err), _) | (_, Err(err)) => Err(Refusal::Other(err)),
    };
    match registered {
        Ok(_) => "joined".to_owned(),
        Err(Refusal::Code(code)) => code,
        Err(Refusal::Other(err)) => format!("error: {err:#}"),
    }
}
