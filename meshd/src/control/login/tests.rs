//! When the auth key of a member is used, and when it stays good.

use http::StatusCode;
use mesh_proto::control::{ErrorBody, code};
use serde_json::{Value, json};

use super::*;
use crate::control::fixture::{Authority, Fake};

const WITHOUT: &str = "/api/v1/register";
const WITH: &str = "/api/v1/register with a secret";

fn machine_key() -> MachinePrivateKey {
    MachinePrivateKey::from_bytes(&[1; 32])
}

/// Joins at a coordinator that answers registrations without a secret by an error, or lets everybody in.
async fn joined(
    is_member: bool,
    refuses: Option<(StatusCode, &'static str)>,
) -> (Result<Joined, ControlError>, Vec<String>) {
    let authority = Authority::new();
    let key = authority.key();
    let welcome = json!(RegisterResponse {
        node_id: NodeId::of(&machine_key().public()),
        name: "own".parse().unwrap(),
        user: mesh_proto::id::UserId(1),
        user_name: "anna".parse().unwrap(),
        tags: Vec::new(),
        network_id: NetworkId::of(&key),
        coordinator_key: key,
    });
    let fake = Fake::answering(&authority, move |_, body: &Value| match refuses {
        Some((status, code)) if !body["auth_secret"].is_string() => {
            (status, json!(ErrorBody::new(code, "no")))
        }
        Some(_) | None => (StatusCode::OK, welcome.clone()),
    })
    .await;
    let auth_key = AuthKey::new(&key, [2; 32], [3; 6], vec![fake.url.clone()]);
    let outcome = join(Join {
        auth_key: &auth_key,
        machine_key: &machine_key(),
        node_key: &NodePrivateKey::from_bytes([4; 32]),
        hostname: "own".to_owned(),
        dialer: Dialer::default(),
        is_member,
    })
    .await;
    let asked = fake.asked().split_off(1);
    (outcome, asked)
}

#[tokio::test]
async fn who_is_no_member_uses_the_key_at_once() {
    let (outcome, asked) = joined(false, None).await;
    assert!(outcome.unwrap().is_new);
    assert_eq!(asked, [WITH]);
}

#[tokio::test]
async fn a_member_that_is_known_keeps_the_key_unspent() {
    let (outcome, asked) = joined(true, None).await;
    assert!(!outcome.unwrap().is_new);
    assert_eq!(asked, [WITHOUT]);
}

#[tokio::test]
async fn a_member_that_was_deleted_or_expired_uses_the_key() {
    for code in [code::NOT_REGISTERED, code::NODE_EXPIRED] {
        let (outcome, asked) = joined(true, Some((StatusCode::FORBIDDEN, code))).await;
        assert!(outcome.unwrap().is_new, "{code}");
        assert_eq!(asked, [WITHOUT, WITH], "{code}");
    }
}

#[tokio::test]
async fn a_coordinator_that_cannot_tell_is_not_given_the_key() {
    let (status, code) = (StatusCode::SERVICE_UNAVAILABLE, code::UNAVAILABLE);
    let (outcome, asked) = joined(true, Some((status, code))).await;
    assert!(outcome.unwrap_err().is_no_word());
    assert_eq!(asked, [WITHOUT]);
}
