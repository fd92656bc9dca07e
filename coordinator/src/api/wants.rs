//! Which models users would like somebody to share, for hosts to see.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use mesh_proto::control::{ErrorBody, WANT_TTL_MS, WantRequest, Wanted};
use mesh_proto::name::normalise;

use super::App;
use super::error::ApiError;
use super::proof::SignedByNode;
use crate::clock::unix_ms;

const MODEL_NAME_LEN_MAX: usize = 255;

/// Tells that the node's user would like a model, or no longer.
#[utoipa::path(post, path = "/api/v1/node/want", tag = "node", request_body = WantRequest, responses(
    (status = 204),
    (status = 400, body = ErrorBody, description = "bad_request"),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
    (status = 409, body = ErrorBody, description = "conflict: the user wants too many models"),
))]
pub(crate) async fn want(
    State(app): State<App>,
    node: SignedByNode,
) -> Result<StatusCode, ApiError> {
    let asked: WantRequest = node.json()?;
    let model = normalise(&asked.model);
    let is_name = (1..=MODEL_NAME_LEN_MAX).contains(&model.len())
        && model.chars().all(|c| c.is_ascii_graphic());
    if !is_name {
        return Err(ApiError::bad_request(
            "write the model's name as Ollama has it, such as llama3.2:1b",
        ));
    }
    let user = app.read(|state| state.node(&node.id).map(|node| node.record.user));
    let user = user.ok_or_else(|| ApiError::not_found("node"))?;
    if asked.is_over {
        app.store().delete_want(user, &model).await?;
    } else {
        let now_ms = unix_ms();
        let forgotten = now_ms.saturating_sub(WANT_TTL_MS);
        app.store()
            .put_want(user, &model, now_ms, forgotten)
            .await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Lists what is wanted, most wanted first. By whom is nobody's business.
#[utoipa::path(post, path = "/api/v1/node/wanted", tag = "node", responses(
    (status = 200, body = Wanted),
    (status = 401, body = ErrorBody, description = "bad_proof, bad_nonce"),
    (status = 403, body = ErrorBody, description = "not_registered, node_expired"),
))]
pub(crate) async fn wanted(
    State(app): State<App>,
    _node: SignedByNode,
) -> Result<Json<Wanted>, ApiError> {
    let forgotten = unix_ms().saturating_sub(WANT_TTL_MS);
    let models = app.store().list_wanted(forgotten).await?;
    Ok(Json(Wanted { models }))
}
