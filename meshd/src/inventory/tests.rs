//! A watcher over servers that come, change and go.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_proto::door::Limit;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

type Answers = Arc<Mutex<BTreeMap<&'static str, Value>>>;

/// A server with an answer a path.
async fn server(
    answers: &Answers,
    header: Option<&'static str>,
) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answers = Arc::clone(answers);
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answers = Arc::clone(&answers);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answers.lock().unwrap().get(request.uri().path()).cloned();
                let mut reply = Response::new(Full::new(Bytes::from(
                    answer.clone().unwrap_or_default().to_string(),
                )));
                match answer {
                    None => *reply.status_mut() = StatusCode::NOT_FOUND,
                    Some(Value::Null) => *reply.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
                    Some(_) => {}
                }
                if let Some(header) = header {
                    reply
                        .headers_mut()
                        .insert(header, HeaderValue::from_static("1"));
                }
                async move { Ok::<_, Infallible>(reply) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    });
    (url, AbortOnDropHandle::new(task))
}

fn ollama(names: &[&str]) -> BTreeMap<&'static str, Value> {
    let models: Vec<Value> = names
        .iter()
        .map(|name| json!({ "name": name, "size": 1 }))
        .collect();
    BTreeMap::from([
        ("/api/version", json!({ "version": "0.33.0" })),
        ("/api/tags", json!({ "models": models })),
        ("/api/ps", json!({ "models": [] })),
    ])
}

fn config(backends: Vec<String>) -> ShareConfig {
    ShareConfig {
        is_on: true,
        backends,
        ..ShareConfig::default()
    }
}

async fn names_become(inventory: &mut Inventory, want: &[&str]) {
    let reached = inventory.offers.wait_for(|offers| {
        offers
            .models
            .iter()
            .map(|offer| offer.model.as_str())
            .eq(want.iter().copied())
    });
    tokio::time::timeout(Duration::from_secs(10), reached)
        .await
        .unwrap_or_else(|_| panic!("{want:?} are not offered"))
        .unwrap();
}

#[tokio::test]
async fn offers_follow_the_server_the_patterns_and_the_switch() {
    let answers: Answers = Arc::new(Mutex::new(ollama(&["tiny:latest", "other:1b"])));
    let (url, task) = server(&answers, None).await;
    let (share_tx, share) = watch::channel(config(vec![url]));
    let mut inventory = Inventory::start(share);
    names_become(&mut inventory, &["other:1b", "tiny:latest"]).await;
    assert_eq!(inventory.status.borrow().backend_statuses()[0].n_models, 2);
    *answers.lock().unwrap() = ollama(&["new", "tiny:latest"]);
    names_become(&mut inventory, &["new", "tiny:latest"]).await;
    share_tx.send_modify(|config| config.models = vec!["ti*".to_owned()]);
    names_become(&mut inventory, &["tiny:latest"]).await;
    assert_eq!(inventory.status.borrow().backends[0].models.len(), 2);
    share_tx.send_modify(|config| config.is_on = false);
    names_become(&mut inventory, &[]).await;
    assert_eq!(**inventory.offers.borrow(), HostOffers::default());
    share_tx.send_modify(|config| config.is_on = true);
    names_become(&mut inventory, &["tiny:latest"]).await;
    let died = Instant::now();
    drop(task);
    names_become(&mut inventory, &[]).await;
    assert!(
        died.elapsed() < Duration::from_secs(3),
        "{:?}",
        died.elapsed()
    );
    let status = inventory.status.borrow().clone();
    assert!(
        status.backends[0]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("nothing listens"))
    );
}

#[tokio::test]
async fn what_is_no_model_server_is_not_taken_for_one() {
    let openai = BTreeMap::from([(
        "/v1/models",
        json!({ "object": "list", "data": [{ "id": "tiny" }] }),
    )]);
    let real: Answers = Arc::new(Mutex::new(openai.clone()));
    let (real_url, _real) = server(&real, None).await;
    let (door_url, _door) = server(
        &Arc::new(Mutex::new(openai.clone())),
        Some("x-proxima-door"),
    )
    .await;
    let (coordinator_url, _coordinator) =
        server(&Arc::new(Mutex::new(openai)), Some("proxima-nonce")).await;
    let (web_url, _web) = server(&Answers::default(), None).await;
    let urls = vec![door_url, coordinator_url, web_url, real_url];
    let (_share_tx, share) = watch::channel(config(urls));
    let mut inventory = Inventory::start(share);
    names_become(&mut inventory, &["tiny"]).await;
    let statuses = inventory.status.borrow().backend_statuses();
    let has_error: Vec<bool> = statuses
        .iter()
        .map(|status| status.error.is_some())
        .collect();
    assert_eq!(has_error, [true, true, true, false]);
    assert!(
        statuses[0]
            .error
            .as_ref()
            .is_some_and(|error| error.contains("Proxima itself"))
    );
}

