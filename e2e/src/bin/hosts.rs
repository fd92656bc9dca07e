//! Fills a mesh with hosts of models: `hosts AUTH_KEY N_HOSTS N_MODELS N_READERS`.
//!
//! Registers made-up machines that each offer models, beat and hold their map stream open, as their agents would; some of them
//! read it. Then, every few seconds, one of the hosts offers one model more; what is printed is when (milliseconds since
//! 1970) and how long it took until the last reader knew.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result is what it prints")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use e2e::control::{Client, MapStream};
use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::BEAT_MS;
use mesh_proto::key::{MachinePrivateKey, NodeKey, NodePrivateKey};
use mesh_proto::netmap::Netmap;
use mesh_proto::share::{Audience, BackendApi, Digest, HostOffers, Offer};
use serde_json::json;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

const N_AT_ONCE: usize = 16;
/// Hosts that offer the same models.
const N_ALIKE: usize = 50;
const LIMIT: Duration = Duration::from_secs(60);
const CHANGE_EACH: Duration = Duration::from_secs(4);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().context(what);
    let auth_key: Arc<AuthKey> = Arc::new(next("an auth key")?.parse()?);
    let n_hosts: usize = next("how many hosts")?.parse()?;
    let n_models: usize = next("how many models each has")?.parse()?;
    let n_readers: usize = next("how many read their maps")?.parse()?;

    let (news, _) = broadcast::channel(16);
    let (seen, all_seen) = mpsc::channel(n_readers.max(1));
    let (mut tasks, mut joining) = (JoinSet::new(), JoinSet::new());
    let mut numbers = 0..n_hosts;
    loop {
        while joining.len() < N_AT_ONCE
            && let Some(number) = numbers.next()
        {
            joining.spawn(Host::join(Arc::clone(&auth_key), number, n_models));
        }
        let Some(host) = joining.join_next().await else {
            break;
        };
        let host = host??;
        tasks.spawn(beat(host.client));
        if (1..=n_readers).contains(&host.number) {
            tasks.spawn(read(host.stream, news.subscribe(), seen.clone()));
        } else {
            tasks.spawn(drain(host.stream));
        }
    }
    let (herald, _) = connect(&auth_key, 0).await?;
    tokio::select! {
        ended = tasks.join_next() => ended.context("no host at all")??,
        done = announce(herald, offers(0, n_models), n_readers, news, all_seen) => done,
    }
}

/// A made-up machine of the mesh.
struct Host {
    number: usize,
    client: Client,
    stream: MapStream,
}

impl Host {
    async fn join(auth_key: Arc<AuthKey>, number: usize, n_models: usize) -> Result<Self> {
        let (mut client, node_key) = connect(&auth_key, number).await?;
        let name = format!("gpu{number}");
        let registered = client.register(&auth_key, node_key, &name).await;
        let registered = registered.map_err(|refusal| refusal.of(&name))?;
        client.report_offers(offers(number, n_models)).await?;
        let (reader, _) = connect(&auth_key, number).await?;
        Ok(Self {
            number,
            client,
            stream: reader.map_stream(registered).await?,
        })
    }
}

/// Another connection of a host.
async fn connect(auth_key: &AuthKey, number: usize) -> Result<(Client, NodeKey)> {
    // Whoever comes back is known by its keys.
    let mut seed = [1; 32];
    for (to, from) in seed.iter_mut().zip(number.to_be_bytes()) {
        *to = from;
    }
    let node_key = NodePrivateKey::from_bytes(seed).public();
    let client = Client::connect(auth_key, MachinePrivateKey::from_bytes(&seed)).await?;
    Ok((client, node_key))
}

async fn beat(mut client: Client) -> Result<()> {
    let mut each = tokio::time::interval(Duration::from_millis(BEAT_MS));
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        each.tick().await;
        client.beat().await?;
    }
}

async fn drain(mut stream: MapStream) -> Result<()> {
    loop {
        stream.skip().await?;
    }
}

/// Makes the changes that are asked for, and tells when all readers knew.
async fn announce(
    mut herald: Client,
    mut own: HostOffers,
    n_readers: usize,
    news: broadcast::Sender<String>,
    mut all_seen: mpsc::Receiver<()>,
) -> Result<()> {
    let mut changes = tokio::time::interval(CHANGE_EACH);
    changes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    println!("{}", json!({ "ready": n_readers }));
    for number in 0.. {
        changes.tick().await;
        let model = format!("news{number}:1b");
        own.models
            .push(Arc::new(Offer::new(&model, BackendApi::Ollama)));
        own.models.sort_by(|a, b| a.model.cmp(&b.model));
        news.send(model.clone()).ok();
        let (start, at) = (
            Instant::now(),
            SystemTime::now().duration_since(UNIX_EPOCH)?,
        );
        herald.report_offers(own.clone()).await?;
        for _ in 0..n_readers {
            let one = tokio::time::timeout(LIMIT, all_seen.recv()).await;
            one.context("a reader does not know")?
                .context("no reader is left")?;
        }
        println!(
            "{}",
            json!({ "model": model, "at_ms": at.as_millis(), "took_ms": start.elapsed().as_secs_f64() * 1e3 })
        );
    }
    Ok(())
}

/// Follows the map, and says when it has what the news is about.
async fn read(
    mut stream: MapStream,
    mut news: broadcast::Receiver<String>,
    seen: mpsc::Sender<()>,
) -> Result<()> {
    let mut wanted: Option<String> = None;
    loop {
        tokio::select! {
            map = stream.next() => drop(map?),
            model = news.recv() => wanted = Some(model?),
        }
        // The map may be faster than the news.
        let map = stream.map();
        if wanted
            .as_ref()
            .is_some_and(|model| map.is_some_and(|map| has(map, model)))
        {
            wanted = None;
            seen.send(()).await?;
        }
    }
}

fn has(map: &Netmap, model: &str) -> bool {
    let mut offers = map.peers.values().flat_map(|peer| &peer.offers.models);
    offers.any(|offer| offer.model == model)
}

/// What a host offers, in the length that Ollama's figures have.
fn offers(number: usize, n_models: usize) -> HostOffers {
    let group = number / N_ALIKE;
    let models = (0..n_models).map(|model| {
        let mut digest = [7; 32];
        for (to, from) in digest
            .iter_mut()
            .zip(group.to_be_bytes().into_iter().chain(model.to_be_bytes()))
        {
            *to = from;
        }
        let name = format!("family{group}-{model:02}:7b-instruct-q4_K_M");
        Arc::new(Offer {
            digest: Some(Digest::from_bytes(digest)),
            size_bytes: 4_683_087_332,
            family: "llama".to_owned(),
            parameter_size: "7.2B".to_owned(),
            quantization: "Q4_K_M".to_owned(),
            context_length: 131_072,
            capabilities: ["completion", "tools"].map(str::to_owned).to_vec(),
            is_loaded: model % 2 == 0,
            modified_at: "2026-11-20T09:00:00.000000000Z".to_owned(),
            ..Offer::new(name, BackendApi::Ollama)
        })
    });
    HostOffers {
        models: models.collect(),
        gpus: Vec::new(),
        audience: Audience::Everyone,
        n_slots: 4,
    }
}
