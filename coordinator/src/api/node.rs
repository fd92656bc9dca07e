//! What a node says of itself: endpoints, offers, beats, a new key, good-bye.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use mesh_proto::control::{
    self, AllowedReply, AllowedRequest, Beat, ErrorBody, N_ENDPOINTS_MAX, NodeUpdate, RotateRequest,
};
use mesh_proto::share::{HostOffers, N_MODELS_MAX};

use super::App;
use super::error::{ApiError, parse_json};
use super::proof::SignedByNode;
use crate::policy;
use crate::state::Told;
use crate::store::NodeChange;

const N_GPUS_MAX: usize = 64;
const MODEL_NAME_LEN_MAX: usize = 255;

/// Tells where the node may be reached and what it shares.
#[utoipa::path(post, path = "/api/v1/node/update", tag = "node", request_body = NodeUpdate, responses(
    (status = 204),
    (status = 400, body = ErrorBody, description = "bad_request"),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
))]
pub(crate) async fn update(
    State(app): State<App>,
    node: SignedByNode,
) -> Result<StatusCode, ApiError> {
    let update: NodeUpdate = node.json()?;
    let endpoints = update.told_endpoints();
    if endpoints
        .as_ref()
        .is_some_and(|endpoints| endpoints.len() > N_ENDPOINTS_MAX)
    {
        return Err(ApiError::bad_request(format!(
            "at most {N_ENDPOINTS_MAX} endpoints are kept"
        )));
    }
    let offers = update.offers.map(checked).transpose()?.map(Arc::new);
    let is_news = app.read(|state| {
        state.node(&node.id).is_some_and(|known| {
            endpoints
                .as_ref()
                .is_some_and(|new| *new != known.record.endpoints)
                || offers
                    .as_ref()
                    .is_some_and(|new| *new != known.record.offers)
        })
    });
    let told = Told {
        disco_key: update.disco_key,
        home_relay: update.home_relay,
    };
    if told != Told::default() {
        app.on_told(&node.id, told);
    }
    if is_news {
        app.change_node(node.id, NodeChange::Told { endpoints, offers })
            .await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Checks a host's offers and leaves out what others need not know.
fn checked(mut offers: HostOffers) -> Result<HostOffers, ApiError> {
    if offers.models.len() > N_MODELS_MAX || offers.gpus.len() > N_GPUS_MAX {
        return Err(ApiError::bad_request(format!(
            "at most {N_MODELS_MAX} models and {N_GPUS_MAX} GPUs can be shared"
        )));
    }
    let names: BTreeSet<_> = offers
        .models
        .iter()
        .map(|offer| offer.model.as_str())
        .collect();
    let is_named = |name: &&str| !name.is_empty() && name.len() <= MODEL_NAME_LEN_MAX;
    if names.len() != offers.models.len() || !names.iter().all(is_named) {
        return Err(ApiError::bad_request(
            "each model must have a name of its own, of at most 255 bytes",
        ));
    }
    for gpu in &mut offers.gpus {
        gpu.uuid = None;
    }
    Ok(offers)
}

/// A host lives. Sent each second while it shares.
#[utoipa::path(post, path = "/api/v1/node/beat", tag = "node", request_body = Beat, responses(
    (status = 204),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
))]
pub(crate) async fn beat(
    State(app): State<App>,
    node: SignedByNode,
) -> Result<StatusCode, ApiError> {
    parse_json::<Beat>(&node.body)?;
    app.on_beat(&node.id);
    Ok(StatusCode::NO_CONTENT)
}

/// Changes the node's tunnel key.
#[utoipa::path(post, path = "/api/v1/node/rotate", tag = "node", request_body = RotateRequest, responses(
    (status = 204),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
    (status = 409, body = ErrorBody, description = "conflict"),
))]
pub(crate) async fn rotate(
    State(app): State<App>,
    node: SignedByNode,
) -> Result<StatusCode, ApiError> {
    let asked: RotateRequest = node.json()?;
    control::verify_node_key(
        &node.machine_key,
        &asked.node_key,
        &asked.node_key_signature,
    )
    .map_err(|_| ApiError::bad_proof("the machine key did not sign this node key"))?;
    let change = NodeChange::Key {
        node_key: asked.node_key,
        signature: asked.node_key_signature,
    };
    app.change_node(node.id, change).await?;
    tracing::info!(node = %node.id, "a node changed its key");
    Ok(StatusCode::NO_CONTENT)
}

/// Tells what the policy allows one node on another.
#[utoipa::path(post, path = "/api/v1/node/allowed", tag = "node", request_body = AllowedRequest, responses(
    (status = 200, body = AllowedReply),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "forbidden: another user's node; not_registered, node_expired"),
    (status = 404, body = ErrorBody, description = "not_found"),
))]
pub(crate) async fn allowed(
    State(app): State<App>,
    node: SignedByNode,
) -> Result<Json<AllowedReply>, ApiError> {
    let asked: AllowedRequest = node.json()?;
    app.read(|state| {
        let known = |id| {
            let found = state.node(id).map(|node| &node.record);
            found.ok_or_else(|| ApiError::not_found("node"))
        };
        let (asker, from, to) = (known(&node.id)?, known(&asked.from)?, known(&asked.to)?);
        if !policy::may_ask_for(asker, from) && asker.id != to.id {
            return Err(ApiError::forbidden(
                "what another user's node may open is told to that node alone: ask there, or ask the mesh's administrator",
            ));
        }
        Ok(policy::allowed(from, to))
    })
    .map(Json)
}

/// The node leaves for good; its address is never given to another.
#[utoipa::path(post, path = "/api/v1/node/logout", tag = "node", responses(
    (status = 204),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
))]
pub(crate) async fn logout(
    State(app): State<App>,
    node: SignedByNode,
) -> Result<StatusCode, ApiError> {
    app.delete_node(node.id).await?;
    tracing::info!(node = %node.id, "a node logged out");
    Ok(StatusCode::NO_CONTENT)
}
