//! Models that users would like somebody to share.

use hyper::{Method, StatusCode};
use mesh_proto::control::{
    N_WANTS_MAX, PATH_WANT, PATH_WANTED, WantRequest, Wanted, WantedModel, code,
};
use serde_json::json;

use crate::client::{Mesh, Node, json as parse};

fn want(model: &str) -> WantRequest {
    WantRequest {
        model: model.to_owned(),
        is_over: false,
    }
}

async fn wanted(node: &Node) -> Vec<(String, u32)> {
    let answer = node
        .signed(Method::POST, PATH_WANTED, b"null".to_vec())
        .await;
    assert_eq!(answer.status(), StatusCode::OK);
    let wanted: Wanted = parse(answer).await;
    let told = |model: WantedModel| {
        assert!(model.asked_at_ms > 0);
        (model.model, model.n_users)
    };
    wanted.models.into_iter().map(told).collect()
}

#[tokio::test]
async fn hosts_see_what_is_wanted_and_by_how_many() {
    let mut mesh = Mesh::start().await;
    let (anna, second) = (mesh.join(1).await, mesh.join(2).await);
    let (status, _) = mesh
        .operator()
        .ask(
            Method::POST,
            "/api/v1/users",
            Some(json!({ "name": "bob" })),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let key = mesh.key(json!({ "user": "bob" })).await;
    let bob = mesh.machine(3);
    bob.register(Some(&key)).await.unwrap();

    anna.post(PATH_WANT, &want("Llama3.2:latest"))
        .await
        .unwrap();
    anna.post(PATH_WANT, &want("qwen3:8b")).await.unwrap();
    // Another node of the same user, and the same wish in other words: one user.
    second
        .post(PATH_WANT, &want("library/llama3.2"))
        .await
        .unwrap();
    bob.post(PATH_WANT, &want("qwen3:8b")).await.unwrap();
    let both = [("qwen3:8b".to_owned(), 2), ("llama3.2".to_owned(), 1)];
    assert_eq!(wanted(&second).await, both);

    mesh.restart().await;
    let bob = Node {
        address: mesh.address(),
        ..bob
    };
    assert_eq!(wanted(&bob).await, both, "a restart forgets nothing");
    let over = WantRequest {
        is_over: true,
        ..want("qwen3:8b")
    };
    bob.post(PATH_WANT, &over).await.unwrap();
    bob.post(PATH_WANT, &over).await.unwrap();
    assert_eq!(wanted(&bob).await[0].1, 1);
}

#[tokio::test]
async fn wishes_are_bounded_and_must_be_names() {
    let mesh = Mesh::start().await;
    let node = mesh.join(1).await;
    for wrong in ["", "  ", "two words", "x\u{7}", &"m".repeat(300)] {
        let (status, told) = node.post(PATH_WANT, &want(wrong)).await.unwrap_err();
        assert_eq!(
            (status, told.as_str()),
            (StatusCode::BAD_REQUEST, code::BAD_REQUEST),
            "{wrong:?}"
        );
    }
    for n in 0..N_WANTS_MAX {
        node.post(PATH_WANT, &want(&format!("m{n}"))).await.unwrap();
    }
    node.post(PATH_WANT, &want("m0")).await.unwrap();
    let (status, _) = node.post(PATH_WANT, &want("more")).await.unwrap_err();
    assert_eq!(status, StatusCode::CONFLICT);
    let stranger = mesh.machine(9);
    let (status, _) = stranger.post(PATH_WANT, &want("m")).await.unwrap_err();
    assert_eq!(status, StatusCode::FORBIDDEN);
}