#[test]
fn a_card_is_shared_without_its_id_and_moving_figures() {
    let gpu = Gpu {
        name: "card".to_owned(),
        uuid: Some("GPU-1".to_owned()),
        memory_total_bytes: Some(24),
        memory_used_bytes: Some(3),
        utilization_percent: Some(50),
        ..Gpu::default()
    };
    let status = InventoryStatus {
        config: config(Vec::new()),
        gpus: vec![gpu],
        ..InventoryStatus::default()
    };
    let told = &status.offers().gpus[0];
    assert_eq!(
        (told.memory_total_bytes, &told.uuid, told.memory_used_bytes),
        (Some(24), &None, None)
    );
}

#[tokio::test]
async fn an_ollama_whose_list_fails_is_not_asked_for_the_other_one() {
    // The other list does not tell which models the vendor's cloud would answer.
    let mut answers = ollama(&[]);
    answers.insert("/api/tags", Value::Null);
    answers.insert("/v1/models", json!({ "data": [{ "id": "stub" }] }));
    let answers = Arc::new(Mutex::new(answers));
    let (url, _server) = server(&answers, None).await;
    assert!(matches!(probe::probe(&url).await, Err(Miss::Silent(_))));
    answers.lock().unwrap().remove("/api/tags");
    assert_eq!(probe::probe(&url).await.unwrap().api, BackendApi::OpenAi);
}

fn limit(who: &str) -> Limit {
    Limit {
        who: who.parse().unwrap(),
        models: "*".to_owned(),
        concurrent: Some(1),
        per_minute: None,
        tokens_per_day: None,
    }
}

#[test]
fn while_the_door_is_closed_the_mesh_hears_of_the_owners_nodes_alone() {
    let open = InventoryStatus {
        config: ShareConfig {
            is_on: true,
            ..ShareConfig::default()
        },
        ..InventoryStatus::default()
    };
    let closed = InventoryStatus {
        closed: Some(Closed::GpuInUse),
        ..open.clone()
    };
    assert_eq!(open.offers().audience, Audience::Everyone);
    assert_eq!(closed.offers().audience, Audience::Mine);
}

#[test]
fn leaving_a_mesh_ends_sharing_and_keeps_what_was_chosen_of_this_machine() {
    let shared = ShareConfig {
        is_on: true,
        models: vec!["llama3*".to_owned()],
        audience: Audience::Users(vec!["anna".parse().unwrap()]),
        n_slots: 7,
        backends: vec!["http://127.0.0.1:9000".to_owned()],
        door: DoorPolicy {
            limits: vec![limit("each"), limit("user:anna")],
            quiet: vec!["22:00-07:00".parse().unwrap()],
            ..DoorPolicy::default()
        },
        pulls: PullPolicy {
            users: vec!["anna".parse().unwrap()],
            budget_bytes: 1,
        },
    };
    let left = shared.after_leaving();
    assert!(!left.is_on);
    // The next mesh may have another anna.
    assert_eq!(left.audience, Audience::Mine);
    assert_eq!(left.door.limits, [limit("each")]);
    assert_eq!(left.door.quiet, shared.door.quiet);
    assert_eq!(left.pulls, PullPolicy::default());
    assert_eq!(
        (left.models, left.n_slots, left.backends),
        (shared.models, 7, shared.backends)
    );
    assert_eq!(
        ShareConfig::default().after_leaving(),
        ShareConfig::default()
    );
}

#[tokio::test]
async fn a_server_is_asked_what_it_speaks() {
    // This one answers what it does not have with 404, to any method.
    let answers: BTreeMap<&'static str, Value> = [
        ("/v1/models", json!({ "data": [] })),
        ("/v1/messages", Value::Null),
    ]
    .into();
    let (url, _server) = server(&Arc::new(Mutex::new(answers)), None).await;
    let authority = url.trim_start_matches("http://");
    assert_eq!(
        probe::spoken(authority, BackendApi::OpenAi).await,
        Some(vec![Protocol::OpenAi, Protocol::Messages])
    );
    assert_eq!(
        probe::spoken(authority, BackendApi::Ollama).await,
        Some(vec![Protocol::Ollama, Protocol::OpenAi])
    );
    assert_eq!(
        probe::spoken("127.0.0.1:1", BackendApi::OpenAi).await,
        None,
        "nobody is there"
    );
}
