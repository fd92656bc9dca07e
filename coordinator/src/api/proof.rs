//! Signed requests: which machine asks, proven for this request alone.

use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use mesh_proto::control::{PATH_REGISTER, code};
use mesh_proto::id::NodeId;
use mesh_proto::key::MachineKey;
use mesh_proto::request::RequestProof;
use serde::de::DeserializeOwned;

use super::error::{ApiError, parse_json};
use super::{App, Origin};
use crate::auth::nonce::NonceError;
use crate::clock::unix_ms;

/// A request whose proof is good. The machine need not be registered.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) machine_key: MachineKey,
    pub(crate) body: Bytes,
}

/// A request of a node that is in and not expired.
#[derive(Debug)]
pub(crate) struct SignedByNode {
    pub(crate) id: NodeId,
    pub(crate) machine_key: MachineKey,
    pub(crate) body: Bytes,
}

impl Signed {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        parse_json(&self.body)
    }
}

impl SignedByNode {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        parse_json(&self.body)
    }
}

impl FromRequest<App> for Signed {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let header = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let proof: RequestProof = header
            .ok_or_else(|| ApiError::bad_proof("this request must be signed by the machine key"))?
            .parse()
            .map_err(|_| ApiError::bad_proof("the proof of this request is malformed"))?;
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        let method = request.method().as_str().to_owned();
        if path == PATH_REGISTER && is_guessing(app, &request, &proof) {
            return Err(ApiError::rate_limited(
                "too many failed registrations from this address; wait a minute and check the auth key",
            ));
        }
        let body = Bytes::from_request(request, app).await.map_err(|err| {
            ApiError::new(
                err.status(),
                code::BAD_REQUEST,
                "the body is too large or was cut off",
            )
        })?;
        proof
            .verify(&method, &path, &body)
            .map_err(|_| ApiError::bad_proof("the signature of this request does not match it"))?;
        app.nonces
            .spend(&proof.nonce, Instant::now())
            .map_err(|err| match err {
                NonceError::Bad => ApiError::bad_nonce(),
                NonceError::TooMany => ApiError::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    code::RATE_LIMITED,
                    "too many requests; try again in some minutes",
                ),
            })?;
        Ok(Self {
            machine_key: proof.machine_key,
            body,
        })
    }
}

impl FromRequest<App> for SignedByNode {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let signed = Signed::from_request(request, app).await?;
        let id = NodeId::of(&signed.machine_key);
        let is_expired = app
            .read(|state| {
                state
                    .node(&id)
                    .map(|node| node.record.is_expired(unix_ms()))
            })
            .ok_or_else(ApiError::not_registered)?;
        if is_expired {
            return Err(ApiError::node_expired());
        }
        Ok(Self {
            id,
            machine_key: signed.machine_key,
            body: signed.body,
        })
    }
}

/// Whether the source failed too often. Machines that are registered are let through: they need no auth key.
fn is_guessing(app: &App, request: &Request, proof: &RequestProof) -> bool {
    let is_known = app.read(|state| state.node(&NodeId::of(&proof.machine_key)).is_some());
    !is_known && app.is_limited(source_ip(request))
}

/// The network address that a request came from.
pub(crate) fn source_ip(request: &Request) -> Option<std::net::IpAddr> {
    match request.extensions().get::<Origin>() {
        Some(Origin::Remote(from)) => Some(from.ip()),
        Some(Origin::Local { .. }) | None => None,
    }
}
