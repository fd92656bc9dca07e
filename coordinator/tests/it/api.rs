//! The operator's API: answers, errors, who may ask, and the OpenAPI document.

use std::path::Path;

use hyper::{Method, StatusCode};
use mesh_proto::control::code;
use serde_json::{Value, json};

use crate::client::{Mesh, connect, json as parse, refusal, request, send_unix};

#[test]
fn the_openapi_document_is_the_committed_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let document = coordinator::openapi();
    if std::fs::read_to_string(&file).unwrap_or_default() != document {
        std::fs::write(&file, document).unwrap();
        panic!(
            "openapi.json was out of date; it has been written anew: look at the change and commit it"
        );
    }
}

/// Replaces what differs from run to run by its name.
fn steady(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                let is_unsteady = name.ends_with("_at_ms")
                    || [
                        "key",
                        "prefix",
                        "ipv4",
                        "ipv6",
                        "last_used_ms",
                        "uptime_seconds",
                        "last_seen_ms",
                    ]
                    .contains(&name.as_str());
                *field = if is_unsteady && !field.is_null() {
                    json!(format!("[{name}]"))
                } else {
                    steady(field.take())
                };
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = steady(item.take());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    value
}

#[tokio::test]
async fn answers_and_errors_keep_their_shape() {
    let mesh = Mesh::start().await;
    mesh.join(1).await;
    let operator = mesh.operator();
    let mut seen = Vec::new();
    for (method, path, body) in [
        (
            Method::POST,
            "/api/v1/users",
            Some(json!({ "name": "bob" })),
        ),
        (
            Method::POST,
            "/api/v1/users",
            Some(json!({ "name": "bob" })),
        ),
        (
            Method::POST,
            "/api/v1/users",
            Some(json!({ "name": "Bob!" })),
        ),
        (
            Method::PATCH,
            "/api/v1/users/bob",
            Some(json!({ "name": "rob" })),
        ),
        (Method::GET, "/api/v1/users", None),
        (Method::DELETE, "/api/v1/users/admin", None),
        (Method::DELETE, "/api/v1/users/rob", None),
        (Method::DELETE, "/api/v1/users/rob", None),
        (
            Method::POST,
            "/api/v1/auth-keys",
            Some(json!({ "user": "nobody" })),
        ),
        (
            Method::POST,
            "/api/v1/auth-keys",
            Some(json!({ "ttl_seconds": 0 })),
        ),
        (
            Method::POST,
            "/api/v1/auth-keys",
            Some(json!({ "reusable": true })),
        ),
        (
            Method::POST,
            "/api/v1/auth-keys",
            Some(json!({ "is_reusable": true, "tags": ["tag:lab"] })),
        ),
        (Method::GET, "/api/v1/auth-keys", None),
        (Method::DELETE, "/api/v1/auth-keys/none", None),
        (Method::GET, "/api/v1/nodes", None),
        (
            Method::PATCH,
            "/api/v1/nodes/host1",
            Some(json!({ "name": "-" })),
        ),
        (
            Method::PATCH,
            "/api/v1/nodes/host1",
            Some(json!({ "name": "gpu" })),
        ),
        (Method::DELETE, "/api/v1/nodes/host1", None),
        (Method::POST, "/api/v1/api-keys", Some(json!({}))),
        (Method::GET, "/api/v1/api-keys", None),
        (Method::DELETE, "/api/v1/api-keys/none", None),
        (Method::GET, "/api/v1/health", None),
        (Method::GET, "/api/v1/none", None),
        (Method::PUT, "/api/v1/users", None),
        (Method::GET, "/healthz", None),
    ] {
        let asked = format!("{method} {path}");
        let (status, answer) = operator.ask(method, path, body).await;
        seen.push(json!({ "asked": asked, "status": status.as_u16(), "answer": steady(answer) }));
    }
    insta::assert_json_snapshot!(seen);
}

#[tokio::test]
async fn operators_afar_need_an_api_key() {
    let mesh = Mesh::start().await;
    let (_, created) = mesh
        .operator()
        .ask(Method::POST, "/api/v1/api-keys", Some(json!({})))
        .await;
    let good = format!("Bearer {}", created["key"].as_str().unwrap());
    let ask = async |authorization: Option<&str>| {
        let request = request(Method::GET, "/api/v1/nodes", authorization, Vec::new());
        connect(mesh.address(), mesh.server().coordinator_key())
            .await
            .send_request(request)
            .await
            .unwrap()
    };
    assert_eq!(ask(Some(&good)).await.status(), StatusCode::OK);
    let wrong = format!("{}x", &good[..good.len() - 1]);
    for bad in [None, Some("Bearer pxa_"), Some(wrong.as_str())] {
        assert_eq!(
            refusal(ask(bad).await).await,
            (StatusCode::UNAUTHORIZED, code::UNAUTHORIZED.to_owned())
        );
    }
    let path = format!("/api/v1/api-keys/{}", created["prefix"].as_str().unwrap());
    mesh.operator().ask(Method::DELETE, &path, None).await;
    assert_eq!(ask(Some(&good)).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn web_pages_are_refused_on_the_socket() {
    let mesh = Mesh::start().await;
    let mut request = request(Method::GET, "/api/v1/nodes", None, Vec::new());
    request
        .headers_mut()
        .insert("origin", "http://evil.example".parse().unwrap());
    let answer = send_unix(mesh.server().socket(), request).await;
    assert_eq!(
        refusal(answer).await,
        (StatusCode::FORBIDDEN, code::FORBIDDEN.to_owned())
    );
}

#[tokio::test]
async fn metrics_are_told_and_move() {
    let mesh = Mesh::start().await;
    mesh.join(1)
        .await
        .listen(None)
        .await
        .unwrap()
        .next()
        .await
        .unwrap();
    let (status, text) = mesh.operator().ask(Method::GET, "/metrics", None).await;
    assert_eq!(status, StatusCode::OK);
    let text = text.as_str().unwrap();
    for metric in [
        "coordinator_map_frames_total{kind=\"full\"}",
        "coordinator_registrations_total{outcome=\"ok\"}",
        "coordinator_requests_total{class=\"2xx\"}",
        "coordinator_map_streams",
        "coordinator_connections",
        "coordinator_store_errors_total",
        "coordinator_stun_answers_total",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(metric)),
            "{metric} is missing in\n{text}"
        );
    }
}

#[tokio::test]
async fn a_large_body_is_refused() {
    let mesh = Mesh::start().await;
    let body = vec![b' '; 2 << 20];
    let answer = send_unix(
        mesh.server().socket(),
        request(Method::POST, "/api/v1/users", None, body),
    )
    .await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn the_pin_is_what_makes_a_coordinator_trusted() {
    let mesh = Mesh::start().await;
    let identity = connect(mesh.address(), mesh.server().coordinator_key())
        .await
        .send_request(request(Method::GET, "/api/v1/identity", None, Vec::new()))
        .await
        .unwrap();
    let identity: Value = parse(identity).await;
    assert_eq!(
        identity["coordinator_key"],
        mesh.server().coordinator_key().to_string()
    );

    let other = mesh_proto::key::CoordinatorPrivateKey::from_bytes(&[3; 32]).public();
    let config = coordinator::client_config(mesh_proto::auth_key::pin_of(&other)).unwrap();
    let stream = tokio::net::TcpStream::connect(mesh.address())
        .await
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from(mesh_proto::tls::COORDINATOR_NAME).unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    assert!(connector.connect(name, stream).await.is_err());
}
