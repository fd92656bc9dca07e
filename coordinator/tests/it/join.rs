//! Joining: good, spent, expired, revoked and forged auth keys, and proofs that cannot be replayed.

use hyper::{Method, StatusCode};
use mesh_proto::auth_key::AuthKey;
use mesh_proto::control::{self, code};
use mesh_proto::key::{CoordinatorPrivateKey, NodePrivateKey, Purpose};
use mesh_proto::request::RequestProof;
use serde_json::json;

use crate::client::{Mesh, nonce_of, refusal, request};

#[tokio::test]
async fn a_machine_joins_by_the_first_key() {
    let mesh = Mesh::start().await;
    let node = mesh.machine(1);
    let answer = node.register(Some(&mesh.first_key())).await.unwrap();
    assert_eq!((answer.node_id, answer.name.as_str()), (node.id(), "host1"));
    assert_eq!(answer.user_name.as_str(), "admin");
    assert_eq!(answer.coordinator_key, mesh.server().coordinator_key());
    let (_, nodes) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/nodes", None)
        .await;
    assert_eq!(nodes.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_costs_nothing() {
    let mesh = Mesh::start().await;
    let key = mesh.first_key();
    let node = mesh.machine(1);
    let first = node.register(Some(&key)).await.unwrap();
    assert_eq!(node.register(Some(&key)).await.unwrap(), first);
    assert_eq!(node.register(None).await.unwrap(), first);
    let other = mesh.machine(2).register(Some(&key)).await;
    assert_eq!(
        other,
        Err((StatusCode::FORBIDDEN, code::AUTH_KEY_SPENT.to_owned()))
    );
}

#[tokio::test]
async fn bad_auth_keys_are_told_apart() {
    let mesh = Mesh::start().await;
    let refused = |code: &str| Err((StatusCode::FORBIDDEN, code.to_owned()));
    let node = mesh.machine(1);
    assert_eq!(node.register(None).await, refused(code::NOT_REGISTERED));

    let other = CoordinatorPrivateKey::from_bytes(&[1; 32]).public();
    let forged = AuthKey::new(&other, [1; 32], [2; 6], vec![]);
    assert_eq!(
        node.register(Some(&forged)).await,
        refused(code::AUTH_KEY_UNKNOWN)
    );

    let revoked = mesh.key(json!({})).await;
    let path = format!("/api/v1/auth-keys/{}", revoked.prefix());
    assert_eq!(
        mesh.operator().ask(Method::DELETE, &path, None).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        node.register(Some(&revoked)).await,
        refused(code::AUTH_KEY_REVOKED)
    );
    // A right prefix with a wrong secret is not told from a wrong prefix.
    let mut request = node.registration(None);
    let (prefix, _) = revoked
        .secret_text()
        .split_once('_')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    request.auth_secret = Some(forged.secret_text().replace(forged.prefix(), &prefix));
    let answer = node
        .signed(
            Method::POST,
            control::PATH_REGISTER,
            serde_json::to_vec(&request).unwrap(),
        )
        .await;
    assert_eq!(refusal(answer).await.1, code::AUTH_KEY_UNKNOWN);
}

#[tokio::test]
async fn a_key_for_many_lets_many_in_with_its_tags() {
    let mesh = Mesh::start().await;
    let key = mesh
        .key(json!({ "is_reusable": true, "tags": ["tag:lab"] }))
        .await;
    for n in 1..=3 {
        let mut node = mesh.machine(n);
        node.hostname = "Same Name.local".to_owned();
        let answer = node.register(Some(&key)).await.unwrap();
        let expected = if n == 1 {
            "same-name".to_owned()
        } else {
            format!("same-name-{n}")
        };
        assert_eq!(
            (answer.name.as_str(), answer.tags[0].as_str()),
            (expected.as_str(), "tag:lab")
        );
    }
    let (_, keys) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/auth-keys", None)
        .await;
    let used = keys
        .as_array()
        .unwrap()
        .iter()
        .find(|listed| listed["prefix"] == key.prefix())
        .unwrap();
    assert_eq!(used["n_uses"], 3);
}

#[tokio::test]
async fn guessing_is_slowed_down_and_known_machines_are_not() {
    let mesh = Mesh::start().await;
    let node = mesh.join(1).await;
    let stranger = mesh.machine(2);
    let forged = AuthKey::new(&node.coordinator, [1; 32], [2; 6], vec![]);
    for _ in 0..10 {
        assert_eq!(
            stranger.register(Some(&forged)).await.unwrap_err().1,
            code::AUTH_KEY_UNKNOWN
        );
    }
    let limited = stranger.register(Some(&forged)).await;
    assert_eq!(
        limited,
        Err((StatusCode::TOO_MANY_REQUESTS, code::RATE_LIMITED.to_owned()))
    );
    node.register(None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_racing_joins_on_a_one_use_key_make_one_node() {
    let mesh = Mesh::start().await;
    let key = mesh.first_key();
    let mut racers = tokio::task::JoinSet::new();
    for worker in 0..20 {
        let nodes: Vec<_> = (0..50).map(|n| mesh.machine(worker * 50 + n)).collect();
        let key = key.clone();
        racers.spawn(async move {
            let mut n_in = 0;
            for node in nodes {
                match node.register(Some(&key)).await {
                    Ok(_) => n_in += 1,
                    Err((_, code)) => assert!(
                        [code::AUTH_KEY_SPENT, code::RATE_LIMITED].contains(&code.as_str()),
                        "{code}"
                    ),
                }
            }
            n_in
        });
    }
    assert_eq!(racers.join_all().await.into_iter().sum::<u32>(), 1);
    let (_, nodes) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/nodes", None)
        .await;
    assert_eq!(nodes.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_proof_is_good_once_and_for_its_request_alone() {
    let mesh = Mesh::start().await;
    let node = mesh.join(1).await;
    let body = br#"{"revision":{"epoch":1,"version":1}}"#.to_vec();
    let path = control::PATH_BEAT;
    let nonce = node.nonce().await;
    let proof = RequestProof::sign(&node.machine, "POST", path, &body, &nonce).to_header();
    let send = async |path: &str, body: Vec<u8>| {
        node.connect()
            .await
            .send_request(request(Method::POST, path, Some(&proof), body))
            .await
            .unwrap()
    };
    assert_eq!(
        refusal(send(path, b"{}".to_vec()).await).await.1,
        code::BAD_PROOF
    );
    assert_eq!(
        refusal(send(control::PATH_LOGOUT, body.clone()).await)
            .await
            .1,
        code::BAD_PROOF
    );
    assert_eq!(
        send(path, body.clone()).await.status(),
        StatusCode::NO_CONTENT
    );
    let replayed = send(path, body.clone()).await;
    let fresh = nonce_of(&replayed);
    assert_eq!(
        refusal(replayed).await,
        (StatusCode::UNAUTHORIZED, code::BAD_NONCE.to_owned())
    );
    let again = RequestProof::sign(&node.machine, "POST", path, &body, &fresh).to_header();
    let answer = node
        .connect()
        .await
        .send_request(request(Method::POST, path, Some(&again), body))
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_node_key_must_be_vouched_for_and_no_other_nodes() {
    let mesh = Mesh::start().await;
    let first = mesh.join(1).await;
    let second = mesh.machine(2);
    let mut request = second.registration(Some(&mesh.first_key()));
    request.node_key = NodePrivateKey::from_bytes([9; 32]).public();
    let body = serde_json::to_vec(&request).unwrap();
    let answer = second
        .signed(Method::POST, control::PATH_REGISTER, body)
        .await;
    assert_eq!(refusal(answer).await.1, code::BAD_PROOF);

    let stolen = control::RotateRequest {
        node_key: first.node_key.public(),
        node_key_signature: mesh
            .join(3)
            .await
            .machine
            .sign(Purpose::NodeKey, first.node_key.public().as_bytes()),
    };
    let third = mesh.machine(3);
    assert_eq!(
        third
            .post(control::PATH_ROTATE, &stolen)
            .await
            .unwrap_err()
            .1,
        code::CONFLICT
    );
}

#[tokio::test]
async fn joins_outlive_a_restart_and_addresses_are_not_given_again() {
    let mut mesh = Mesh::start().await;
    let first = mesh.join(1).await;
    let (_, before) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/nodes/host1", None)
        .await;
    mesh.restart().await;
    assert!(
        mesh.server().first_key().is_none(),
        "only a first run prints a key"
    );
    let (_, after) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/nodes/host1", None)
        .await;
    assert_eq!(before["ipv4"], after["ipv4"]);

    let node = mesh.machine(1);
    node.post(control::PATH_LOGOUT, &()).await.unwrap();
    assert_eq!(
        node.register(None).await.unwrap_err().1,
        code::NOT_REGISTERED
    );
    mesh.join(2).await;
    let (_, second) = mesh
        .operator()
        .ask(Method::GET, "/api/v1/nodes/host2", None)
        .await;
    assert_ne!(second["ipv4"], before["ipv4"]);
    assert_eq!(first.id(), node.id());
}

#[tokio::test]
async fn a_store_that_cannot_write_refuses_joins_and_heals() {
    use sqlx::{ConnectOptions as _, Connection as _};

    let mesh = Mesh::start().await;
    let key = mesh.first_key();
    let database = mesh.dir.path().join("state/coordinator.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(database);
    let mut intruder = options.connect().await.unwrap();
    let lock = intruder.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let node = mesh.machine(1);
    let refused = node.register(Some(&key)).await;
    assert_eq!(
        refused,
        Err((
            StatusCode::SERVICE_UNAVAILABLE,
            code::UNAVAILABLE.to_owned()
        ))
    );
    assert_eq!(
        mesh.operator().ask(Method::GET, "/healthz", None).await.0,
        StatusCode::SERVICE_UNAVAILABLE
    );
    lock.rollback().await.unwrap();
    node.register(Some(&key)).await.unwrap();
    assert_eq!(
        mesh.operator().ask(Method::GET, "/healthz", None).await.0,
        StatusCode::OK
    );
}
